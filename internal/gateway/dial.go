package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/tunnel"
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
// The connection has CloseWrite. The box's end of data is the end of both directions.
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
	dialCtx, stopTimer := context.WithTimeout(ctx, dialTimeout)
	defer stopTimer()
	header := p.headers()
	header.Set(headerTarget, target)
	conn, err := g.proxies.open(dialCtx, proxyKey{r.Node, r.Address}, string(r.Box), header)
	if refused := new(tunnel.RefusedError); errors.As(err, &refused) {
		return nil, proxyRefusal(r.Box, refused)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case dialCtx.Err() != nil:
		return nil, errUnavailable("box_silent", err, "box %s did not answer in time; try again", r.Box)
	default:
		return nil, errUnavailable("node_unreachable", fmt.Errorf("connect to proxy of node %s at %s: %w", r.Node, r.Address, err),
			"the node of box %s does not answer; if it is restarting, try again in a moment", r.Box)
	}
	g.metrics.tunnels.Inc()
	return &boxConn{Conn: conn, box: r.Box, target: target, closed: sync.OnceFunc(g.metrics.tunnels.Dec)}, nil
}

// proxyRefusal reads why a proxy did not open a tunnel.
func proxyRefusal(box carrel.BoxID, refused *tunnel.RefusedError) error {
	var said struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	if json.Unmarshal(refused.Body, &said) != nil {
		said.Message = string(bytes.TrimSpace(refused.Body))
	}
	cause := fmt.Errorf("proxy answered %d %s: %s", refused.Status, said.Reason, clip(said.Message))
	switch refused.Status {
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

// boxConn is a connection into a box.
type boxConn struct {
	*tunnel.Conn
	box    carrel.BoxID
	target string
	closed func()
}

// Read is part of net.Conn.
func (c *boxConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read from box %s: %w", c.box, err)
	}
	return n, err
}

// Write is part of net.Conn.
func (c *boxConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		err = fmt.Errorf("write to box %s: %w", c.box, err)
	}
	return n, err
}

// Close ends both directions; what was not read and written until now may be lost. Who wants it whole says CloseWrite and reads to the end first.
func (c *boxConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// LocalAddr and RemoteAddr are part of net.Conn.
func (c *boxConn) LocalAddr() net.Addr  { return boxAddr("gateway") }
func (c *boxConn) RemoteAddr() net.Addr { return boxAddr(string(c.box) + "/" + c.target) }

type boxAddr string

// Network and String are part of net.Addr.
func (a boxAddr) Network() string { return "carrel" }
func (a boxAddr) String() string  { return string(a) }

// proxyKey names a node's proxy.
type proxyKey struct {
	node    carrel.NodeID
	address string
}

// proxyPool has the connections to proxies: one for each stream into a box, and a few that are kept for calls.
type proxyPool struct {
	identity *identityStore

	mu    sync.Mutex // guards what follows
	known map[proxyKey]*proxyLink
	conns map[*nodeConn]carrel.NodeID // open ones
}

// proxyLink is how one proxy is reached.
type proxyLink struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	tls   *tls.Config
	calls *http.Transport
}

func newProxyPool(identity *identityStore) *proxyPool {
	return &proxyPool{identity: identity, known: map[proxyKey]*proxyLink{}, conns: map[*nodeConn]carrel.NodeID{}}
}

func (p *proxyPool) get(key proxyKey) *proxyLink {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.known[key]
	if l == nil {
		l = &proxyLink{dial: p.dialNode(key.node), tls: p.identity.tlsConfig(auth.PeerProxy, string(key.node))}
		l.tls.NextProtos, l.tls.DynamicRecordSizingDisabled = []string{tunnel.Protocol}, true
		l.calls = &http.Transport{
			DialContext: l.dial, TLSClientConfig: l.tls.Clone(), TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: agentIdle,
			MaxIdleConnsPerHost: 4, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
		}
		p.known[key] = l
	}
	return l
}

// open asks a proxy for a stream into a box. A *tunnel.RefusedError is its answer when it is not yes.
func (p *proxyPool) open(ctx context.Context, key proxyKey, box string, header http.Header) (*tunnel.Conn, error) {
	l := p.get(key)
	raw, err := l.dial(ctx, "tcp", key.address)
	if err != nil {
		return nil, err
	}
	return tunnel.Open(ctx, raw, l.tls, box, header)
}

// tidy forgets the proxies that no route leads to. Open streams go on.
func (p *proxyPool) tidy(wanted map[proxyKey]bool) {
	p.mu.Lock()
	var unwanted []*proxyLink
	for key, l := range p.known {
		if !wanted[key] {
			unwanted = append(unwanted, l)
			delete(p.known, key)
		}
	}
	p.mu.Unlock()
	closeIdle(unwanted)
}

func (p *proxyPool) close() {
	p.mu.Lock()
	all := slices.Collect(maps.Values(p.known))
	p.mu.Unlock()
	closeIdle(all)
}

// closeIdle closes connections, each of which takes itself off the pool's list: the pool must not be locked.
func closeIdle(links []*proxyLink) {
	for _, l := range links {
		l.calls.CloseIdleConnections()
	}
}
