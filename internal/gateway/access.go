package gateway

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/singleflight"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

const (
	exchangeFresh   = 15 * time.Second // how long an exchange is believed before control is asked again
	exchangeRefused = time.Second      // how long a refusal is believed
	exchangeTimeout = 10 * time.Second
	maxBoxName      = 128 // bytes; no id and no name is as long
	apiTokenPrefix  = "carrel_"
)

// pass is a caller's right to one run of a box, verified, with what proves it to the node's proxy.
type pass struct {
	auth.Ticket
	header, proof string // the header of the CONNECT request that carries the proof, and the signed proof
	// key is the SSH public key (in its wire form) by which the user was known; the pass ends when it is theirs no more.
	key string
	// from is the API token that Token was made with, for a sign-in; the pass ends with either. Empty: none.
	from carrel.TokenID
	// openPort is the port that is open to more than those who may use the box, and by which alone this is a pass; 0: none.
	openPort int
	// exchange is set when an API token was exchanged for the ticket; it may be exchanged again.
	exchange *exchange
}

// headers are those by which a proxy knows the pass.
func (p pass) headers() http.Header {
	h := http.Header{p.header: {p.proof}}
	if p.header == headerGrant {
		h.Set(headerEpoch, strconv.FormatInt(p.Epoch, 10))
	}
	return h
}

// allow finds what the bearer of a request may do in a box: the bearer is a ticket, checked here, or an API
// token, which control exchanges for a ticket. box is an id, or with an API token a name in org.
func (g *Gateway) allow(ctx context.Context, header http.Header, box, org, scope string) (pass, error) {
	if box == "" {
		return pass{}, carrel.Errorf(carrel.CodeInvalid, "no_box", "the request names no box")
	}
	scheme, bearer, _ := strings.Cut(header.Get("Authorization"), " ")
	bearer = strings.TrimSpace(bearer)
	if !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		return pass{}, carrel.Errorf(carrel.CodeUnauthorized, "no_credentials", "the request has no credentials: send a ticket or an API token as `Authorization: Bearer …`")
	}
	if strings.HasPrefix(bearer, apiTokenPrefix) {
		return g.tokens.exchange(ctx, bearer, box, org, scope)
	}
	t, err := g.verifier.Verify(bearer, g.now())
	if err != nil {
		return pass{}, err
	}
	if string(t.Box) != box {
		return pass{}, errOtherBox(carrel.BoxID(clip(box)))
	}
	if !t.Has(scope) {
		return pass{}, errScope(t.Box)
	}
	p := pass{Ticket: t, header: headerTicket, proof: bearer}
	return p, g.grants.good(p)
}

func errScope(box carrel.BoxID) error {
	return carrel.Errorf(carrel.CodeDenied, "view_only", "the ticket for box %s is for looking only; get one with the scope exec", box)
}

// exchange is what it takes to exchange a token again. The token is kept in memory alone, while a stream is open by it.
type exchange struct {
	key   exchangeKey
	token string
}

// exchangeKey names an exchange. The token itself is not in it.
type exchangeKey struct {
	token           [sha256.Size]byte
	box, org, scope string
}

// exchanger turns API tokens into tickets and remembers them for a moment; while control is away, until
// they expire.
type exchanger struct {
	gateway *Gateway
	boxes   carrelv1connect.BoxServiceClient
	flight  singleflight.Group
	known   *answers[exchangeKey, pass]
}

func newExchanger(g *Gateway) *exchanger {
	return &exchanger{
		gateway: g, known: newAnswers[exchangeKey, pass](),
		boxes: carrelv1connect.NewBoxServiceClient(&http.Client{Transport: g.control}, g.url.String(), connect.WithReadMaxBytes(1<<20)),
	}
}

func (x *exchanger) exchange(ctx context.Context, token, box, org, scope string) (pass, error) {
	if len(box) > maxBoxName || len(org) > maxBoxName {
		return pass{}, carrel.NotFound("box", clip(box)) // refusals are remembered by name
	}
	key := exchangeKey{sha256.Sum256([]byte(token)), box, org, scope}
	now := x.gateway.now()
	known, ok := x.known.of(key)
	if ok && known.err != nil && now.Sub(known.at) < exchangeRefused {
		return pass{}, known.err
	}
	// One that is for another run than the route leads to is asked for again: the box was restarted. So is one whose name leads to another box by now.
	usable := ok && known.err == nil && now.Before(known.value.Expires) && x.gateway.grants.good(known.value) == nil
	if usable && now.Sub(known.at) < exchangeFresh && x.gateway.routes.leadsTo(box, known.value.Ticket) {
		return known.value, nil
	}
	got, err := x.askOnce(ctx, token, key)
	if code := carrel.CodeOf(err); usable && (code == carrel.CodeUnavailable || code == carrel.CodeDeadline) {
		return known.value, nil
	}
	return got, err
}

// renew exchanges the token of a pass again, whatever is remembered.
func (x *exchanger) renew(ctx context.Context, p pass) (pass, error) {
	return x.askOnce(ctx, p.exchange.token, p.exchange.key)
}

// askOnce asks control once for all who ask for the same at a time, and remembers a definite answer.
func (x *exchanger) askOnce(ctx context.Context, token string, key exchangeKey) (pass, error) {
	now := x.gateway.now()
	flightKey := string(key.token[:]) + "\x00" + key.box + "\x00" + key.org + "\x00" + key.scope
	flight := x.flight.DoChan(flightKey, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exchangeTimeout)
		defer cancel()
		return x.ask(ctx, token, key)
	})
	var got singleflight.Result
	select {
	case got = <-flight:
	case <-ctx.Done():
		return pass{}, ctx.Err()
	}
	opened, _ := got.Val.(pass)
	switch {
	case got.Err == nil:
		x.known.remember(key, answer[pass]{value: opened, at: now})
	case refused(got.Err):
		x.known.remember(key, answer[pass]{err: got.Err, at: now})
	}
	return opened, got.Err
}

func (x *exchanger) ask(ctx context.Context, token string, key exchangeKey) (pass, error) {
	g := x.gateway
	resp, err := g.link.ExchangeToken(ctx, connect.NewRequest(&linkv1.ExchangeTokenRequest{Token: token, Box: key.box, Org: key.org, Scope: key.scope}))
	g.metrics.exchanged(err)
	if err != nil {
		return pass{}, g.fromControl(err)
	}
	t, err := g.verifier.Verify(resp.Msg.GetTicket(), g.now())
	if err != nil {
		return pass{}, err
	}
	if !t.Has(key.scope) {
		return pass{}, errScope(t.Box)
	}
	r := resp.Msg.GetRoute()
	if r.GetBoxId() != "" {
		g.routes.learn(r)
	}
	if r == nil || r.GetGone() {
		return pass{}, errNotRunning(t.Box, x.state(ctx, token, string(t.Box)))
	}
	return pass{Ticket: t, header: headerTicket, proof: resp.Msg.GetTicket(), exchange: &exchange{key, token}}, nil
}

// state asks control, as the caller, how a box is; empty: not to be had.
func (x *exchanger) state(ctx context.Context, token, box string) carrel.State {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req := connect.NewRequest(&carrelv1.GetBoxRequest{Id: box})
	req.Header().Set("Authorization", "Bearer "+token)
	resp, err := x.boxes.GetBox(ctx, req)
	if err != nil {
		return ""
	}
	return carrel.State(strings.TrimPrefix(resp.Msg.GetState().String(), "STATE_"))
}

func (x *exchanger) tidy(now time.Time) {
	x.known.forget(func(_ exchangeKey, known answer[pass]) bool {
		return known.err != nil && now.Sub(known.at) > exchangeRefused || known.err == nil && !now.Before(known.value.Expires)
	})
}

// fromControl makes an error of a call to control fit to be shown.
func (g *Gateway) fromControl(err error) error {
	err = client.Error(err)
	if carrel.ReasonOf(err) == client.ReasonUnreachable {
		return errControlAway(err)
	}
	return err
}

func errControlAway(cause error) *carrel.Error {
	return errUnavailable("control_unavailable", cause, "the control plane does not answer at the moment; running boxes go on. Try again in a few seconds.")
}
