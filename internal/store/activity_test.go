package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// duePolicies gives the ids of the boxes whose policies are due.
func (w *world) duePolicies() []carrel.BoxID {
	w.t.Helper()
	boxes, err := w.DuePolicies(w.t.Context(), 100)
	require.NoError(w.t, err)
	ids := []carrel.BoxID{}
	for _, b := range boxes {
		ids = append(ids, b.ID)
	}
	return ids
}

func (w *world) policyBox(id carrel.BoxID) *store.PolicyBox {
	w.t.Helper()
	b, err := w.PolicyBox(w.t.Context(), id)
	require.NoError(w.t, err)
	return b
}

// used has the box's node tell of a signal.
func (w *world) used(b *store.Box, s carrel.Signal) {
	w.t.Helper()
	err := w.TouchNodes(w.t.Context(), []store.NodeBeat{{Node: w.node, Activities: []store.RunActivity{{Run: b.Run.ID, Epoch: b.Epoch, Signals: []carrel.Signal{s}}}}})
	require.NoError(w.t, err)
}

// What boxes are used for is written without a change of any box: watchers and reconcilers hear nothing of it.
func TestActivityTouchesNoBox(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.running("box")
	_, mark, err := w.ChangedBoxes(ctx, w.scope, "", "", 0)
	require.NoError(t, err)
	first := w.clock.Now()
	w.used(b, carrel.Signal{Kind: carrel.SignalInput, At: first, Detail: "a\x00b"})
	w.clock.Advance(time.Second)
	second := w.clock.Now()
	w.used(b, carrel.Signal{Kind: carrel.SignalCommand, At: second, Active: true})
	seen := w.policyBox(b.ID)
	require.Equal(t, []carrel.Signal{
		{Kind: carrel.SignalCommand, At: second, Active: true}, {Kind: carrel.SignalInput, At: first, Detail: "ab"},
	}, seen.Activity.Signals, "kinds are kept apart")
	require.Equal(t, b.Touched, seen.Touched)
	changed, _, err := w.ChangedBoxes(ctx, w.scope, "", "", mark)
	require.NoError(t, err)
	require.Empty(t, changed)

	other := w.join("other")
	require.NoError(t, w.TouchNodes(ctx, []store.NodeBeat{{Node: other, Activities: []store.RunActivity{{Run: b.Run.ID, Epoch: b.Epoch, Signals: []carrel.Signal{{Kind: carrel.SignalPort, At: first}}}}}}))
	stale := *b
	stale.Epoch++
	w.used(&stale, carrel.Signal{Kind: carrel.SignalPort, At: first})
	require.Len(t, w.policyBox(b.ID).Activity.Signals, 2, "neither another node nor another epoch is heard")

	// The next run begins with nothing.
	w.ask(b.ID, carrel.VerbPause)
	w.commit(b.ID, carrel.SnapshotMemory)
	w.report(b.ID, carrel.PhasePaused)
	w.ask(b.ID, carrel.VerbResume)
	w.assign(b.ID)
	w.report(b.ID, carrel.PhaseRunning)
	w.used(w.box(b.ID), carrel.Signal{Kind: carrel.SignalExec, At: w.clock.Now()})
	require.Len(t, w.policyBox(b.ID).Activity.Signals, 1)
}

// A box is looked at when its first deadline may have come, and not before, however much it is used.
func TestPoliciesAreLookedAtWhenTheyMayBeDue(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.running("box")
	require.Empty(t, w.duePolicies())
	w.clock.Advance(29 * time.Minute)
	w.used(b, carrel.Signal{Kind: carrel.SignalInput, At: w.clock.Now()})
	require.Empty(t, w.duePolicies())
	w.clock.Advance(time.Minute)
	require.Equal(t, []carrel.BoxID{b.ID}, w.duePolicies())
	lease := w.take("policies", "one")
	seen := w.policyBox(b.ID)
	next := w.clock.Now().Add(29 * time.Minute)

	// A report that came since keeps nothing from being looked at later; a new policy does.
	due, err := w.DuePolicies(ctx, 1)
	require.NoError(t, err)
	after := carrel.IdlePolicy{After: time.Hour}
	_, err = w.UpdateBox(ctx, w.scope, store.UpdateBox{Box: b.ID, Idle: &after})
	require.NoError(t, err)
	w.clock.Advance(time.Second)
	require.NoError(t, w.LookLater(ctx, lease, []store.PolicyLook{{Box: due[0], Next: next}}))
	require.Equal(t, []carrel.BoxID{b.ID}, w.duePolicies(), "somebody wants it looked at with the new policy")
	due, err = w.DuePolicies(ctx, 1)
	require.NoError(t, err)
	require.NoError(t, w.LookLater(ctx, lease, []store.PolicyLook{{Box: due[0], Next: next}}))
	require.Empty(t, w.duePolicies())
	require.Equal(t, seen.Touched+1, w.box(b.ID).Touched, "only the new policy changed the box")

	require.NoError(t, w.ReleaseLease(ctx, lease))
	w.take("policies", "two")
	require.ErrorIs(t, w.LookLater(ctx, lease, []store.PolicyLook{{Box: due[0], Next: next}}), store.ErrLeaseLost)
}

func TestPolicyIsAppliedOnlyToWhatWasSeen(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.running("box")
	lease := w.take("policies", "one")
	w.clock.Advance(30 * time.Minute)
	act := func(seen *store.PolicyBox) carrel.PolicyAct {
		d := carrel.DecideIdle(seen.View(), w.clock.Now())
		require.NotNil(t, d.Act)
		return *d.Act
	}
	require.NoError(t, w.TouchNodes(ctx, []store.NodeBeat{{Node: w.node}}))

	seen := w.policyBox(b.ID)
	pause := act(seen)
	w.used(b, carrel.Signal{Kind: carrel.SignalSession, At: w.clock.Now()})
	require.ErrorIs(t, w.ApplyPolicy(ctx, lease, seen, pause), store.ErrChanged, "its use was reported since")
	seen = w.policyBox(b.ID)
	labels := map[string]string{"a": "b"}
	_, err := w.UpdateBox(ctx, w.scope, store.UpdateBox{Box: b.ID, Labels: &labels})
	require.NoError(t, err)
	require.ErrorIs(t, w.ApplyPolicy(ctx, lease, seen, pause), store.ErrChanged, "somebody changed it since")

	revision := w.desired().Revision
	require.NoError(t, w.ApplyPolicy(ctx, lease, w.policyBox(b.ID), pause))
	set := w.desired()
	require.Greater(t, set.Revision, revision)
	require.Equal(t, carrel.OrderPause, set.Runs[0].Order)
	require.Equal(t, pause.IdleSince, set.Runs[0].IdleSince, "the node knows what undoes it")
	require.Equal(t, carrel.StatePausing, w.state(b.ID))
	require.Empty(t, w.duePolicies(), "nothing more, until something changes")

	// keep-awake takes it back, as long as it is not paused.
	until := w.clock.Now().Add(time.Hour)
	require.NoError(t, w.KeepAwake(ctx, w.scope, store.KeepAwake{Box: b.ID, Until: until}))
	kept := w.box(b.ID)
	require.Equal(t, carrel.IntentRunning, kept.Intent)
	require.True(t, kept.IdleSince.IsZero())
	require.True(t, w.desired().Runs[0].IdleSince.IsZero())
	require.Equal(t, until.Add(30*time.Minute), carrel.DecideIdle(w.policyBox(b.ID).View(), w.clock.Now()).Deadlines[0].At)

	// A pause that a user asks for is the user's, whatever the policy had wanted.
	w.ask(b.ID, carrel.VerbPause)
	require.True(t, w.desired().Runs[0].IdleSince.IsZero(), "nothing undoes it")
}

func TestTimeToLiveIsDueFromTheStart(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	fresh := w.newBox("brief")
	fresh.Idle = carrel.IdlePolicy{TTL: time.Hour}
	op, err := w.CreateBox(ctx, w.scope, fresh)
	require.NoError(t, err)
	require.Empty(t, w.duePolicies())
	w.clock.Advance(time.Hour)
	require.Equal(t, []carrel.BoxID{carrel.BoxID(op.TargetID)}, w.duePolicies())
	seen := w.policyBox(carrel.BoxID(op.TargetID))
	d := carrel.DecideIdle(seen.View(), w.clock.Now())
	require.NoError(t, w.ApplyPolicy(ctx, w.take("policies", "one"), seen, *d.Act))
	require.Equal(t, carrel.StateDeleting, w.state(seen.ID))
	require.Equal(t, "superseded", w.status(op).Progress, "the request to make it is answered")
}
