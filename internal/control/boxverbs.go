package control

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// verbRequest is what the requests of all verbs have.
type verbRequest interface {
	proto.Message
	GetId() string
	GetOrg() string
	GetRequestId() string
}

// verb writes what the user wants now. A request that is repeated under the name that its box had then is about that box, also when it is
// deleted by now, or another box has the name.
func (b boxService) verb(ctx context.Context, m verbRequest, set store.SetIntent, check func(*store.Box) error) (*connect.Response[carrelv1.Operation], error) {
	op, err := b.setIntent(ctx, m, m.GetId(), set, check)
	if carrel.CodeOf(err) == carrel.CodeNotFound || carrel.ReasonOf(err) == "request_id_reused" {
		former, formerErr := b.formerTarget(ctx, m, set.Verb)
		if formerErr != nil {
			return nil, formerErr
		}
		if former != "" {
			op, err = b.setIntent(ctx, m, former, set, check)
		}
	}
	if err != nil {
		return nil, err
	}
	return reply(operationProto(op))
}

// formerTarget is the box that an earlier request with m's id was about, if m calls it by the name that it had then; else "".
func (b boxService) formerTarget(ctx context.Context, m verbRequest, verb carrel.Verb) (string, error) {
	if kind := carrel.IDKind(m.GetId()); m.GetRequestId() == "" || kind == 'b' || kind == 'r' {
		return "", nil
	}
	org, err := b.s.org(ctx, m.GetOrg())
	if err != nil {
		return "", err
	}
	op, err := b.s.store.FormerOperation(ctx, scopeOf(ctx), org, store.Request{ID: m.GetRequestId(), Method: string(verb)})
	if err != nil {
		return "", fmt.Errorf("%s box: %w", verb, err)
	}
	if op == nil || op.TargetName != m.GetId() {
		return "", nil
	}
	return op.TargetID, nil
}

// setIntent writes what the user wants of the box that ref leads to. The check runs on the locked box, so that what it finds still holds
// when the intent is written.
func (b boxService) setIntent(ctx context.Context, m verbRequest, ref string, set store.SetIntent, check func(*store.Box) error) (*store.Operation, error) {
	box, err := b.s.find(ctx, m.GetOrg(), ref)
	if err != nil {
		return nil, err
	}
	set.Box = box.ID
	if set.Request, err = requestOf(string(set.Verb), m.GetRequestId(), m, meant{"org": string(box.Org), "id": string(box.ID)}); err != nil {
		return nil, err
	}
	set.Check = func(box *store.Box) error {
		switch carrel.StateOf(&box.BoxView) {
		case carrel.StateDeleted:
			return carrel.NotFound("box", m.GetId())
		case carrel.StateDeleting:
			if set.Verb != carrel.VerbDelete {
				return wrongState(box, "box %s is being deleted; nothing can be done with it any more", box.Name)
			}
		}
		if check != nil {
			return check(box)
		}
		return nil
	}
	op, err := b.s.store.SetIntent(ctx, scopeOf(ctx), set)
	if err != nil {
		return nil, fmt.Errorf("%s box: %w", set.Verb, err)
	}
	return op, nil
}

func (b boxService) StartBox(ctx context.Context, req *connect.Request[carrelv1.StartBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return b.verb(ctx, req.Msg, store.SetIntent{Verb: carrel.VerbStart, Intent: carrel.IntentRunning, Cold: req.Msg.GetCold()}, func(box *store.Box) error {
		if req.Msg.GetCold() && box.Live() && box.Run.Phase == carrel.PhaseRunning && box.Intent == carrel.IntentRunning {
			return wrongState(box, "box %s is running; start it anew with: carrel restart %s", box.Name, box.Name)
		}
		return nil
	})
}

func (b boxService) StopBox(ctx context.Context, req *connect.Request[carrelv1.StopBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return b.verb(ctx, req.Msg, store.SetIntent{Verb: carrel.VerbStop, Intent: carrel.IntentStopped}, nil)
}

func (b boxService) PauseBox(ctx context.Context, req *connect.Request[carrelv1.PauseBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return b.verb(ctx, req.Msg, store.SetIntent{Verb: carrel.VerbPause, Intent: carrel.IntentPaused}, CheckPause)
}

// CheckPause allows a pause of what is running, is coming up, or is paused already.
func CheckPause(box *store.Box) error {
	state := carrel.StateOf(&box.BoxView)
	switch state {
	case carrel.StateStopped, carrel.StateStopping:
		return wrongState(box, "box %s is %s, and only a running box can be paused; start it with: carrel start %s", box.Name, word(state), box.Name)
	case carrel.StateFailed:
		return wrongState(box, "box %s has failed, and only a running box can be paused; see why with: carrel show %s", box.Name, box.Name)
	}
	switch box.Observe() {
	case carrel.ObservedStopped, carrel.ObservedCrashed, carrel.ObservedGone:
		// Between two runs there is no memory that a pause could keep.
		e := wrongState(box, "box %s is between two starts and has nothing in memory yet; ask again in a moment", box.Name)
		e.Code, e.Reason, e.RetryAfter = carrel.CodeUnavailable, "box_starting", time.Second
		return e
	}
	return nil
}

func (b boxService) ResumeBox(ctx context.Context, req *connect.Request[carrelv1.ResumeBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return b.verb(ctx, req.Msg, store.SetIntent{Verb: carrel.VerbResume, Intent: carrel.IntentRunning}, checkResume)
}

// checkResume allows a resume of what is paused, on its way there, or running already.
func checkResume(box *store.Box) error {
	state := carrel.StateOf(&box.BoxView)
	switch state {
	case carrel.StateStopped, carrel.StateStopping:
		return wrongState(box, "box %s is %s, not paused; start it with: carrel start %s", box.Name, word(state), box.Name)
	case carrel.StateFailed:
		if !box.StartsWithMemory() {
			return wrongState(box, "box %s has failed and has no memory to resume; see why with carrel show %s, and start it with: carrel start %s", box.Name, box.Name, box.Name)
		}
	}
	return nil
}

func (b boxService) RestartBox(ctx context.Context, req *connect.Request[carrelv1.RestartBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return b.verb(ctx, req.Msg, store.SetIntent{Verb: carrel.VerbRestart, Intent: carrel.IntentRunning, Restart: true}, nil)
}

func (b boxService) DeleteBox(ctx context.Context, req *connect.Request[carrelv1.DeleteBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return b.verb(ctx, req.Msg, store.SetIntent{Verb: carrel.VerbDelete, Intent: carrel.IntentDeleted, ETag: req.Msg.GetEtag()}, nil)
}

// wrongState is the answer to a verb that does not fit the state of the box.
func wrongState(box *store.Box, format string, args ...any) *carrel.Error {
	e := carrel.Errorf(carrel.CodePrecondition, "wrong_state", format, args...)
	e.Metadata = map[string]string{"box": string(box.ID), "name": box.Name, "state": string(carrel.StateOf(&box.BoxView))}
	return e
}

// word is a state in the middle of a sentence.
func word(s carrel.State) string {
	switch s {
	case carrel.StateProvisioning:
		return "starting"
	case carrel.StateFailed:
		return "failed"
	}
	text := []byte(s)
	for i, c := range text {
		text[i] = c - 'A' + 'a'
	}
	return string(text)
}
