package reconcile

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

func (w *world) createIdle(name string, policy carrel.IdlePolicy) carrel.BoxID {
	op, err := w.store.CreateBox(w.ctx, w.scope, store.NewBox{
		Org: w.org, Name: name, TemplateID: w.template.ID, ImageDigest: digest, Resources: w.template.Resources, Idle: policy,
	})
	require.NoError(w.t, err)
	return carrel.BoxID(op.TargetID)
}

// events gives the messages of the events of a kind, oldest first.
func (w *world) events(box carrel.BoxID, kind string) []string {
	list, _, err := w.store.ListEvents(w.ctx, w.scope, box, store.Page{Size: 100})
	require.NoError(w.t, err)
	var messages []string
	for n := len(list) - 1; n >= 0; n-- {
		if list[n].Kind == kind {
			messages = append(messages, list[n].Message)
		}
	}
	return messages
}

// A box that nobody uses is paused by one transaction and no operation, and what is reported of its use is asked before.
func TestPolicyPausesWhatIsNotUsed(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	w.start(w.join("a", 1))
	w.reconciler()
	id := w.createIdle("box", carrel.IdlePolicy{After: time.Second})
	b := w.state(id, carrel.StatePaused)
	require.Equal(t, "policy:idle", b.IntentBy)
	require.EqualValues(t, 2, b.Generation)
	require.False(t, b.IdleSince.IsZero())
	require.Equal(t, []string{"paused because nobody used it for 1s (policy of box)"}, w.events(id, "policy"))
	require.EqualValues(t, 1, w.store.Commits()["ApplyPolicy"])
	ops, _, err := w.store.ListOperations(w.ctx, w.scope, store.ListOperations{Org: w.org, Target: string(id)})
	require.NoError(t, err)
	require.Len(t, ops, 1, "the policy makes no operation")
	require.True(t, ops[0].Status().Done, "and those of before stay as they ended")

	// Who asks for it has it, and time begins anew.
	require.NoError(t, w.set(id, carrel.VerbResume, false))
	if b = w.box(id); b.Generation == 3 { // else a second is over already
		require.NotEqual(t, "policy:idle", b.IntentBy)
		require.True(t, b.IdleSince.IsZero())
	}
	w.eventually(id, "paused again", func(b *store.Box) bool { return carrel.StateOf(&b.BoxView) == carrel.StatePaused && b.Generation == 4 })
}

func TestPolicyTakesBackWhatWasUndone(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	p := w.join("a", 1)
	var inUse atomic.Bool
	inUse.Store(true)
	p.inUse = inUse.Load
	w.start(p)
	w.reconciler()
	id := w.createIdle("box", carrel.IdlePolicy{After: time.Second})
	w.eventually(id, "wanted running again", func(b *store.Box) bool {
		return b.Generation >= 3 && b.Intent == carrel.IntentRunning && carrel.StateOf(&b.BoxView) == carrel.StateRunning
	})
	require.Contains(t, w.events(id, "kept"), "runs on: somebody used it while the pause was under way")

	// Now its node tells of it, and it is not even tried.
	run := w.box(id).Run
	tell := func(active bool) {
		require.NoError(t, w.store.TouchNodes(w.ctx, []store.NodeBeat{{Node: p.node.ID, Activities: []store.RunActivity{{
			Run: run.ID, Epoch: run.Epoch, Signals: []carrel.Signal{{Kind: carrel.SignalCommand, At: time.Now(), Active: active}},
		}}}}))
	}
	tell(true)
	told := w.box(id).Generation
	generation := w.eventually(id, "looked at while it is used", func(*store.Box) bool {
		b, err := w.store.PolicyBox(w.ctx, id)
		require.NoError(t, err)
		return b.Intent == carrel.IntentRunning && b.Activity.At.Add(3*time.Second).Before(time.Now())
	}).Generation
	require.LessOrEqual(t, generation, told+1, "what was tried before the report is taken back, and nothing is tried after it")
	touched := w.box(id).Touched
	inUse.Store(false)
	tell(false)
	b := w.state(id, carrel.StatePaused)
	require.Greater(t, b.Touched, touched)
	require.Empty(t, w.wrong)
}

func TestPolicyOfWholeLives(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	w.start(w.join("a", 1))
	w.reconciler()
	gone := w.createIdle("gone", carrel.IdlePolicy{TTL: time.Second})
	long := w.createIdle("long", carrel.IdlePolicy{MaxRun: time.Second, Action: carrel.IdleStop})
	calm := w.createIdle("calm", carrel.IdlePolicy{After: time.Second, Action: carrel.IdleNothing})
	w.state(gone, carrel.StateDeleted)
	require.Equal(t, []string{"deleted because its time to live of 1s is over (policy of box)"}, w.events(gone, "policy"))
	w.state(long, carrel.StateStopped)
	b := w.state(calm, carrel.StateIdle)
	first := b.IdleSince
	require.Equal(t, carrel.IntentRunning, b.Intent)
	require.EqualValues(t, 1, b.Generation, "nothing is wanted otherwise")
	require.NoError(t, w.set(calm, carrel.VerbStart, false))
	w.eventually(calm, "idle once more", func(b *store.Box) bool {
		return carrel.StateOf(&b.BoxView) == carrel.StateIdle && b.IdleSince.After(first)
	})

	// A new policy holds at once.
	pause := carrel.IdlePolicy{After: time.Second, Action: carrel.IdlePause}
	_, err := w.store.UpdateBox(w.ctx, w.scope, store.UpdateBox{Box: calm, Idle: &pause})
	require.NoError(t, err)
	w.state(calm, carrel.StatePaused)
}

// What a node is given to start or resume at a time is limited; who has to wait is told so, and gets its turn.
func TestWakesAreQueued(t *testing.T) {
	paused := func(b *store.Box) {
		b.Snapshot = &carrel.SnapshotView{ID: "s1", NodeID: "n-a", Kind: carrel.SnapshotMemory, BootGeneration: 1}
		b.HomeNode = "n-a"
	}
	small := func(b *store.Box) { b.Resources = carrel.MinResources }
	f := newFleet([]store.Node{node("a", func(n *store.Node) { n.Waking = wakesAtOnce - 1 })})
	require.Equal(t, stepAssign, planBox(box(paused, small), now, f).kind, "there is one place left")
	s := planBox(box(paused, small), now, f)
	require.Equal(t, stepFail, s.kind)
	require.Equal(t, carrel.ReasonQueued, s.failure.Reason)
	require.True(t, s.failure.Transient)
	require.Equal(t, "the box waits for its turn: 32 others are being started or resumed on a", s.failure.Message)
	require.LessOrEqual(t, s.failure.RetryAt.Sub(now), time.Second)
	require.Equal(t, stepAssign, planBox(box(small), now, f).kind, "a new box is no wake-up")
}
