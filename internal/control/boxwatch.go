package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	// answerRoom is left of the client's own deadline, to say what was waited for in vain.
	answerRoom = 300 * time.Millisecond
	keepAlive  = 15 * time.Second
	// maxRemembered bounds how many boxes a watcher remembers having sent, to leave out repetitions.
	maxRemembered = 100_000
	// defaultWatchCheck is how often a watcher's token and roles are looked at again.
	defaultWatchCheck = 15 * time.Second
)

func (b boxService) WaitBox(ctx context.Context, req *connect.Request[carrelv1.WaitBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	m := req.Msg
	box, err := b.s.find(ctx, m.GetOrg(), m.GetId())
	if err != nil {
		return nil, err
	}
	var wanted []carrel.State
	for _, state := range m.GetStates() {
		s := stateFromProto(state)
		if s == "" {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_state", "%s is no state to wait for", state)
		}
		wanted = append(wanted, s)
	}
	timeout := carrel.DefaultWait
	if t := m.GetTimeout(); t != nil {
		if timeout = t.AsDuration(); !t.IsValid() || timeout < 0 || timeout > carrel.MaxWait {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_timeout", "the time-out must be from 0 to %s; ask again when it is over", carrel.MaxWait)
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline)-answerRoom)
	}
	sub := b.s.hub.subscribe(box.ID)
	defer b.s.hub.unsubscribe(sub)
	over := time.NewTimer(max(0, timeout))
	defer over.Stop()
	poll := time.NewTicker(watcherPoll)
	defer poll.Stop()
	for expired := false; ; {
		now, err := b.s.store.GetBox(ctx, scopeOf(ctx), box.ID)
		switch {
		case err == nil:
			box = now
			if done, err := answers(box, wanted, m.GetGeneration()); done || err != nil {
				if err != nil {
					return nil, err
				}
				return reply(boxProto(box))
			}
		case carrel.CodeOf(err) != carrel.CodeUnavailable:
			return nil, fmt.Errorf("wait for box: %w", seen(err, "box", m.GetId()))
		}
		if expired {
			return nil, waitedInVain(box, wanted, timeout)
		}
		select {
		case <-sub.c:
		case <-poll.C:
		case <-over.C:
			expired = true // and look once more
		case <-b.s.draining.Done():
			return nil, drainError()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// answers reports whether a waiter has its answer: one of the wanted states (none given: the one that the intent
// leads to), or that it will not come without a new request.
func answers(box *store.Box, wanted []carrel.State, generation int64) (bool, error) {
	if box.Generation < generation {
		return false, nil
	}
	state := carrel.StateOf(&box.BoxView)
	if len(wanted) == 0 {
		wanted = []carrel.State{goalOf(box.Intent)}
	}
	switch {
	case slices.Contains(wanted, state), state == carrel.StateIdle && slices.Contains(wanted, carrel.StateRunning):
		// A pause that was undone leaves it running: that is an answer only to who waits for running.
		return true, nil
	case state == carrel.StateFailed:
		return true, nil
	case state == carrel.StateDeleted:
		return false, wrongState(box, "box %s was deleted meanwhile", box.Name)
	case box.Observe() == carrel.ObservedUndone && !box.ByPolicy():
		return false, undone(box) // it takes a new request; the policy acts again by itself
	}
	return false, nil
}

func goalOf(intent carrel.Intent) carrel.State {
	switch intent {
	case carrel.IntentPaused:
		return carrel.StatePaused
	case carrel.IntentStopped:
		return carrel.StateStopped
	case carrel.IntentDeleted:
		return carrel.StateDeleted
	}
	return carrel.StateRunning
}

func undone(box *store.Box) error {
	f := shownFailure(&box.BoxView)
	e := wrongState(box, "box %s could not be %s and runs on: %s. Ask again when the cause is gone", box.Name, box.Intent, strings.TrimSuffix(f.Message, "."))
	e.Reason = f.Reason
	return e
}

func waitedInVain(box *store.Box, wanted []carrel.State, timeout time.Duration) error {
	state := carrel.StateOf(&box.BoxView)
	if len(wanted) == 0 {
		wanted = []carrel.State{goalOf(box.Intent)}
	}
	e := wrongState(box, "box %s is %s and not %s after %s", box.Name, state, wanted[0], max(0, timeout).Round(time.Millisecond))
	if f := shownFailure(&box.BoxView); f != nil {
		e.Message += ": " + f.Message
		e.Metadata["failure"] = f.Reason
	}
	e.Message += "; ask again to wait on"
	e.Code, e.Reason = carrel.CodeDeadline, "wait_timeout"
	return e
}

func (b boxService) WatchBoxes(ctx context.Context, req *connect.Request[carrelv1.WatchBoxesRequest], stream *connect.ServerStream[carrelv1.WatchBoxesResponse]) error {
	w, err := b.s.newWatch(ctx, req.Msg.GetOrg(), req.Msg.GetId())
	if err != nil {
		return err
	}
	defer w.leave()
	return w.run(ctx, 0, func(messages []*carrelv1.WatchBoxesResponse, _ int64) error {
		for _, m := range messages {
			if err := b.s.guardWrite(ctx, func() error { return stream.Send(m) }); err != nil {
				return fmt.Errorf("send to watcher: %w", err)
			}
		}
		return nil
	})
}

// watch is one watcher of one box, of an organisation, or of all that the caller may see.
type watch struct {
	s     *Server
	org   carrel.OrgID
	box   carrel.BoxID
	sent  map[carrel.BoxID]int64 // Touched of what was sent last
	leave func()                 // to be called at the end
}

func (s *Server) newWatch(ctx context.Context, org, ref string) (*watch, error) {
	w := &watch{s: s, sent: map[carrel.BoxID]int64{}}
	var err error
	if ref != "" {
		var box *store.Box
		if box, err = s.find(ctx, org, ref); err == nil {
			w.box = box.ID
		}
	} else {
		w.org, err = s.orgs(ctx, org)
	}
	if err != nil {
		return nil, err
	}
	w.leave, err = s.watches.enter(accessOf(ctx).principal.Actor())
	return w, err
}

// run sends what is there, a message that says so, and from then on what changed, until send fails or ctx
// ends. It reads only after the last message was taken, so a slow watcher gets fewer, newer states and nothing
// is queued for it. Mark is what a later watch can begin from; since 0 is the beginning. With no news for a
// while send gets no messages.
func (w *watch) run(ctx context.Context, since int64, send func(messages []*carrelv1.WatchBoxesResponse, mark int64) error) error {
	scope := scopeOf(ctx)
	sub := w.s.hub.subscribe(w.box, scope.Orgs...)
	defer w.s.hub.unsubscribe(sub)
	poll := time.NewTicker(watcherPoll)
	defer poll.Stop()
	mark, synced, lastSent, checked := since, false, time.Now(), time.Now()
	for {
		if time.Since(checked) >= w.s.watchCheck {
			if err := w.check(ctx); err != nil {
				return err
			}
			scope, checked = scopeOf(ctx), time.Now()
		}
		boxes, next, err := w.s.store.ChangedBoxes(ctx, scope, w.org, w.box, mark)
		if err != nil {
			return fmt.Errorf("watch boxes: %w", err)
		}
		mark = next
		var messages []*carrelv1.WatchBoxesResponse
		for _, box := range boxes {
			if touched, ok := w.sent[box.ID]; ok && touched == box.Touched {
				continue
			}
			if len(w.sent) >= maxRemembered {
				clear(w.sent)
			}
			w.sent[box.ID] = box.Touched
			messages = append(messages, &carrelv1.WatchBoxesResponse{Box: boxProto(box)})
		}
		if !synced {
			messages = append(messages, &carrelv1.WatchBoxesResponse{Synced: true})
			synced = true
		}
		if len(messages) > 0 || time.Since(lastSent) >= keepAlive {
			if err := send(messages, mark); err != nil {
				return err
			}
			lastSent = time.Now()
		}
		select {
		case <-sub.c:
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// check asks again whether the caller may watch what they watch.
func (w *watch) check(ctx context.Context) error {
	if err := w.s.again(ctx); err != nil {
		return err
	}
	if w.box != "" {
		_, err := w.s.find(ctx, "", string(w.box))
		return err
	}
	_, err := w.s.orgs(ctx, string(w.org))
	return err
}

// serveWatch is GET /v1/boxes:watch, WatchBoxes as server-sent events. Each "box" event has the JSON of
// a box; "synced" says that all that were there have been sent. Last-Event-ID goes on where an earlier stream ended.
func (s *Server) serveWatch(w http.ResponseWriter, r *http.Request) {
	const method = carrelv1connect.BoxServiceWatchBoxesProcedure
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	defer context.AfterFunc(s.draining, stop)()
	start := s.now()
	ctx, _, err := s.begin(ctx, method, r.Header)
	var watching *watch
	if err == nil {
		err = onlyParameters(r, "org", "id")
	}
	if err == nil {
		watching, err = s.newWatch(ctx, r.URL.Query().Get("org"), r.URL.Query().Get("id"))
	}
	if err != nil {
		s.note(ctx, method, start, err)
		s.writeHTTPError(ctx, w, method, err)
		return
	}
	defer watching.leave()
	// A mark that can't be read is as good as none: everything is sent again.
	since, err := strconv.ParseInt(r.Header.Get("Last-Event-ID"), 10, 64)
	if err != nil || since < 0 {
		since = 0
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	err = watching.run(ctx, since, func(messages []*carrelv1.WatchBoxesResponse, mark int64) error {
		if len(messages) == 0 {
			return s.guardWrite(ctx, func() error {
				_, err := fmt.Fprint(w, ": keep-alive\n\n")
				return errors.Join(err, out.Flush())
			})
		}
		for i, m := range messages {
			err := s.guardWrite(ctx, func() error {
				return errors.Join(writeEvent(w, m, mark, i == len(messages)-1), out.Flush())
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		// The status is sent already: say it in the stream.
		known := s.explain(ctx, method, err)
		if known != nil {
			text, _ := json.Marshal(map[string]any{"code": int(known.Code), "reason": known.Reason, "message": known.Message}) // three plain values
			_ = s.guardWrite(ctx, func() error {
				_, err := fmt.Fprintf(w, "event: error\ndata: %s\n\n", text)
				return err
			})
		}
	}
	s.note(ctx, method, start, err)
}

// onlyParameters refuses a query parameter that does not exist, as the transcoder does on other routes.
func onlyParameters(r *http.Request, known ...string) error {
	for name := range r.URL.Query() {
		if !slices.Contains(known, name) {
			e := carrel.Errorf(carrel.CodeInvalid, "unknown_field", "the request has a parameter %q, which does not exist; /openapi.json has those that do", cut(name, 200))
			e.Metadata = map[string]string{"field": cut(name, 200)}
			return e
		}
	}
	return nil
}

// writeEvent writes one event. Only the last of what was read together carries the mark: who goes on from it
// has seen everything before.
func writeEvent(w http.ResponseWriter, m *carrelv1.WatchBoxesResponse, mark int64, last bool) error {
	kind, data := "synced", []byte("{}")
	if m.GetBox() != nil {
		text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m.GetBox())
		if err != nil {
			return fmt.Errorf("encode box: %w", err)
		}
		kind, data = "box", text
	}
	if last {
		if _, err := fmt.Fprintf(w, "id: %d\n", mark); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, data)
	return err
}
