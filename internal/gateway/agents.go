package gateway

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	agentIdle = 2 * time.Minute
	// agentWindow is how much output of one stream may wait in the gateway for a slow viewer, in bytes.
	agentWindow = 512 << 10
	// bulkWindow is the same for a file's content, in bytes: enough for a fast copy over a path with some delay.
	bulkWindow = 4 << 20
	// maxAgentMessageBytes bounds one message of an agent.
	maxAgentMessageBytes = 4 << 20
)

// agentKey says who shares a connection to an agent: one principal with one set of rights in one run.
type agentKey struct {
	box    carrel.BoxID
	epoch  int64
	user   carrel.UserID
	scopes string
}

// agentConn is an HTTP/2 connection (or a few) to a box's agent through tunnels.
type agentConn struct {
	agentv1connect.ProcessServiceClient
	forwards  agentv1connect.ForwardServiceClient
	files     agentv1connect.FileServiceClient
	notebooks agentv1connect.NotebookServiceClient // its events too: they wait in the box, but for agentWindow of them
	transport *http.Transport
	bulk      *http.Transport // for files

	mu    sync.Mutex // guards what follows
	pass  pass       // the newest that came: tunnels are opened with it
	used  int        // calls under way
	since time.Time  // of the last call's end
	clock clock      // of the box
}

// agentPool keeps the connections to agents for the next call.
type agentPool struct {
	gateway *Gateway

	mu    sync.Mutex // guards conns
	conns map[agentKey]*agentConn
}

func newAgentPool(g *Gateway) *agentPool {
	return &agentPool{gateway: g, conns: map[agentKey]*agentConn{}}
}

// get answers with a connection for the holder of a pass; done is called after the call.
func (p *agentPool) get(t pass) (conn *agentConn, done func()) {
	key := agentKey{t.Box, t.Epoch, t.User, strings.Join(t.Scopes, " ")}
	p.mu.Lock()
	defer p.mu.Unlock()
	conn = p.conns[key]
	if conn == nil {
		conn = p.open(t.Box, t.User)
		p.conns[key] = conn
	}
	conn.mu.Lock()
	conn.pass = t
	conn.used++
	conn.mu.Unlock()
	return conn, func() {
		conn.mu.Lock()
		conn.used--
		conn.since = p.gateway.now()
		conn.mu.Unlock()
	}
}

// lasting gives what a connection is made again with for streams that are open: a ticket ends long before they do, and what the gateway knows of
// their user goes on (guard ends them when it does not).
func (p *agentPool) lasting(t pass) pass {
	if p.gateway.now().Before(t.Expires) {
		return t
	}
	scope := auth.ScopeExec
	if t.view() {
		scope = auth.ScopeView
	}
	if granted, err := p.gateway.passOf(t.User, t.Box, scope); err == nil && granted.Epoch == t.Epoch {
		return granted
	}
	return t
}

func (c *agentConn) closeIdle() {
	c.transport.CloseIdleConnections()
	c.bulk.CloseIdleConnections()
}

func (p *agentPool) open(box carrel.BoxID, user carrel.UserID) *agentConn {
	conn := &agentConn{}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	conn.transport = &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn.mu.Lock()
			newest := conn.pass
			conn.mu.Unlock()
			return p.gateway.reach(ctx, p.lasting(newest), "agent")
		},
		DisableCompression:     true,
		IdleConnTimeout:        agentIdle,
		MaxResponseHeaderBytes: 64 << 10,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: agentWindow,
			MaxReadFrameSize:          64 << 10,
			SendPingTimeout:           15 * time.Second,
			PingTimeout:               15 * time.Second,
		},
	}
	conn.bulk = conn.transport.Clone()
	conn.bulk.HTTP2.MaxReceiveBufferPerStream = bulkWindow
	noRedirects := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client := func(over *http.Transport, limit int64) *http.Client {
		return &http.Client{Transport: &meter{over, p.gateway, conn, limit}, CheckRedirect: noRedirects}
	}
	over, to := client(conn.transport, maxAgentMessageBytes), "http://"+string(box)
	limits := []connect.ClientOption{
		connect.WithReadMaxBytes(maxAgentMessageBytes),
		connect.WithAcceptCompression("gzip", nil, nil), // a box shall not be able to send a bomb
		connect.WithInterceptors(asUser(user)),
	}
	conn.ProcessServiceClient = agentv1connect.NewProcessServiceClient(over, to, limits...)
	conn.forwards = agentv1connect.NewForwardServiceClient(over, to, limits...)
	conn.notebooks = agentv1connect.NewNotebookServiceClient(client(conn.transport, maxNotebookMessage), to, append(limits, connect.WithReadMaxBytes(maxNotebookMessage), connect.WithCodec(limitedProto{}))...)
	conn.files = agentv1connect.NewFileServiceClient(client(conn.bulk, maxAgentMessageBytes), to, limits...)
	return conn
}

// asUser tells the agent with every call which user it is for.
type asUser carrel.UserID

// headerUser is what the agent calls it.
const headerUser = "Carrel-User"

func (u asUser) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		request.Header().Set(headerUser, string(u))
		return next(ctx, request)
	}
}

func (u asUser) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set(headerUser, string(u))
		return conn
	}
}

func (u asUser) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// outdate gives up the connections to runs of a box before epoch, and to that of epoch if it is gone.
// Calls under way end as their tunnels do.
func (p *agentPool) outdate(box carrel.BoxID, epoch int64, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, conn := range p.conns {
		if key.box == box && (key.epoch < epoch || gone && key.epoch == epoch) {
			conn.closeIdle()
			delete(p.conns, key)
		}
	}
}

func (p *agentPool) tidy(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, conn := range p.conns {
		conn.mu.Lock()
		idle := conn.used == 0 && now.Sub(conn.since) > agentIdle
		conn.mu.Unlock()
		if idle {
			conn.closeIdle()
			delete(p.conns, key)
		}
	}
}

func (p *agentPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		conn.closeIdle()
	}
}
