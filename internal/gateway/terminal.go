package gateway

import (
	"context"
	"errors"
	"net/http"
	"sync"

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
	// maxActs is how many signals and sizes of one socket are under way at once.
	maxActs = 8
)

// errSocketClosed is what those get who write to a socket that has ended.
var errSocketClosed = errors.New("the socket is closed")

// serveTerminal serves GET /v1/boxes/{box}/terminal until the client closes it, its right ends or it stalls. An error is for
// the answer; nil: there has been one.
func (g *Gateway) serveTerminal(w http.ResponseWriter, r *http.Request, box string) error {
	if !isSocket(r) {
		_, err := g.socketPass(r, box, auth.ScopeView)
		return err
	}
	p, err := g.viewerPass(r, box)
	if err != nil {
		return err
	}
	conn := acceptSocket(promptly{w}, r, maxTerminalFrame, terminalProtocol)
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
	return serveTerminals(ctx, cancel, g, conn, p, agent)
}

// viewerPass is the pass of a socket or stream on which those who may type do and others look; ?view asks to look only. A ticket of
// an earlier run, or of a box that does not run, is told before there is an answer.
func (g *Gateway) viewerPass(r *http.Request, box string) (pass, error) {
	view := r.URL.Query().Has("view")
	p, err := g.streamPass(r, box, auth.ScopeExec)
	if view || carrel.CodeOf(err) == carrel.CodeDenied {
		p, err = g.streamPass(r, box, auth.ScopeView)
	}
	if err != nil {
		return pass{}, err
	}
	if view {
		p.Scopes = []string{auth.ScopeView}
	}
	_, err = g.routes.find(r.Context(), p.Box, p.Epoch, routePatience)
	return p, err
}

// serveTerminals carries terminals alone over a WebSocket. It always answers nil.
func serveTerminals(ctx context.Context, cancel context.CancelCauseFunc, g *Gateway, conn *websocket.Conn, p pass, agent agentv1connect.ProcessServiceClient) error {
	keepAlive, err := proto.Marshal(&carrelv1.TerminalEvent{Event: &carrelv1.TerminalEvent_KeepAlive{KeepAlive: true}})
	if err != nil {
		return err
	}
	s := newSocket(ctx, conn, websocket.MessageBinary, keepAlive)
	t := &terminals{
		g: g, pass: p, agent: agent, socket: s,
		encode: func(event *carrelv1.TerminalEvent) ([]byte, error) { return proto.Marshal(event) },
	}
	s.serve(cancel, func(data []byte) error {
		request := &carrelv1.TerminalRequest{}
		if err := proto.Unmarshal(data, request); err != nil {
			return carrel.Errorf(carrel.CodeInvalid, "bad_frame", "a frame is not a carrel.v1.TerminalRequest")
		}
		return t.take(request)
	})
	return nil
}

// terminals are the processes that one socket looks at.
type terminals struct {
	g      *Gateway
	pass   pass
	agent  agentv1connect.ProcessServiceClient
	socket *socket
	encode func(*carrelv1.TerminalEvent) ([]byte, error)
	// ended is told when the run of the box has ended; nil: nobody asks.
	ended func(error)

	mu       sync.Mutex // guards what follows
	channels map[uint32]*channel
	last     uint32 // the highest channel so far
	acts     int    // signals and sizes under way
}

// take does what a request asks for. Nothing that a box can hold up is waited for. An error ends the socket.
func (t *terminals) take(request *carrelv1.TerminalRequest) error {
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
func (t *terminals) open(number uint32, start *carrelv1.StartProcessRequest, attach *carrelv1.AttachProcessRequest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if number <= t.last {
		return errChannelUsed(number)
	}
	t.last = number
	if len(t.channels) >= maxChannels {
		return errTooManyChannels()
	}
	leave, room := t.g.streams.take(t.pass.holder(), 1)
	if !room {
		t.g.noRoom(t.pass)
	}
	c := newChannel(t, number)
	if t.channels == nil {
		t.channels = map[uint32]*channel{}
	}
	t.channels[number] = c
	t.socket.parts.Go(func() {
		if room {
			c.run(start, attach)
		} else {
			c.refuse(errTooManyStreams(t.pass.Box))
		}
		leave()
		t.mu.Lock()
		delete(t.channels, number)
		t.mu.Unlock()
	})
	return nil
}

func errChannelUsed(number uint32) error {
	return carrel.Errorf(carrel.CodeInvalid, "bad_channel", "channel %d was used; channels are numbered from 1 on, rising", number)
}

func errTooManyChannels() error {
	return carrel.Errorf(carrel.CodeInvalid, "too_many_channels", "a socket has at most %d channels; open another one", maxChannels)
}

// lost tells that a channel could not go on.
func (t *terminals) lost(err error) {
	if t.ended != nil && runEnded(err) {
		t.ended(err)
	}
}

// begin counts a signal or size as under way, unless there are too many.
func (t *terminals) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.acts >= maxActs {
		return false
	}
	t.acts++
	return true
}

func (t *terminals) done() {
	t.mu.Lock()
	t.acts--
	t.mu.Unlock()
}
