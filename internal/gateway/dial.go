package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// Headers of the CONNECT request to a node's proxy.
const (
	headerTarget = "Carrel-Target"
	headerTicket = "Carrel-Ticket"
	headerGrant  = "Carrel-Grant" // with headerEpoch
	headerEpoch  = "Carrel-Epoch"
	// headerActivity says what a user did, at /activity of a proxy.
	headerActivity = "Carrel-Activity"
)

const (
	dialTimeout   = 10 * time.Second // for one CONNECT to be answered
	routePatience = 3 * time.Second  // for a route that control is about to tell
)

// Dial is the one data-plane primitive: a connection to a target in a box ("agent", "tcp/HOST:PORT",
// "unix/PATH") with a ticket. It needs the box's route and the ticket alone, not control. ctx
// bounds the dial, not the connection. Errors are *carrel.Error: CodeUnauthorized for a ticket that is
// not good (any more), CodeDenied for one of another box, CodePrecondition "box_not_running",
// CodeUnavailable when node or box do not answer.
//
// The connection is one stream of a shared one: it has CloseWrite, and knows no deadlines
// (os.ErrNoDeadline); close it to end a Read or Write.
func (g *Gateway) Dial(ctx context.Context, box carrel.BoxID, target, ticket string) (net.Conn, error) {
	t, err := g.verifier.Verify(ticket, g.now())
	if err != nil {
		return nil, err
	}
	if t.Box != box {
		return nil, errOtherBox(box)
	}
	p := pass{Ticket: t, header: headerTicket, proof: ticket}
	if err := g.grants.good(p); err != nil {
		return nil, err
	}
	return g.reach(ctx, p, target)
}

// reach is Dial for a pass.
func (g *Gateway) reach(ctx context.Context, p pass, target string) (net.Conn, error) {
	conn, err := g.dial(ctx, p, target)
	g.metrics.dialed(err)
	return conn, err
}

func errOtherBox(box carrel.BoxID) error {
	return carrel.Errorf(carrel.CodeDenied, "ticket_of_another_box", "this ticket is not for box %s; get one for it", box)
}

func (g *Gateway) dial(ctx context.Context, p pass, target string) (net.Conn, error) {
	r, err := g.routes.find(ctx, p.Box, p.Epoch, routePatience)
	if err != nil {
		return nil, err
	}
	conn, err := g.connect(ctx, r, p, target)
	if !errors.Is(err, errRouteStale) {
		return conn, err
	}
	// The node knows better than the route: look once whether control does too by now.
	if !g.routes.changedFrom(ctx, r, routePatience) {
		return nil, errUnavailable("route_stale", err, "box %s is being moved or has just ended; try again in a moment", p.Box)
	}
	if r, err = g.routes.find(ctx, p.Box, p.Epoch, routePatience); err != nil {
		return nil, err
	}
	conn, err = g.connect(ctx, r, p, target)
	if errors.Is(err, errRouteStale) {
		return nil, errUnavailable("route_stale", err, "box %s is being moved or has just ended; try again in a moment", p.Box)
	}
	return conn, err
}

// errRouteStale: the proxy has no such run (any more).
var errRouteStale = errors.New("the route is stale")

// connect opens a tunnel through the proxy that the route names.
func (g *Gateway) connect(ctx context.Context, r route, p pass, target string) (net.Conn, error) {
	if g.revoked.has(r.Node) {
		return nil, errNodeRemoved(r)
	}
	// The stream outlives this call: its own context ends with the connection.
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	dialCtx, stopTimer := context.WithTimeout(ctx, dialTimeout)
	defer stopTimer()
	stop := context.AfterFunc(dialCtx, cancel)
	established := false
	defer func() {
		if !established {
			cancel()
		}
	}()

	in, out := io.Pipe()
	header := p.headers()
	header.Set(headerTarget, target)
	req := (&http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Scheme: "https", Host: r.Address},
		Host:   string(r.Box),
		Header: header,
		Body:   in,
	}).WithContext(streamCtx)
	resp, err := g.proxies.get(proxyKey{r.Node, r.Address}).RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errUnavailable("node_unreachable", fmt.Errorf("connect to proxy of node %s at %s: %w", r.Node, r.Address, err),
			"the node of box %s does not answer; if it is restarting, try again in a moment", r.Box)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, proxyRefusal(r.Box, resp)
	}
	if !stop() {
		return nil, errUnavailable("box_silent", dialCtx.Err(), "box %s did not answer in time; try again", r.Box)
	}
	established = true
	g.metrics.tunnels.Inc()
	return &tunnel{box: r.Box, target: target, body: resp.Body, out: out, close: sync.OnceFunc(func() {
		cancel()
		_ = out.CloseWithError(net.ErrClosed)
		_ = resp.Body.Close()
		g.metrics.tunnels.Dec()
	})}, nil
}

// proxyRefusal reads why a proxy did not open a tunnel.
func proxyRefusal(box carrel.BoxID, resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	var said struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &said) != nil {
		said.Message = string(bytes.TrimSpace(body))
	}
	cause := fmt.Errorf("proxy answered %d %s: %s", resp.StatusCode, said.Reason, clip(said.Message))
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		e := carrel.Errorf(carrel.CodeUnauthorized, client.ReasonTicketExpired, "the node of box %s does not accept the ticket (any more); get a new one and try again", box)
		e.Cause = cause
		return e
	case http.StatusForbidden:
		e := carrel.Errorf(carrel.CodeDenied, "ticket_refused", "the ticket does not allow this in box %s", box)
		e.Cause = cause
		return e
	case http.StatusNotFound, http.StatusConflict, http.StatusGone, http.StatusMisdirectedRequest, http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", errRouteStale, cause)
	case http.StatusBadRequest:
		e := carrel.Errorf(carrel.CodeInvalid, "bad_target", "the target in box %s is not usable", box)
		e.Cause = cause
		return e
	}
	if said.Reason == reasonTargetRefused {
		return &carrel.Error{Code: carrel.CodeUnavailable, Reason: reasonTargetRefused, Cause: cause, Message: fmt.Sprintf("box %s cannot connect to that: %s", box, clip(said.Message))}
	}
	return errUnavailable("box_silent", cause, "box %s does not answer; if it is starting, try again in a moment", box)
}

// tunnel is one CONNECT stream as a net.Conn.
type tunnel struct {
	box    carrel.BoxID
	target string
	body   io.ReadCloser
	out    *io.PipeWriter
	close  func()
}

// Read never gives an error of the HTTP/2 connection as it is: one that is about our stream would be taken for one
// of its own streams by the HTTP/2 connection to the agent that reads here, which would then read again for ever.
func (t *tunnel) Read(p []byte) (int, error) {
	n, err := t.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read from box %s: %w", t.box, err)
	}
	return n, err
}

func (t *tunnel) Write(p []byte) (int, error) {
	n, err := t.out.Write(p)
	if err != nil {
		err = fmt.Errorf("write to box %s: %w", t.box, err)
	}
	return n, err
}

// CloseWrite tells the other end that nothing more comes; what it sends can still be read.
func (t *tunnel) CloseWrite() error { return t.out.Close() }

func (t *tunnel) Close() error {
	t.close()
	return nil
}

func (t *tunnel) LocalAddr() net.Addr              { return tunnelAddr("gateway") }
func (t *tunnel) RemoteAddr() net.Addr             { return tunnelAddr(string(t.box) + "/" + t.target) }
func (t *tunnel) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (t *tunnel) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (t *tunnel) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type tunnelAddr string

func (a tunnelAddr) Network() string { return "carrel" }
func (a tunnelAddr) String() string  { return string(a) }

// proxyKey names a node's proxy.
type proxyKey struct {
	node    carrel.NodeID
	address string
}

// proxyPool has the connections to proxies: one transport for each, with a few connections of many
// tunnels.
type proxyPool struct {
	identity *identityStore

	mu         sync.Mutex // guards what follows
	transports map[proxyKey]*http.Transport
	conns      map[*nodeConn]carrel.NodeID // open ones
}

func newProxyPool(identity *identityStore) *proxyPool {
	return &proxyPool{identity: identity, transports: map[proxyKey]*http.Transport{}, conns: map[*nodeConn]carrel.NodeID{}}
}

func (p *proxyPool) get(key proxyKey) *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.transports[key]
	if t == nil {
		t = p.identity.transport(p.dialNode(key.node), auth.PeerProxy, string(key.node))
		p.transports[key] = t
	}
	return t
}

// tidy forgets the proxies that no route leads to. Their open tunnels go on.
func (p *proxyPool) tidy(wanted map[proxyKey]bool) {
	p.mu.Lock()
	var unwanted []*http.Transport
	for key, t := range p.transports {
		if !wanted[key] {
			unwanted = append(unwanted, t)
			delete(p.transports, key)
		}
	}
	p.mu.Unlock()
	closeIdle(unwanted)
}

func (p *proxyPool) close() {
	p.mu.Lock()
	all := slices.Collect(maps.Values(p.transports))
	p.mu.Unlock()
	closeIdle(all)
}

// closeIdle closes connections, each of which takes itself off the pool's list: the pool must not be locked.
func closeIdle(transports []*http.Transport) {
	for _, t := range transports {
		t.CloseIdleConnections()
	}
}
