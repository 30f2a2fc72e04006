package gateway

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

const (
	// clockFor is how long what is known of a box's clock is used.
	clockFor = time.Minute
	// maxClockTrip is the longest round trip that says enough of a box's clock.
	maxClockTrip = time.Second
)

// notebookWatch is one viewer's way through the journal of a box. Nothing of it is kept here but the cursor: the agent reads the
// journal at the viewer's pace, and the stream from it is asked for no faster than the viewer takes it.
type notebookWatch struct {
	g       *Gateway
	pass    pass
	agent   *agentConn
	request *carrelv1.WatchNotebooksRequest // its After is the cursor of the last event that was given
	live    bool                            // the viewer has been told that everything there was has been sent
	now     bool                            // the stream of this moment has caught up
}

func newNotebookWatch(g *Gateway, p pass, agent *agentConn, request *carrelv1.WatchNotebooksRequest) *notebookWatch {
	return &notebookWatch{g: g, pass: p, agent: agent, request: bare(request)}
}

// follow gives every event after the cursor to give, in order and each once, until ctx ends, give fails or the box has no more to say. A connection
// to the box that breaks is made again and goes on behind the last event. wrote is to be called when a viewer has the event; it may be nil.
func (w *notebookWatch) follow(ctx context.Context, give func(event *carrelv1.NotebookEvent, wrote func()) error) error {
	again := newRetry(w.g, w.pass)
	for {
		progress, given, err := w.connection(ctx, give)
		if given != nil {
			return given
		}
		if err := again.wait(ctx, err, progress); err != nil {
			return err
		}
		if w.request.After == "" && w.live {
			// Who asked for what comes from now on cannot be given what came meanwhile.
			if err := give(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Gap{Gap: true}}, nil); err != nil {
				return err
			}
		}
	}
}

// connection is one stream from the agent. failed is an error of give, err that of the stream.
func (w *notebookWatch) connection(ctx context.Context, give func(*carrelv1.NotebookEvent, func()) error) (progress bool, failed, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.now = false
	stream, err := w.agent.notebooks.WatchNotebooks(ctx, connect.NewRequest(w.request))
	if err != nil {
		return false, nil, fromAgent(ctx, w.pass.Box, err)
	}
	defer func() {
		cancel() // first: Close would else read what is still to come
		_ = stream.Close()
	}()
	for stream.Receive() {
		event := stream.Msg()
		wrote, pass := w.see(event)
		progress = progress || event.GetCursor() != ""
		if !pass {
			continue
		}
		if err := give(event, wrote); err != nil {
			return progress, err, nil
		}
	}
	return progress, nil, streamEnd(ctx, w.pass.Box, stream.Err())
}

// see takes an event into account, and reports whether the viewer gets it.
func (w *notebookWatch) see(event *carrelv1.NotebookEvent) (wrote func(), pass bool) {
	if !cursorPattern.MatchString(event.GetCursor()) {
		event.Cursor = ""
	}
	if event.GetGap() {
		w.g.metrics.streamDropped.Add(float64(between(w.request.After, event.GetCursor())))
	}
	if event.GetCursor() != "" {
		w.request.After = event.GetCursor()
	}
	if event.GetLive() {
		w.now = true
		first := !w.live
		w.live = true
		return nil, first
	}
	if t := event.GetTime(); w.now && t != nil && !event.GetGap() && !event.GetKeepAlive() {
		return func() { w.g.metrics.streamLag.Observe(w.agent.lag(w.g.now(), t).Seconds()) }, true
	}
	return nil, true
}

// cursorPattern is what a cursor may be; one that a box makes otherwise is none, since cursors go into headers and lines.
var cursorPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// between is how many events a gap between two cursors has, at least one.
func between(after, next string) int64 {
	journal, from, ok := cutCursor(after)
	other, to, ok2 := cutCursor(next)
	if !ok || !ok2 || journal != other {
		return 1
	}
	return max(to-from, 1)
}

// cutCursor reads JOURNAL.SEQUENCE.
func cutCursor(cursor string) (journal string, sequence int64, ok bool) {
	at := strings.LastIndexByte(cursor, '.')
	if at < 0 {
		return "", 0, false
	}
	sequence, err := strconv.ParseInt(cursor[at+1:], 10, 64)
	return cursor[:at], sequence, err == nil
}

// clock is what is known of a box's clock.
type clock struct {
	mu     sync.Mutex    // guards what follows
	offset time.Duration // to be added to the box's time for the gateway's
	at     time.Time     // when that was measured; zero: never
}

// note takes a time that the agent told between two moments here: it was in the middle, give or take half the trip.
func (c *clock) note(sent, answered time.Time, told *timestamppb.Timestamp) {
	if told == nil || told.CheckValid() != nil || answered.Sub(sent) > maxClockTrip {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset, c.at = sent.Add(answered.Sub(sent)/2).Sub(told.AsTime()), answered
}

func (c *clock) stale(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at.IsZero() || now.Sub(c.at) > clockFor
}

// lag is how long ago something was at a time of the box's clock; never negative.
func (c *agentConn) lag(now time.Time, t *timestamppb.Timestamp) time.Duration {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	return max(now.Sub(t.AsTime().Add(c.clock.offset)), 0)
}

// usage asks what the box uses, and learns of its clock by the way.
func (c *agentConn) usage(ctx context.Context, now func() time.Time) (*carrelv1.BoxUsage, error) {
	sent := now()
	resp, err := c.notebooks.GetUsage(ctx, connect.NewRequest(&carrelv1.GetUsageRequest{}))
	if err != nil {
		return nil, err
	}
	c.clock.note(sent, now(), resp.Msg.GetTime())
	return resp.Msg, nil
}
