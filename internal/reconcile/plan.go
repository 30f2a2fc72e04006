package reconcile

import (
	"fmt"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// kind is what a step does.
type kind string

const (
	stepSettle kind = "settle" // nothing to do until it is due again
	stepAssign kind = "assign" // make a run
	stepFail   kind = "fail"   // write a failure down
	stepRetire kind = "retire" // give memory up
	stepPurge  kind = "purge"  // forget the box
)

// step is the next thing to do for one box.
type step struct {
	kind    kind
	box     *store.Box
	assign  store.AssignRun // for stepAssign
	failure carrel.Failure  // for stepFail
	due     time.Time       // for stepSettle; zero: after the next change
	clear   bool            // for stepSettle: its failure is history
	// unplaced: no node can take the box, or none has a prebuild for it, which must not be concluded from an old read of the nodes.
	unplaced bool
}

// silentCheck is how often a box on a silent node is looked at.
const silentCheck = 5 * time.Second

// planBox decides the next step for a box. It is a pure function, but for taking room in the fleet when it places.
func planBox(b *store.Box, now time.Time, f *fleet) step {
	v := &b.BoxView
	switch v.Next() {
	case carrel.ActAssign, carrel.ActRetry:
		return planAssign(b, now, f)
	case carrel.ActRetireMemory:
		return step{kind: stepRetire, box: b}
	case carrel.ActPurge:
		return step{kind: stepPurge, box: b}
	case carrel.ActFail:
		if c := v.CurrentFailure(); c != nil && !c.Transient {
			return step{kind: stepSettle, box: b}
		}
		return fail(b, carrel.ReasonNotRunning, cannotPause(v), "", now)
	}
	return planResting(b, now, f)
}

// planResting is for a box whose next step is its node's, or nobody's.
func planResting(b *store.Box, now time.Time, f *fleet) step {
	c := b.CurrentFailure()
	if !b.Live() || c == nil || c.Reason != carrel.ReasonNodeLost {
		return step{kind: stepSettle, box: b}
	}
	if m := f.byID[b.Run.NodeID]; m != nil && m.online(now) {
		return step{kind: stepSettle, box: b, clear: true}
	}
	return step{kind: stepSettle, box: b, due: now.Add(silentCheck)}
}

func planAssign(b *store.Box, now time.Time, f *fleet) step {
	v := &b.BoxView
	if v.Unrecorded() {
		r := v.Run
		reason, message := r.Reason, r.Message
		if reason == "" {
			reason = carrel.ReasonRuntimeError
		}
		if message == "" {
			message = "the run ended without saying why"
		}
		return step{kind: stepFail, box: b, failure: carrel.NewFailure(v, reason, message, r.Transient, now)}
	}
	if c := v.CurrentFailure(); c != nil {
		if !c.Transient {
			return step{kind: stepSettle, box: b}
		}
		if now.Before(c.RetryAt) {
			return step{kind: stepSettle, box: b, due: c.RetryAt}
		}
	}
	p := place(b, now, f)
	if p.node == nil {
		s := fail(b, p.reason, p.message, p.next, now)
		s.unplaced = true
		return s
	}
	p.node.take(b)
	a := store.AssignRun{
		Box: b.ID, Node: p.node.ID, Epoch: v.Epoch, Generation: v.Generation,
		WithMemory: v.StartsWithMemory(), Clone: p.clone, Message: p.why,
	}
	if v.Snapshot != nil {
		a.Snapshot = v.Snapshot.ID
	}
	// A prebuild may have become ready since the nodes were read.
	missed := b.Cloneable && b.Run == nil && b.Snapshot == nil && b.Purpose != carrel.PurposePrebuild && p.clone == ""
	return step{kind: stepAssign, box: b, assign: a, unplaced: missed}
}

func fail(b *store.Box, reason, message, next string, now time.Time) step {
	f := carrel.NewFailure(&b.BoxView, reason, message, true, now)
	if next != "" {
		f.NextStep = next
	}
	return step{kind: stepFail, box: b, failure: f}
}

// cannotPause says why a box that has no live run cannot be paused.
func cannotPause(v *carrel.BoxView) string {
	switch v.Observe() {
	case carrel.ObservedCrashed:
		why := v.Run.Message
		if why == "" {
			why = "its run failed"
		}
		if v.Snapshot != nil {
			return fmt.Sprintf("the box could not be paused, its memory is lost: %s. Its files are as of %s", why, clock(v.Snapshot.At))
		}
		return "the box could not be paused, and nothing of it was committed: " + why
	case carrel.ObservedStopped:
		return "the box is stopped, so there is no memory to keep"
	}
	return "the box has no run, so there is nothing to pause"
}

// planSilent decides about a box with a live run on a node that was judged silent. The run stays where it is: the box may well
// be alive and its files are there. What changes is what people are told.
func planSilent(b *store.Box, now time.Time, m *machine) *step {
	if !b.Live() || b.Run.NodeID != m.ID {
		return nil
	}
	if c := b.CurrentFailure(); c != nil && c.Reason == carrel.ReasonNodeLost && c.RunID == b.Run.ID {
		return nil
	}
	s := fail(b, carrel.ReasonNodeLost, fmt.Sprintf("node %s has not been heard from since %s; the box may still run there, but cannot be reached or changed until the node is back", m.Name, clock(m.LastSeen)), "", now)
	return &s
}
