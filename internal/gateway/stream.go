package gateway

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	streamProtocol     = "carrel.stream.v1"
	streamJSONProtocol = "carrel.stream.v1.json"
	// maxStreamFrame is the largest frame from a client, in bytes: the input of a terminal, as base64 too.
	maxStreamFrame = 512 << 10
)

// sessionPath is what of a box is found under the id of its run too, beside the RPCs that say so themselves.
var sessionPath = regexp.MustCompile(`(?s)^/v1/sessions/([^/]+)/(fs(/.*)?|stream)$`)

// underBox gives a request at sessionPath as the one for the run's box.
func (g *Gateway) underBox(r *http.Request) (*http.Request, error) {
	session := sessionPath.FindStringSubmatch(r.URL.Path)[1]
	header, err := streamCredentials(r)
	if err != nil {
		return nil, err
	}
	box, err := g.boxOfSession(r.Context(), header, session, r.URL.Query().Get("org"))
	if err != nil {
		return nil, err
	}
	from, to := "/v1/sessions/"+session, "/v1/boxes/"+box
	target := *r.URL
	target.Path = to + strings.TrimPrefix(target.Path, from)
	if target.RawPath != "" {
		target.RawPath = to + strings.TrimPrefix(target.RawPath, from)
	}
	r = r.WithContext(r.Context())
	r.URL = &target
	return r, nil
}

// serveStream serves GET /v1/boxes/{box}/stream: a WebSocket, or notebook events as server-sent events. An error is for the answer; nil: there
// has been one.
func (g *Gateway) serveStream(w http.ResponseWriter, r *http.Request, box string) error {
	if !isSocket(r) {
		return g.serveEvents(w, r, box)
	}
	p, err := g.viewerPass(r, box)
	if err != nil {
		return err
	}
	conn := acceptSocket(promptly{w}, r, maxStreamFrame, streamProtocol, streamJSONProtocol)
	if conn == nil {
		return nil
	}
	if conn.Subprotocol() == "" {
		closeSocket(conn, carrel.Errorf(carrel.CodeInvalid, "no_subprotocol", "offer the subprotocol %s or %s", streamProtocol, streamJSONProtocol))
		return nil
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer g.guard(p, cancel)()
	defer g.session(p)()
	agent, done := g.agents.get(p)
	defer done()
	g.metrics.streamSockets.WithLabelValues("websocket").Inc()
	defer g.metrics.streamSockets.WithLabelValues("websocket").Dec()
	return serveChannels(ctx, cancel, g, conn, p, agent, g.ports.origin(r))
}

// stream is a WebSocket that carries everything of a box that a page shows.
type stream struct {
	g         *Gateway
	pass      pass
	agent     *agentConn
	socket    *socket
	terminals *terminals
	cancel    context.CancelCauseFunc // ends the socket
	origin    *url.URL                // of the page, by which ports have URLs

	mu      sync.Mutex // guards what follows
	watches map[uint32]context.CancelFunc
	last    uint32 // the highest channel so far
}

// serveChannels carries a stream over a WebSocket. It always answers nil.
func serveChannels(ctx context.Context, cancel context.CancelCauseFunc, g *Gateway, conn *websocket.Conn, p pass, agent *agentConn, origin *url.URL) error {
	st := &stream{g: g, pass: p, agent: agent, cancel: cancel, origin: origin, watches: map[uint32]context.CancelFunc{}}
	kind := websocket.MessageBinary
	if conn.Subprotocol() == streamJSONProtocol {
		kind = websocket.MessageText
	}
	keepAlive, err := encodeStream(kind, &carrelv1.StreamEvent{Event: &carrelv1.StreamEvent_KeepAlive{KeepAlive: true}})
	if err != nil {
		return err
	}
	st.socket = newSocket(ctx, conn, kind, keepAlive)
	st.terminals = &terminals{
		g: g, pass: p, agent: agent, socket: st.socket, ended: cancel,
		encode: func(event *carrelv1.TerminalEvent) ([]byte, error) {
			return encodeStream(kind, &carrelv1.StreamEvent{Event: &carrelv1.StreamEvent_Terminal{Terminal: event}})
		},
	}
	st.socket.serve(cancel, st.frame)
	return nil
}

func encodeStream(kind websocket.MessageType, event *carrelv1.StreamEvent) ([]byte, error) {
	if kind == websocket.MessageText {
		return protojson.Marshal(event)
	}
	return proto.Marshal(event)
}

// frame takes a frame of the client. An error ends the socket.
func (st *stream) frame(data []byte) error {
	request := &carrelv1.StreamRequest{}
	var err error
	if st.socket.kind == websocket.MessageText {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, request)
	} else {
		err = proto.Unmarshal(data, request)
	}
	if err != nil {
		return carrel.Errorf(carrel.CodeInvalid, "bad_frame", "a frame is not a carrel.v1.StreamRequest")
	}
	if r := request.GetTerminal(); r != nil {
		return st.terminals.take(r)
	}
	number := request.GetChannel()
	switch r := request.GetRequest().(type) {
	case *carrelv1.StreamRequest_Notebooks:
		return st.open(number, func(w *watch) error { return w.notebooks(r.Notebooks) })
	case *carrelv1.StreamRequest_Files:
		return st.open(number, func(w *watch) error { return w.files(r.Files) })
	case *carrelv1.StreamRequest_Usage:
		return st.open(number, func(w *watch) error { return w.usage(r.Usage) })
	case *carrelv1.StreamRequest_Close:
		st.mu.Lock()
		stop, last := st.watches[number], st.last
		st.mu.Unlock()
		if stop != nil {
			stop()
		} else if number == 0 || number > last {
			return carrel.Errorf(carrel.CodeInvalid, "bad_channel", "there is no channel %d", number)
		}
		return nil
	}
	// A page that is newer than this gateway: the rest of it works.
	return st.open(number, func(*watch) error {
		return carrel.Errorf(carrel.CodeInvalid, "unknown_request", "this gateway does not know what channel %d is asked for; load the page again when the gateway has been updated", number)
	})
}

// open begins a channel, which ends with what run answers.
func (st *stream) open(number uint32, run func(*watch) error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if number <= st.last {
		return errChannelUsed(number)
	}
	st.last = number
	if len(st.watches) >= maxChannels {
		return errTooManyChannels()
	}
	leave, room := st.g.streams.take(st.pass.holder(), 1)
	if !room {
		st.g.noRoom(st.pass)
		run = func(*watch) error { return errTooManyStreams(st.pass.Box) }
	}
	ctx, stop := context.WithCancel(st.socket.ctx)
	st.watches[number] = stop
	w := &watch{stream: st, number: number, ctx: ctx, lane: st.socket.out.lane(false)}
	st.socket.parts.Go(func() {
		defer leave()
		defer stop()
		if err := run(w); err != nil && ctx.Err() == nil {
			w.fail(err)
		}
		st.mu.Lock()
		delete(st.watches, number)
		st.mu.Unlock()
	})
	return nil
}

// watch is one channel that is no terminal.
type watch struct {
	stream *stream
	number uint32
	ctx    context.Context
	lane   *lane
}

// send queues an event for the client, as soon as there is room: what the box has to say meanwhile waits in the box.
func (w *watch) send(event *carrelv1.StreamEvent, wrote func()) error {
	event.Channel = w.number
	data, err := encodeStream(w.stream.socket.kind, event)
	if err != nil {
		return err
	}
	return w.lane.put(w.ctx, outFrame{data: data, wrote: wrote})
}

// fail tells how the channel ended. With the run of the box everything ends.
func (w *watch) fail(err error) {
	e := own(w.ctx, w.stream.g.log, "", err)
	_ = w.send(&carrelv1.StreamEvent{Event: &carrelv1.StreamEvent_Error{
		Error: &carrelv1.TerminalError{Code: connect.Code(e.Code).String(), Reason: e.Reason, Message: e.Message},
	}}, nil)
	if runEnded(err) {
		w.stream.cancel(err)
	}
}

// notebooks passes the events of notebooks on.
func (w *watch) notebooks(request *carrelv1.WatchNotebooksRequest) error {
	st := w.stream
	if st.agent.clock.stale(st.g.now()) {
		st.socket.parts.Go(func() {
			ctx, cancel := context.WithTimeout(w.ctx, maxClockTrip)
			defer cancel()
			_, _ = st.agent.usage(ctx, st.g.now) // an agent that does not tell has a clock like ours
		})
	}
	return newNotebookWatch(st.g, st.pass, st.agent, request).follow(w.ctx, func(event *carrelv1.NotebookEvent, wrote func()) error {
		if event.GetKeepAlive() {
			return nil // the socket has its own
		}
		return w.send(&carrelv1.StreamEvent{Event: &carrelv1.StreamEvent_Notebook{Notebook: event}}, wrote)
	})
}
