package gateway

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	terminalProtocol = "carrel.terminal.v1"
	// maxTerminalFrame is the largest frame from a client, in bytes, maxChannels how many processes one socket looks at.
	maxTerminalFrame = 256 << 10
	maxChannels      = 32
	// terminalQuiet is after how long without anything else a keep-alive is sent.
	terminalQuiet = 20 * time.Second
	// maxActs is how many signals and sizes of one socket are under way at once.
	maxActs = 8
)

// terminal is one WebSocket with its channels.
type terminal struct {
	g     *Gateway
	conn  *websocket.Conn
	pass  pass
	agent agentv1connect.ProcessServiceClient
	ctx   context.Context // ends with the socket
	acts  chan struct{}   // one value for each act under way
	parts sync.WaitGroup

	mu       sync.Mutex // guards what follows
	channels map[uint32]*channel
	last     uint32 // the highest channel so far
	quiet    *time.Timer
}

// serveTerminal serves GET /v1/boxes/{box}/terminal until the client closes it, its right ends or it stalls. An error is for
// the answer; nil: there has been one.
func (g *Gateway) serveTerminal(w http.ResponseWriter, r *http.Request, box string) error {
	// Who may type is asked for that; who may not, may look.
	p, err := g.socketPass(r, box, auth.ScopeExec)
	if r.URL.Query().Has("view") || carrel.CodeOf(err) == carrel.CodeDenied {
		p, err = g.socketPass(r, box, auth.ScopeView)
	}
	if err != nil {
		return err
	}
	if r.URL.Query().Has("view") {
		p.Scopes = []string{auth.ScopeView}
	}
	// A ticket of an earlier run, or of a box that does not run, is told before there is a socket.
	if _, err := g.routes.find(r.Context(), p.Box, p.Epoch, routePatience); err != nil {
		return err
	}
	conn := acceptSocket(w, r, terminalProtocol, maxTerminalFrame)
	if conn == nil {
		return nil
	}
	if conn.Subprotocol() != terminalProtocol {
		closeSocket(conn, carrel.Errorf(carrel.CodeInvalid, "no_subprotocol", "offer the subprotocol %s", terminalProtocol))
		return nil
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer g.guard(p, cancel)()
	defer g.session(p)()
	agent, done := g.agents.get(p)
	defer done()
	g.metrics.terminals.Inc()
	defer g.metrics.terminals.Dec()
	newTerminal(ctx, g, conn, p, agent).serve(cancel)
	return nil
}

func newTerminal(ctx context.Context, g *Gateway, conn *websocket.Conn, p pass, agent agentv1connect.ProcessServiceClient) *terminal {
	return &terminal{g: g, conn: conn, pass: p, agent: agent, ctx: ctx, acts: make(chan struct{}, maxActs), channels: map[uint32]*channel{}}
}

// serve returns when the socket is closed and everything that belongs to it has ended. cancel ends t.ctx.
func (t *terminal) serve(cancel context.CancelCauseFunc) {
	t.quiet = time.AfterFunc(terminalQuiet, t.keepAlive)
	closed := make(chan struct{})
	stop := context.AfterFunc(t.ctx, func() {
		defer close(closed)
		closeSocket(t.conn, context.Cause(t.ctx))
	})
	err := t.read()
	if stop() {
		cancel(nil)
		closeSocket(t.conn, err)
	} else {
		<-closed
	}
	t.mu.Lock()
	t.quiet.Stop()
	t.quiet = nil
	t.mu.Unlock()
	t.parts.Wait()
}

// read takes frames until the client closes the socket, which gives nil.
func (t *terminal) read() error {
	for {
		kind, data, err := t.conn.Read(context.Background()) // a context that ends would end the connection without a word
		if err != nil {
			if websocket.CloseStatus(err) != -1 {
				return nil
			}
			return err
		}
		if kind != websocket.MessageBinary {
			return carrel.Errorf(carrel.CodeInvalid, "bad_frame", "frames are binary, each one carrel.v1.TerminalRequest")
		}
		request := &carrelv1.TerminalRequest{}
		if err := proto.Unmarshal(data, request); err != nil {
			return carrel.Errorf(carrel.CodeInvalid, "bad_frame", "a frame is not a carrel.v1.TerminalRequest")
		}
		if err := t.take(request); err != nil {
			return err
		}
	}
}

// take does what a request asks for. Nothing that a box can hold up is waited for. An error ends the socket.
func (t *terminal) take(request *carrelv1.TerminalRequest) error {
	number := request.GetChannel()
	switch r := request.GetRequest().(type) {
	case *carrelv1.TerminalRequest_Open:
		return t.open(number, r.Open, nil)
	case *carrelv1.TerminalRequest_Attach:
		return t.open(number, nil, r.Attach)
	}
	t.mu.Lock()
	c := t.channels[number]
	known := number != 0 && number <= t.last
	t.mu.Unlock()
	if c == nil {
		if known { // it has just ended
			return nil
		}
		return carrel.Errorf(carrel.CodeInvalid, "bad_channel", "there is no channel %d: open or attach comes first", number)
	}
	switch r := request.GetRequest().(type) {
	case *carrelv1.TerminalRequest_Input:
		c.enter(r.Input)
	case *carrelv1.TerminalRequest_Resize:
		c.act(func(ctx context.Context, process string) error { return c.resize(ctx, process, r.Resize) })
	case *carrelv1.TerminalRequest_Signal:
		c.act(func(ctx context.Context, process string) error { return c.signal(ctx, process, r.Signal) })
	case *carrelv1.TerminalRequest_Close:
		c.stop()
	default:
		return carrel.Errorf(carrel.CodeInvalid, "bad_frame", "a request asks for nothing that is known")
	}
	return nil
}

// open begins a channel: of a new process, or of one that is there.
func (t *terminal) open(number uint32, start *carrelv1.StartProcessRequest, attach *carrelv1.AttachProcessRequest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if number <= t.last {
		return carrel.Errorf(carrel.CodeInvalid, "bad_channel", "channel %d was used; channels are numbered from 1 on, rising", number)
	}
	t.last = number
	if len(t.channels) >= maxChannels {
		return carrel.Errorf(carrel.CodeInvalid, "too_many_channels", "a socket has at most %d channels; open another one", maxChannels)
	}
	c := newChannel(t, number)
	t.channels[number] = c
	t.parts.Go(func() {
		c.run(start, attach)
		t.mu.Lock()
		delete(t.channels, number)
		t.mu.Unlock()
	})
	return nil
}

// send writes one event. A client that takes nothing for a minute is given up.
func (t *terminal) send(event *carrelv1.TerminalEvent) error {
	data, err := proto.Marshal(event)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), socketWrite)
	defer cancel()
	if err := t.conn.Write(ctx, websocket.MessageBinary, data); err != nil {
		return err
	}
	t.mu.Lock()
	if t.quiet != nil {
		t.quiet.Reset(terminalQuiet)
	}
	t.mu.Unlock()
	return nil
}

func (t *terminal) keepAlive() {
	_ = t.send(&carrelv1.TerminalEvent{Event: &carrelv1.TerminalEvent_KeepAlive{KeepAlive: true}})
}
