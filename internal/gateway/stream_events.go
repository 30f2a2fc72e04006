package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// eventsRetry is how long a browser waits before it asks again, in milliseconds.
const eventsRetry = "2000"

// serveEvents serves the notebook events of a box as server-sent events: after the cursor in the query or, when a browser comes back by itself, in
// Last-Event-ID. Each event's id is its cursor. The last one, of type "end", says why there are no more. An error is for the answer.
func (g *Gateway) serveEvents(w http.ResponseWriter, r *http.Request, box string) error {
	if r.Method != http.MethodGet || !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		return carrel.Errorf(carrel.CodeInvalid, "not_a_stream", "this is a WebSocket (over HTTP/1.1 with `Upgrade: websocket`) or server-sent events (`Accept: text/event-stream`)")
	}
	query := r.URL.Query()
	request := &carrelv1.WatchNotebooksRequest{
		After: cmp.Or(r.Header.Get("Last-Event-ID"), query.Get("after")), Path: query.Get("path"), Execution: query.Get("execution"),
	}
	if request.After != "" && !cursorPattern.MatchString(request.After) {
		return carrel.Errorf(carrel.CodeInvalid, "bad_cursor", "%q is no cursor; it is the id of the last event seen, or 0", clip(request.After))
	}
	p, err := g.streamPass(r, box, auth.ScopeView)
	if err != nil {
		return err
	}
	if _, err := g.routes.find(r.Context(), p.Box, p.Epoch, routePatience); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer g.guard(p, cancel)()
	defer g.session(p)()
	agent, done := g.agents.get(p)
	defer done()
	g.metrics.streamSockets.WithLabelValues("events").Inc()
	defer g.metrics.streamSockets.WithLabelValues("events").Dec()

	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies in between would hold events back
	h.Set("X-Content-Type-Options", "nosniff")
	events := &eventWriter{w: w, control: http.NewResponseController(w)}
	if events.write([]byte("retry: "+eventsRetry+"\n\n")) != nil {
		return nil
	}
	events.quiet = time.AfterFunc(socketQuiet, func() {
		if events.write([]byte(": keep-alive\n\n")) != nil {
			cancel(errSocketClosed)
		}
	})
	defer events.stop()
	err = newNotebookWatch(g, p, agent, request).follow(ctx, func(event *carrelv1.NotebookEvent, wrote func()) error {
		if event.GetKeepAlive() {
			return nil
		}
		if err := events.send(event); err != nil {
			return err
		}
		if wrote != nil {
			wrote()
		}
		return nil
	})
	if r.Context().Err() == nil && !errors.Is(err, errSocketClosed) {
		e := own(ctx, g.log, r.Header.Get(headerRequestID), err)
		text, _ := json.Marshal(map[string]string{"code": connect.Code(e.Code).String(), "reason": e.Reason, "message": e.Message}) // strings always can
		_ = events.write(append(append([]byte("event: end\ndata: "), text...), "\n\n"...))
	}
	return nil
}

// eventWriter writes server-sent events to one client, who is given up when nothing is taken for socketWrite.
type eventWriter struct {
	control *http.ResponseController
	quiet   *time.Timer

	mu   sync.Mutex // held while it is written; guards what follows
	w    http.ResponseWriter
	over bool
}

func (e *eventWriter) send(event *carrelv1.NotebookEvent) error {
	data, err := protojson.Marshal(event)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if cursor := event.GetCursor(); cursor != "" {
		text.WriteString("id: " + cursor + "\n")
	}
	text.WriteString("data: ")
	text.Write(data) // JSON has no line ends of its own
	text.WriteString("\n\n")
	return e.write(text.Bytes())
}

func (e *eventWriter) write(data []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return errSocketClosed
	}
	for len(data) > 0 {
		_ = e.control.SetWriteDeadline(time.Now().Add(socketWrite)) // where there are none the connection's own end is the end
		n, err := e.w.Write(data[:min(len(data), socketPiece)])
		if err != nil {
			e.over = true
			return errSocketClosed
		}
		data = data[n:]
	}
	if err := e.control.Flush(); err != nil {
		e.over = true
		return errSocketClosed
	}
	if e.quiet != nil {
		e.quiet.Reset(socketQuiet)
	}
	return nil
}

// stop ends the keep-alives; nothing is written any more when it returns.
func (e *eventWriter) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	e.quiet.Stop()
}
