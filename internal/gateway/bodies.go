package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// anonymousBody is how much of a request's body is read of somebody who has not shown who they are, in bytes. RPC reads requests whole before anybody asks.
	anonymousBody = 64 << 10
	// bodyPatience is how long such a body may take to come.
	bodyPatience = time.Minute
	// messageWeight is how much memory a message takes, as a multiple of its bytes: it is read, understood, and written again.
	messageWeight = 3
)

// guardedBody is the body of a request, of which more than anonymousBody is read only when more gives no error.
type guardedBody struct {
	io.ReadCloser
	left int64 // until more is asked for
	more func() error
	err  error  // of more
	over func() // called when no more comes
}

func (b *guardedBody) Read(p []byte) (int, error) {
	if b.left <= 0 && b.more != nil {
		b.err = b.more()
		b.more = nil
	}
	if b.err != nil {
		return 0, b.err
	}
	if b.more != nil {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if err != nil {
		b.over()
	}
	return n, err
}

// bodyError is an error for whoever reads a body, be it a handler of RPCs or of ours.
func bodyError(e *carrel.Error) error { return errors.Join(toConnect(e), e) }

// guardBody has the body of a request read beyond anonymousBody only for somebody who is known. weight is how much memory the
// request takes where it is large, in bytes, or 0 where it is passed on piece by piece; that is kept with the request. A body that does not come
// to its end in bodyPatience is given up too, if nobody is known to send it.
func (g *Gateway) guardBody(w http.ResponseWriter, r *http.Request, weight int64) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	ctx, header := r.Context(), r.Header
	if length := r.ContentLength; length >= 0 && weight > 0 {
		weight = min(weight, length*messageWeight)
	}
	control := http.NewResponseController(w)
	slow := time.AfterFunc(g.people.patience, func() {
		if _, err := g.people.of(ctx, header); err != nil {
			_ = control.SetReadDeadline(time.Unix(1, 0)) // where there are none the connection's own end is the end
		}
	})
	stop := func() { slow.Stop() }
	keptOf(ctx).add(stop)
	body := &guardedBody{ReadCloser: r.Body, left: anonymousBody, over: stop}
	body.more = func() error {
		user, err := g.people.of(ctx, header)
		if err == nil && weight > 0 {
			var leave func()
			if leave, err = g.memory.wait(ctx, holder{user: user}, weight); err == nil && !keptOf(ctx).add(leave) {
				leave() // it has been answered already
			}
		}
		if err != nil {
			return bodyError(own(ctx, g.log, header.Get(headerRequestID), err))
		}
		return nil
	}
	r.Body = body
}

// messages serves RPCs with next. weight is as guardBody takes it, for the largest request.
func (g *Gateway) messages(next http.Handler, weight int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, release := keep(r)
		defer release()
		g.guardBody(w, r, weight)
		next.ServeHTTP(w, r)
	})
}

// people remembers for a moment whose API tokens are; while control is away, for as long as tickets live. It is safe for concurrent use.
type people struct {
	gateway  *Gateway
	users    carrelv1connect.UserServiceClient
	patience time.Duration // of bodies
	known    *answers[[sha256.Size]byte, carrel.UserID]
}

func newPeople(g *Gateway) *people {
	return &people{
		gateway: g, known: newAnswers[[sha256.Size]byte, carrel.UserID](), patience: bodyPatience,
		users: carrelv1connect.NewUserServiceClient(&http.Client{Transport: g.users}, g.url.String(), connect.WithReadMaxBytes(1<<20)),
	}
}

// of finds the user whose ticket or API token a request shows. Errors: CodeUnauthorized; CodeUnavailable when control has to be asked and is away.
func (p *people) of(ctx context.Context, header http.Header) (carrel.UserID, error) {
	g := p.gateway
	scheme, bearer, _ := strings.Cut(header.Get("Authorization"), " ")
	bearer = strings.TrimSpace(bearer)
	if !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		return "", carrel.Errorf(carrel.CodeUnauthorized, "no_credentials", "a request of this size needs credentials: send a ticket or an API token as `Authorization: Bearer …`")
	}
	if !strings.HasPrefix(bearer, apiTokenPrefix) {
		t, err := g.verifier.Verify(bearer, g.now())
		if err != nil {
			return "", err
		}
		return t.User, g.grants.good(pass{Ticket: t, header: headerTicket})
	}
	key, now := sha256.Sum256([]byte(bearer)), g.now()
	known, ok := p.known.of(key)
	if ok && p.fresh(known, now) {
		return known.value, known.err
	}
	user, err := p.ask(ctx, header.Get("Authorization"))
	switch code := carrel.CodeOf(err); {
	case err == nil, refused(err):
		p.known.remember(key, answer[carrel.UserID]{user, err, now})
	case ok && known.err == nil && now.Sub(known.at) < carrel.TicketLifetime && (code == carrel.CodeUnavailable || code == carrel.CodeDeadline):
		return known.value, nil
	}
	return user, err
}

func (p *people) fresh(known answer[carrel.UserID], now time.Time) bool {
	if known.err != nil {
		return now.Sub(known.at) < exchangeRefused
	}
	return now.Sub(known.at) < exchangeFresh
}

func (p *people) ask(ctx context.Context, authorization string) (carrel.UserID, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	req := connect.NewRequest(&carrelv1.WhoAmIRequest{})
	req.Header().Set("Authorization", authorization)
	resp, err := p.users.WhoAmI(ctx, req)
	if err != nil {
		return "", p.gateway.fromControl(err)
	}
	return carrel.UserID(resp.Msg.GetUser().GetId()), nil
}

func (p *people) tidy(now time.Time) {
	p.known.forget(func(_ [sha256.Size]byte, known answer[carrel.UserID]) bool {
		return known.err != nil && now.Sub(known.at) > exchangeRefused || now.Sub(known.at) > carrel.TicketLifetime
	})
}
