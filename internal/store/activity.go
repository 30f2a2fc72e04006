package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// TopicPolicy is woken when the policy of a box may have something to do sooner than was thought.
const TopicPolicy = "policy"

// RunActivity is what a node saw of the use of a run: the newest of each kind that changed since it was told last.
type RunActivity struct {
	Run     carrel.RunID
	Epoch   int64
	Signals []carrel.Signal
}

// Activity is what is known of the use of a box.
type Activity struct {
	Epoch   int64 // of the run that was seen
	Signals []carrel.Signal
	At      time.Time // when it was written last
	// NodeSeen is when the node of the live run was heard last; zero without one.
	NodeSeen time.Time
}

// PolicyBox is a box with all that deciding about its policy takes.
type PolicyBox struct {
	*Box
	Activity Activity
	due      time.Time // as it was read
}

// View is what carrel.DecideIdle takes.
func (b *PolicyBox) View() *carrel.IdleView {
	v := b.idleView()
	v.Signals, v.SignalEpoch, v.NodeSeen = b.Activity.Signals, b.Activity.Epoch, b.Activity.NodeSeen
	return v
}

// IdleSources are where the policy of the box comes from.
func (b *Box) IdleSources() carrel.IdleSources {
	return carrel.IdleSources{Box: b.Idle, Template: b.TemplateIdle, TemplateName: fmt.Sprintf("%s@%d", b.Template, b.TemplateVersion)}
}

// idleView is the view without what is known of the box's use.
func (b *Box) idleView() *carrel.IdleView {
	return &carrel.IdleView{Box: &b.BoxView, CreatedAt: b.CreatedAt, IntentAt: b.IntentAt, Sources: b.IdleSources(), AwakeUntil: b.AwakeUntil}
}

// lookAfter is when the policy of a box must be looked at that just became as it is. What was reported of its use is not asked: it could
// only make that later.
func (t *tx) lookAfter(b *Box) time.Time {
	v := b.idleView()
	v.NodeSeen = t.now
	look := carrel.DecideIdle(v, t.now).Look
	if !look.IsZero() && !look.After(t.now) {
		t.wake(TopicPolicy)
	}
	return look
}

// markedIdle reports whether a report of use has to be looked at now.
func (b *Box) markedIdle() bool { return !b.IdleSince.IsZero() && b.Live() }

// setLooks writes when the policies of boxes that run are to be looked at.
func (t *tx) setLooks(ctx context.Context, boxes []*Box) error {
	p := db.SetLooksParams{Now: t.now}
	for _, b := range boxes {
		if !b.Live() || b.Run.Phase != carrel.PhaseRunning || b.Purpose != carrel.PurposeUser {
			continue
		}
		p.Boxes, p.Orgs = append(p.Boxes, string(b.ID)), append(p.Orgs, string(b.Org))
		p.Dues, p.Idles = append(p.Dues, t.lookAfter(b)), append(p.Idles, b.markedIdle())
	}
	if len(p.Boxes) == 0 {
		return nil
	}
	if err := t.SetLooks(ctx, p); err != nil {
		return fmt.Errorf("write when policies are looked at: %w", err)
	}
	return nil
}

// lookNow has the policy of a box looked at at once.
func (t *tx) lookNow(ctx context.Context, b *Box) error {
	t.wake(TopicPolicy)
	err := t.SetLook(ctx, db.SetLookParams{BoxID: b.ID, OrgID: b.Org, Due: &t.now, Idle: b.markedIdle(), Now: t.now})
	if err != nil {
		return fmt.Errorf("have the policy looked at: %w", err)
	}
	return nil
}

type signalMap map[carrel.SignalKind]carrel.Signal

func (m signalMap) list() []carrel.Signal {
	signals := make([]carrel.Signal, 0, len(m))
	for _, kind := range sortedKeys(m) {
		s := m[kind]
		s.Kind = kind
		signals = append(signals, s)
	}
	return signals
}

// Limits of what a node can tell of one run.
const (
	maxSignals = 16
	maxDetail  = 256
)

// recordActivities writes what nodes saw. What is of another node's run, of a former run or of one that ended is passed over.
func (t *tx) recordActivities(ctx context.Context, node carrel.NodeID, seen []RunActivity) error {
	runs := map[carrel.RunID]signalMap{}
	epochs := map[carrel.RunID]int64{}
	for _, a := range seen {
		m := runs[a.Run]
		if m == nil || a.Epoch > epochs[a.Run] {
			m = signalMap{}
			runs[a.Run], epochs[a.Run] = m, a.Epoch
		}
		for _, s := range a.Signals {
			at := s.At.UTC().Truncate(time.Microsecond)
			if _, ok := m[s.Kind]; !ok && len(m) >= maxSignals || a.Epoch < epochs[a.Run] {
				continue
			}
			// Its clock may be a little ahead of ours: that is seen to where it is read, since the node compares with what it told.
			if at.After(t.now.Add(maxAhead)) {
				at = t.now
			}
			m[s.Kind] = carrel.Signal{Kind: s.Kind, At: at, Active: s.Active, Detail: clean(s.Detail, maxDetail)}
		}
	}
	p := db.RecordActivityParams{Now: t.now, NodeID: node}
	for _, run := range sortedKeys(runs) {
		p.Runs, p.Epochs, p.Signals = append(p.Runs, string(run)), append(p.Epochs, epochs[run]), append(p.Signals, encode(runs[run]))
	}
	if len(p.Runs) == 0 {
		return nil
	}
	if err := t.RecordActivity(ctx, p); err != nil {
		return fmt.Errorf("record what boxes are used for: %w", err)
	}
	return nil
}

// policyBoxes reads boxes with what is known of their use, in the order in which they are due.
func (t *tx) policyBoxes(ctx context.Context, ids []string) ([]*PolicyBox, error) {
	list, err := t.boxes(ctx, "where b.id = any ($1)", ids)
	if err != nil {
		return nil, err
	}
	rows, err := t.Activities(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("read what boxes are used for: %w", err)
	}
	byID := map[carrel.BoxID]*PolicyBox{}
	boxes := make([]*PolicyBox, 0, len(list))
	for _, b := range list {
		p := &PolicyBox{Box: b}
		byID[b.ID] = p
		boxes = append(boxes, p)
	}
	order := map[carrel.BoxID]int{}
	for n, r := range rows {
		p := byID[r.BoxID]
		if p == nil {
			continue
		}
		order[r.BoxID] = n
		signals := signalMap{}
		if err := decode(r.Signals, &signals, "what a box is used for"); err != nil {
			return nil, err
		}
		p.Activity = Activity{Epoch: r.Epoch, Signals: signals.list(), At: r.At.UTC(), NodeSeen: timeOf(r.LastSeen)}
		p.due = timeOf(r.Due)
	}
	slices.SortFunc(boxes, func(a, b *PolicyBox) int { return order[a.ID] - order[b.ID] })
	return boxes, nil
}

// PolicyBox reads one box with what is known of its use.
func (s *Store) PolicyBox(ctx context.Context, id carrel.BoxID) (*PolicyBox, error) {
	var box *PolicyBox
	err := s.read(ctx, "PolicyBox", SystemScope(), func(t *tx) error {
		boxes, err := t.policyBoxes(ctx, []string{string(id)})
		if err == nil && len(boxes) == 0 {
			err = carrel.NotFound("box", string(id))
		}
		if err == nil {
			box = boxes[0]
		}
		return err
	})
	return box, err
}

// DuePolicies gives the boxes whose policies must be looked at now, longest waiting first, at most limit.
func (s *Store) DuePolicies(ctx context.Context, limit int) ([]*PolicyBox, error) {
	var boxes []*PolicyBox
	err := s.read(ctx, "DuePolicies", SystemScope(), func(t *tx) error {
		boxes = nil
		ids, err := t.DueActivity(ctx, t.now, int32(limit))
		if err != nil || len(ids) == 0 {
			return err
		}
		boxes, err = t.policyBoxes(ctx, toStrings(ids))
		return err
	})
	return boxes, err
}

// PolicyLook says when to look at a box again, which was seen as it is in Box.
type PolicyLook struct {
	Box  *PolicyBox
	Next time.Time // zero: after a change
}

// LookLater writes when policies are looked at next, for which nothing is to be done now. A box that somebody wanted to have looked at
// since it was read stays due.
func (s *Store) LookLater(ctx context.Context, lease Lease, looks []PolicyLook) error {
	if len(looks) == 0 {
		return nil
	}
	ordered := slices.Clone(looks)
	slices.SortFunc(ordered, func(a, b PolicyLook) int { return strings.Compare(string(a.Box.ID), string(b.Box.ID)) })
	return s.write(ctx, "LookLater", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		var ids []string
		var was, next []time.Time
		var idle []bool
		for _, l := range ordered {
			ids, was = append(ids, string(l.Box.ID)), append(was, l.Box.due)
			next, idle = append(next, l.Next), append(idle, l.Box.markedIdle())
		}
		return t.LookLater(ctx, ids, was, next, idle)
	})
}

// policyVerb is the verb that a user would have used for an intent.
var policyVerb = map[carrel.Intent]carrel.Verb{
	carrel.IntentRunning: carrel.VerbStart, carrel.IntentPaused: carrel.VerbPause, carrel.IntentStopped: carrel.VerbStop, carrel.IntentDeleted: carrel.VerbDelete,
}

// ApplyPolicy makes a change that the policy decided on, in the way in which a user's verb would, without an operation. ErrChanged: the box
// or what is known of its use is not as it was when that was decided.
func (s *Store) ApplyPolicy(ctx context.Context, lease Lease, seen *PolicyBox, act carrel.PolicyAct) error {
	return s.write(ctx, "ApplyPolicy", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		locked, err := t.lockBox(ctx, seen.ID)
		if carrel.CodeOf(err) == carrel.CodeNotFound || err == nil && locked.Touched != seen.Touched {
			return ErrChanged
		}
		if err != nil {
			return err
		}
		now, err := t.policyBoxes(ctx, []string{string(seen.ID)})
		if err != nil {
			return err
		}
		if len(now) == 0 || !now[0].Activity.At.Equal(seen.Activity.At) {
			return ErrChanged
		}
		b := now[0].Box
		if act.Mark {
			b.IdleSince = act.IdleSince
			t.wake(TopicWatch)
			if err := t.MarkIdle(ctx, b.ID, timePtr(act.IdleSince), t.now); err != nil {
				return fmt.Errorf("mark the box: %w", err)
			}
		} else if err := t.policyIntent(ctx, b, act); err != nil {
			return err
		}
		kind := "policy"
		switch {
		case act.Mark:
			kind = "idle"
		case act.Intent == carrel.IntentRunning:
			kind = "kept"
		}
		if err := t.event(ctx, b.Org, b.ID, "", kind, act.Message, act.Rule.Actor()); err != nil {
			return err
		}
		look := carrel.DecideIdle(now[0].View(), t.now).Look
		return t.SetLook(ctx, db.SetLookParams{BoxID: b.ID, OrgID: b.Org, Due: timePtr(look), Idle: b.markedIdle(), Now: t.now})
	})
}

func (t *tx) policyIntent(ctx context.Context, b *Box, act carrel.PolicyAct) error {
	if _, err := t.settleOperations(ctx, &Operation{Verb: policyVerb[act.Intent], CreatedAt: t.now}, b); err != nil {
		return err
	}
	b.Intent, b.IntentBy, b.IdleSince, b.IntentAt = act.Intent, act.Rule.Actor(), act.IdleSince, t.now
	b.Generation++
	if b.Live() {
		t.raise(b.Run.NodeID)
	}
	if err := t.setIntent(ctx, b); err != nil {
		return err
	}
	return t.audit(ctx, b.Org, string(b.ID), act.Message)
}

// setIntent writes a box's intent as it is now in b.
func (t *tx) setIntent(ctx context.Context, b *Box) error {
	err := t.SetIntent(ctx, db.SetIntentParams{
		ID: b.ID, Intent: b.Intent, Generation: b.Generation, BootGeneration: b.BootGeneration, NextDue: t.dueAfter(&b.BoxView),
		IntentBy: b.IntentBy, IdleSince: timePtr(b.IdleSince), Now: t.now,
	})
	if err != nil {
		return fmt.Errorf("set the intent: %w", err)
	}
	return nil
}

// KeepAwake is a request that a box be treated as used.
type KeepAwake struct {
	Box   carrel.BoxID
	Until time.Time // zero: not any longer
	// Check runs on the locked box; its error refuses the request.
	Check func(*Box) error
}

// KeepAwake notes until when a box counts as used. A pause or stop by idleness that is under way is taken back.
func (s *Store) KeepAwake(ctx context.Context, scope Scope, k KeepAwake) error {
	return s.write(ctx, "KeepAwake", scope, func(t *tx) error {
		b, err := t.lockBox(ctx, k.Box)
		if err != nil {
			return err
		}
		if err := checkBox(b, "", k.Check); err != nil {
			return err
		}
		b.AwakeUntil, b.AwakeBy = k.Until, t.actor()
		if err := t.KeepAwake(ctx, b.ID, timePtr(k.Until), b.AwakeBy, t.now); err != nil {
			return fmt.Errorf("keep the box awake: %w", err)
		}
		message := "is not kept awake any longer"
		if !k.Until.IsZero() {
			message = "is kept awake until " + k.Until.UTC().Format("2006-01-02 15:04:05 UTC")
		}
		if k.Until.After(t.now) && b.Live() && b.IntentBy == carrel.RuleIdle.Actor() && b.Intent != carrel.IntentRunning && b.Intent != carrel.IntentDeleted {
			if _, err := t.settleOperations(ctx, &Operation{Verb: carrel.VerbStart, CreatedAt: t.now}, b); err != nil {
				return err
			}
			b.Intent, b.IntentBy, b.IdleSince, b.IntentAt = carrel.IntentRunning, t.actor(), time.Time{}, t.now
			b.Generation++
			t.raise(b.Run.NodeID)
			if err := t.setIntent(ctx, b); err != nil {
				return err
			}
		}
		t.wake(TopicWatch)
		if err := t.event(ctx, b.Org, b.ID, "", "keep_awake", message, t.actor()); err != nil {
			return err
		}
		if err := t.audit(ctx, b.Org, string(b.ID), message); err != nil {
			return err
		}
		return t.lookNow(ctx, b)
	})
}

// StopEvents gives the newest events that tell how runs of a box ended and who wanted that, newest first.
func (s *Store) StopEvents(ctx context.Context, scope Scope, box carrel.BoxID) ([]Event, error) {
	var events []Event
	err := s.read(ctx, "StopEvents", scope, func(t *tx) error {
		events = nil
		rows, err := t.StopEvents(ctx, box)
		for _, r := range rows {
			events = append(events, Event{ID: r.ID, Org: r.OrgID, Box: r.BoxID, Run: r.RunID, At: r.At.UTC(), Kind: r.Kind, Message: r.Message, Actor: r.Actor})
		}
		return err
	})
	return events, err
}
