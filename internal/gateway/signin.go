package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// Signing in with a browser. The front door's own host has a session: a cookie with a sealed API token that ends by itself. A port's host
// gets a cookie of its own, by a code that is good once and for a minute: no page of a box ever has anything that is good elsewhere.

const (
	cookiePrefix  = "carrel_"
	sessionCookie = cookiePrefix + "session"
	portCookie    = cookiePrefix + "port"

	sessionLifetime = 12 * time.Hour
	codeLifetime    = time.Minute

	sealSession = "session"
	sealPort    = "port"
	sealCode    = "code"
	sealLink    = "link"
)

// browserSession is what the session cookie holds.
type browserSession struct {
	User  carrel.UserID `json:"user"`
	Token string        `json:"token"` // an API token made for this sign-in
	// From is the API token that was shown to sign in: the sign-in ends with it.
	From    carrel.TokenID `json:"from"`
	Expires time.Time      `json:"expires"`
}

// portSession is what the cookie of a port's host holds, and the code that leads to it.
type portSession struct {
	User  carrel.UserID `json:"user"`
	Box   carrel.BoxID  `json:"box"`
	Port  int           `json:"port"`
	Token string        `json:"token"` // id of the API token that it came from, or empty: it ends with that
	// From is the API token that was shown to sign in, or empty: it ends with that too.
	From    carrel.TokenID `json:"from,omitempty"`
	Signed  string         `json:"signed,omitempty"`
	Nonce   string         `json:"nonce,omitempty"` // of a code
	Expires time.Time      `json:"expires"`
}

// onceOnly remembers the codes that were used, for as long as they could be used again.
type onceOnly struct {
	mu   sync.Mutex // guards used
	used map[string]time.Time
}

func newOnceOnly() *onceOnly { return &onceOnly{used: map[string]time.Time{}} }

// first reports whether a code is used for the first time.
func (o *onceOnly) first(nonce string, expires, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n, end := range o.used {
		if now.After(end) {
			delete(o.used, n)
		}
	}
	if _, ok := o.used[nonce]; ok || nonce == "" {
		return false
	}
	o.used[nonce] = expires
	return true
}

// seen reports whether a code was used.
func (o *onceOnly) seen(nonce string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.used[nonce]
	return ok
}

// secure reports whether the front door is reached by HTTPS: then its cookies are for HTTPS alone, and bound to their host by their name.
func (p *ports) secure(r *http.Request) bool { return p.origin(r).Scheme == "https" }

func (p *ports) setCookie(w http.ResponseWriter, r *http.Request, name, value string, lifetime time.Duration) {
	c := &http.Cookie{Name: name, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: int(lifetime / time.Second)}
	if name == portCookie { // links from elsewhere lead to ports
		c.SameSite = http.SameSiteLaxMode
	}
	if p.secure(r) {
		c.Name, c.Secure = "__Host-"+name, true
	}
	if lifetime <= 0 {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// readCookie gives the one cookie of a name. Two of them, one of which a box may have set for a whole domain, are as none.
func (p *ports) readCookie(r *http.Request, name string) string {
	if p.secure(r) {
		name = "__Host-" + name
	}
	found := r.CookiesNamed(name)
	if len(found) != 1 {
		return ""
	}
	return found[0].Value
}

// byCookie finds the session of who signed in at a port's host.
func (p *ports) byCookie(r *http.Request, ref portRef) (portSession, error) {
	g := p.gateway
	value := p.readCookie(r, portCookie)
	var s portSession
	if value == "" || unseal(g.secrets().CookieKeys, sealPort, value, &s) != nil || !g.now().Before(s.Expires) || s.Box != ref.Box || s.Port != ref.Port || g.tokenRevoked(carrel.TokenID(s.Token)) || g.tokenRevoked(s.From) {
		return portSession{}, errNoCredentials()
	}
	if s.Signed != "" {
		if _, err := g.verifier.VerifyPort(s.Signed, g.now()); err != nil {
			return portSession{}, errNoCredentials()
		}
	}
	return s, nil
}

// session finds the user who signed in at the front door.
func (p *ports) session(r *http.Request) (browserSession, bool) {
	g := p.gateway
	value := p.readCookie(r, sessionCookie)
	var s browserSession
	if value == "" || unseal(g.secrets().CookieKeys, sealSession, value, &s) != nil || !g.now().Before(s.Expires) {
		return browserSession{}, false
	}
	token, err := auth.ParseToken(s.Token)
	if err != nil || g.tokenRevoked(token.ID) || g.tokenRevoked(s.From) {
		return browserSession{}, false
	}
	if _, ok := g.grantOf(s.User); !ok {
		return browserSession{}, false
	}
	return s, true
}

// serveSignIn answers everything at /signin and below, at the front door's own host.
func (p *ports) serveSignIn(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case r.URL.Path == "/signin" && r.Method == http.MethodGet && r.URL.Query().Get("link") != "":
		p.signInByLink(w, r)
	case r.URL.Path == "/signin/link" && r.Method == http.MethodPost:
		p.signInByLinkForm(w, r)
	case r.URL.Path == "/signin" && r.Method == http.MethodGet:
		p.signInPage(w, r, http.StatusOK, "")
	case r.URL.Path == "/signin" && r.Method == http.MethodPost:
		p.signIn(w, r)
	case r.URL.Path == "/signin/port" && r.Method == http.MethodGet:
		p.signInToPort(w, r)
	case r.URL.Path == "/signout" && r.Method == http.MethodPost:
		p.signOut(w, r)
	default:
		writeError(w, r, carrel.NotFound("path", clip(r.URL.Path)))
	}
}

func (p *ports) signInPage(w http.ResponseWriter, r *http.Request, status int, problem string) {
	s, signedIn := p.session(r)
	page := signInPage{Next: localPath(r.FormValue("next")), Problem: problem, PortHosts: p.portHosts(r)}
	if signedIn {
		known, _ := p.gateway.grantOf(s.User)
		page.User = known.Name
	}
	writePage(w, status, page)
}

// portHosts is where ports are, as a policy of pages names it.
func (p *ports) portHosts(r *http.Request) string {
	origin := p.origin(r)
	return origin.Scheme + "://*." + portDomainHost(p.gateway.config.PortDomain, origin)
}

// localPath is a path of our own host, or empty: a sign-in must not lead elsewhere.
func localPath(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.Contains(next, "\\") {
		return ""
	}
	return next
}

// ownForm refuses a form that a page of somebody else's sent.
func (p *ports) ownForm(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	if site != "" && site != "same-origin" && site != "none" {
		return false
	}
	origin := r.Header.Get("Origin")
	if origin == "" || origin == "null" {
		return origin == ""
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host == r.Host
}

// signIn takes the form of the sign-in page.
func (p *ports) signIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	if !p.ownForm(r) {
		p.signInPage(w, r, http.StatusForbidden, "The form came from another site. Please sign in here.")
		return
	}
	token := strings.TrimSpace(r.PostFormValue("token"))
	if err := p.begin(r.Context(), w, r, token); err != nil {
		e := own(r.Context(), p.gateway.log, r.Header.Get(headerRequestID), err)
		p.signInPage(w, r, httpStatus(e.Code), e.Message)
		return
	}
	goOn(w, r, r.PostFormValue("next"))
}

// goOn leads on to a path of our own host, else to the first page.
func goOn(w http.ResponseWriter, r *http.Request, next string) {
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.Redirect(w, r, cmp.Or(localPath(next), "/"), http.StatusSeeOther)
}

// begin makes a session from an API token.
func (p *ports) begin(ctx context.Context, w http.ResponseWriter, r *http.Request, token string) error {
	if _, err := auth.ParseToken(token); err != nil {
		return carrel.Errorf(carrel.CodeUnauthorized, "bad_token", "That is no API token. It begins with %s; on a machine of your own the first one is in the file admin-token of the data directory.", apiTokenPrefix)
	}
	session, err := p.derive(ctx, token)
	if err != nil {
		return err
	}
	return p.keep(w, r, session)
}

func (p *ports) keep(w http.ResponseWriter, r *http.Request, s browserSession) error {
	value, err := seal(p.gateway.secrets().CookieKeys, sealSession, s)
	if err != nil {
		return errNoKeys(err)
	}
	p.setCookie(w, r, sessionCookie, value, s.Expires.Sub(p.gateway.now()))
	return nil
}

// derive makes the token of a session: it ends by itself, and signing out revokes it and nothing else. The session ends with the token that it
// came from, too; one that comes from a sign-in, with the token that was shown for that.
func (p *ports) derive(ctx context.Context, token string) (browserSession, error) {
	g := p.gateway
	from, err := auth.ParseToken(token)
	if err != nil {
		return browserSession{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	expires := g.now().Add(sessionLifetime)
	req := connect.NewRequest(&carrelv1.CreateTokenRequest{Description: "sign-in with a browser", ExpireTime: timestamppb.New(expires)})
	req.Header().Set("Authorization", "Bearer "+token)
	resp, err := p.tokens().CreateToken(ctx, req)
	if err != nil {
		return browserSession{}, g.fromControl(err)
	}
	if end := resp.Msg.GetToken().GetExpireTime(); end != nil && end.AsTime().Before(expires) {
		expires = end.AsTime()
	}
	root := from.ID
	if s, ok := sessionOf(ctx); ok && s.Token == token {
		root = s.From // what that sign-in ends with, this one does too
	}
	return browserSession{User: carrel.UserID(resp.Msg.GetToken().GetUserId()), Token: resp.Msg.GetSecret(), From: root, Expires: expires}, nil
}

func (p *ports) tokens() carrelv1connect.TokenServiceClient {
	return carrelv1connect.NewTokenServiceClient(&http.Client{Transport: p.gateway.users}, p.gateway.url.String(), connect.WithReadMaxBytes(1<<20))
}

// signInLink is what a link of the command line holds.
type signInLink struct {
	Session browserSession `json:"session"`
	Nonce   string         `json:"nonce"`
	Expires time.Time      `json:"expires"`
}

// link makes a URL that signs a browser in as the owner of an API token, once and within a time, and leads on to next.
func (p *ports) link(ctx context.Context, origin *url.URL, token, next string, within time.Duration) (*url.URL, error) {
	g := p.gateway
	session, err := p.derive(ctx, token)
	if err != nil {
		return nil, err
	}
	text, err := seal(g.secrets().CookieKeys, sealLink, signInLink{Session: session, Nonce: rand.Text(), Expires: g.now().Add(within)})
	if err != nil {
		return nil, errNoKeys(err)
	}
	link := origin.JoinPath("/signin")
	link.RawQuery = url.Values{"link": {text}, "next": {next}}.Encode()
	return link, nil
}

func errNoKeys(cause error) *carrel.Error {
	return errUnavailable("no_keys", cause, "this gateway cannot sign anybody in yet; try again in a moment")
}

// signInByLink takes a link. One that somebody else's page leads to, or that would put another user in the place of the one who is signed in, is asked
// about first, and so is one of which the browser does not say what led to it: a browser must not work as somebody else without its user knowing.
func (p *ports) signInByLink(w http.ResponseWriter, r *http.Request) {
	text, next := r.URL.Query().Get("link"), r.URL.Query().Get("next")
	link, ok := p.openLink(text)
	if !ok {
		p.signInPage(w, r, http.StatusUnauthorized, linkSpent)
		return
	}
	present, signedIn := p.session(r)
	site := r.Header.Get("Sec-Fetch-Site")
	foreign := site != "none" && site != "same-origin" // nothing is said by old browsers, and by all where there is no TLS
	if foreign || signedIn && present.User != link.Session.User {
		known, _ := p.gateway.grantOf(link.Session.User)
		page := linkPage{Link: text, Next: localPath(next), User: known.Name, PortHosts: p.portHosts(r)}
		if signedIn && present.User != link.Session.User {
			before, _ := p.gateway.grantOf(present.User)
			page.Instead = before.Name
		}
		writePage(w, http.StatusOK, page)
		return
	}
	p.useLink(w, r, link, next)
}

// signInByLinkForm takes the answer to the question that signInByLink asked.
func (p *ports) signInByLinkForm(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	link, ok := p.openLink(r.PostFormValue("link"))
	switch {
	case !p.ownForm(r):
		p.signInPage(w, r, http.StatusForbidden, "The form came from another site. Please sign in here.")
	case !ok:
		p.signInPage(w, r, http.StatusUnauthorized, linkSpent)
	default:
		p.useLink(w, r, link, r.PostFormValue("next"))
	}
}

const linkSpent = "This link was used already or is too old. Make another one with carrel open, or sign in with a token."

// openLink reads a link that can still be used. Looking at it does not use it.
func (p *ports) openLink(text string) (signInLink, bool) {
	var link signInLink
	err := unseal(p.gateway.secrets().CookieKeys, sealLink, text, &link)
	return link, err == nil && p.gateway.now().Before(link.Expires) && !p.used.seen(link.Nonce)
}

func (p *ports) useLink(w http.ResponseWriter, r *http.Request, link signInLink, next string) {
	if !p.used.first(link.Nonce, link.Expires, p.gateway.now()) {
		p.signInPage(w, r, http.StatusUnauthorized, linkSpent)
		return
	}
	if err := p.keep(w, r, link.Session); err != nil {
		p.signInPage(w, r, http.StatusServiceUnavailable, "Nobody can be signed in at the moment. Please try again.")
		return
	}
	goOn(w, r, next)
}

func (p *ports) signOut(w http.ResponseWriter, r *http.Request) {
	if !p.ownForm(r) {
		p.signInPage(w, r, http.StatusForbidden, "The form came from another site.")
		return
	}
	if s, ok := p.session(r); ok {
		if token, err := auth.ParseToken(s.Token); err == nil {
			ctx, cancel := context.WithTimeout(r.Context(), exchangeTimeout)
			defer cancel()
			req := connect.NewRequest(&carrelv1.RevokeTokenRequest{Id: string(token.ID)})
			req.Header().Set("Authorization", "Bearer "+s.Token)
			if _, err := p.tokens().RevokeToken(ctx, req); err != nil {
				p.gateway.log.WarnContext(ctx, "token of a session not revoked", "error", err, "user", s.User)
			}
		}
	}
	p.setCookie(w, r, sessionCookie, "", 0)
	http.Redirect(w, r, "/signin", http.StatusSeeOther)
}

// signInToPort leads a browser that is signed in on to a port's host, with a code.
func (p *ports) signInToPort(w http.ResponseWriter, r *http.Request) {
	g := p.gateway
	to, err := url.Parse(r.URL.Query().Get("url"))
	var ref portRef
	ok := false
	if err == nil {
		ref, ok = portOfHost(to.Host, g.config.PortDomain)
	}
	if !ok {
		writePage(w, http.StatusBadRequest, messagePage{Title: "That is no port of a box", Message: "The address to come back to is not one of a box's ports."})
		return
	}
	session, signedIn := p.session(r)
	if !signedIn && r.Header.Get("Sec-Fetch-Site") == "cross-site" {
		// The way here began at another site, so the browser kept the session's cookie back. From our own page it is sent.
		writePage(w, http.StatusOK, onwardPage{To: r.URL.RequestURI()})
		return
	}
	if !signedIn {
		sign := url.URL{Path: "/signin", RawQuery: url.Values{"next": {r.URL.RequestURI()}}.Encode()}
		http.Redirect(w, r, sign.String(), http.StatusSeeOther)
		return
	}
	rule, _ := g.routes.port(ref.Box, ref.Port)
	if _, err := p.visitorOf(r.Context(), r, session.User, ref, rule); err != nil {
		p.answer(w, r, err)
		return
	}
	token, _ := auth.ParseToken(session.Token)
	code, err := seal(g.secrets().CookieKeys, sealCode, portSession{
		User: session.User, Box: ref.Box, Port: ref.Port, Token: string(token.ID), From: session.From, Nonce: rand.Text(), Expires: g.now().Add(codeLifetime),
	})
	if err != nil {
		p.answer(w, r, err)
		return
	}
	host := p.urlOf(p.origin(r), ref)
	host.Path = portPaths + "signin"
	host.RawQuery = url.Values{"code": {code}, "to": {(&url.URL{Path: to.Path, RawQuery: to.RawQuery}).RequestURI()}}.Encode()
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.Redirect(w, r, host.String(), http.StatusSeeOther)
}

// finishSignIn takes the code at the port's host.
func (p *ports) finishSignIn(w http.ResponseWriter, r *http.Request, ref portRef) {
	g := p.gateway
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	if r.URL.Path != portPaths+"signin" || r.Method != http.MethodGet {
		p.answer(w, r, carrel.NotFound("path", clip(r.URL.Path)))
		return
	}
	to := localPath(r.URL.Query().Get("to"))
	if to == "" {
		to = "/"
	}
	var code portSession
	err := unseal(g.secrets().CookieKeys, sealCode, r.URL.Query().Get("code"), &code)
	if err != nil || !g.now().Before(code.Expires) || code.Box != ref.Box || code.Port != ref.Port || !p.used.first(code.Nonce, code.Expires, g.now()) {
		http.Redirect(w, r, to, http.StatusSeeOther) // where it begins anew if need be
		return
	}
	p.keepPort(w, r, portSession{User: code.User, Box: ref.Box, Port: ref.Port, Token: code.Token, From: code.From, Expires: g.now().Add(sessionLifetime)})
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// keepURLToken turns the token of a signed URL into a cookie of the port's host, so that what the page loads is let through as well.
func (p *ports) keepURLToken(w http.ResponseWriter, r *http.Request, ref portRef, token string) {
	g := p.gateway
	signed, err := g.verifier.VerifyPort(token, g.now())
	if err != nil {
		p.answer(w, r, err)
		return
	}
	p.keepPort(w, r, portSession{User: signed.User, Box: ref.Box, Port: ref.Port, Signed: token, Expires: signed.Expires})
	to := url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: withoutToken(r.URL.RawQuery)}
	if localPath(to.RequestURI()) == "" { // such as //host, which browsers take for another place
		to = url.URL{Path: "/"}
	}
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.Redirect(w, r, to.RequestURI(), http.StatusSeeOther)
}

func (p *ports) keepPort(w http.ResponseWriter, r *http.Request, s portSession) {
	value, err := seal(p.gateway.secrets().CookieKeys, sealPort, s)
	if err != nil {
		p.gateway.log.WarnContext(r.Context(), "port cookie not sealed", "error", err)
		return
	}
	p.setCookie(w, r, portCookie, value, s.Expires.Sub(p.gateway.now()))
}

// tokenRevoked reports whether an API token, by its id, was revoked or has ended in the last day.
func (g *Gateway) tokenRevoked(id carrel.TokenID) bool {
	g.grants.mu.Lock()
	defer g.grants.mu.Unlock()
	_, revoked := g.grants.revoked[id]
	return revoked && id != ""
}
