package gateway

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// A browser that is signed in asks for everything with its session cookie alone: scripts of the pages have no credentials that they could lose.
// The gateway takes the API token out of the cookie and goes on as if the request had shown it. Because browsers send cookies by themselves,
// a request counts only when it comes from the front door's own pages.

// headerUI is on every request by the pages that is neither a page nor a WebSocket. Pages of other origins cannot set it without
// asking first, which nobody here allows.
const headerUI = "X-Carrel-Ui"

func errSessionOrigin() *carrel.Error {
	return carrel.Errorf(carrel.CodeDenied, "other_origin", "a page of another origin may not use your sign-in; programs send an API token as `Authorization: Bearer …`")
}

func errSessionEnded() *carrel.Error {
	return carrel.Errorf(carrel.CodeUnauthorized, "signed_out", "your sign-in has ended; sign in again")
}

// asSession gives a request the API token of the sign-in that it comes with. A request that shows something itself, or comes with no
// sign-in, is given back as it is, as is one that is refused. What is made of it ends with the sign-in: its context does. done must be called at the request's end.
func (p *ports) asSession(r *http.Request) (request *http.Request, done func(), err error) {
	nothing := func() {}
	if showsRight(r) {
		return r, nothing, nil
	}
	s, ok := p.session(r)
	if !ok {
		return r, nothing, nil
	}
	if !p.ownRequest(r) {
		return r, nothing, errSessionOrigin()
	}
	token, err := auth.ParseToken(s.Token)
	if err != nil {
		return r, nothing, errSessionEnded()
	}
	ctx, end := context.WithCancelCause(r.Context())
	ctx, stop := context.WithDeadlineCause(ctx, s.Expires, errSessionEnded())
	release := p.gateway.guard(pass{Ticket: auth.Ticket{User: s.User, Token: token.ID}, from: s.From}, func(error) { end(errSessionEnded()) })
	r = r.WithContext(context.WithValue(ctx, sessionKey{}, s))
	r.Header = r.Header.Clone()
	r.Header.Set("Authorization", "Bearer "+s.Token)
	r.Header.Del("Cookie")
	return r, func() {
		release()
		stop()
		end(nil)
	}, nil
}

type sessionKey struct{}

// sessionOf is the sign-in by which a request goes on as if it had shown a token.
func sessionOf(ctx context.Context) (browserSession, bool) {
	s, ok := ctx.Value(sessionKey{}).(browserSession)
	return s, ok
}

// showsRight reports whether a request brings a right of its own, in one of the ways that some path of the front door takes.
func showsRight(r *http.Request) bool {
	if r.Header.Get("Authorization") != "" || offeredTicket(r) != "" {
		return true
	}
	query := r.URL.Query()
	return query.Has("ticket") || query.Has("token")
}

// ownRequest reports whether a request comes from a page of the front door itself, by what browsers say of it and no page can change.
func (p *ports) ownRequest(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin != "" && !p.ownOrigin(r, origin) {
		return false
	}
	if r.Header.Get("Upgrade") != "" { // of WebSockets browsers always tell the origin
		return origin != ""
	}
	site := r.Header.Get("Sec-Fetch-Site")
	asked := r.Header.Get(headerUI) != ""
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		// A link that somebody opens by hand has no page that it came from.
		return site == "same-origin" || site == "none" || site == "" && (origin != "" || asked)
	}
	return asked && (site == "same-origin" || site == "" && origin != "")
}

// ownOrigin reports whether an Origin is the front door's, as the browser that sent a request knows it.
func (p *ports) ownOrigin(r *http.Request, origin string) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return false
	}
	if public := p.gateway.public; public != nil && strings.EqualFold(u.Host, public.Host) && u.Scheme == public.Scheme {
		return true
	}
	return strings.EqualFold(u.Host, r.Host) && (p.gateway.public == nil || u.Scheme == p.gateway.public.Scheme)
}
