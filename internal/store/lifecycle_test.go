package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// The whole life of a box, with what everybody is told at each step and how many commits it costs.
func TestLifeOfABox(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	var before map[string]int64
	cost := func(step string, most int64) {
		t.Helper()
		total := int64(0)
		now := w.Commits()
		for method, n := range now {
			total += n - before[method]
		}
		require.LessOrEqual(t, total, most, "commits of %s: %v, before %v", step, now, before)
		before = now
	}

	before = w.Commits()
	created, err := w.CreateBox(ctx, w.scope, w.newBox("one"))
	require.NoError(t, err)
	id := carrel.BoxID(created.TargetID)
	require.Equal(t, carrel.StateProvisioning, w.state(id))
	require.Equal(t, []carrel.BoxID{id}, w.due(), "a new box is due")
	require.False(t, w.status(created).Done)
	revision := w.desired().Revision
	first := w.assign(id)
	require.Empty(t, w.due(), "from then on it is the node's business")
	set := w.desired()
	require.Greater(t, set.Revision, revision, "the revision is raised with the assignment")
	require.Len(t, set.Runs, 1)
	run := set.Runs[0]
	require.Equal(t, store.DesiredRun{
		Run: first, Box: id, Org: w.org, Epoch: 1, Order: carrel.OrderRun, Generation: 1, Phase: carrel.PhaseAssigned,
		Spec:          store.RunSpec{BoxName: "one", ImageDigest: digest, Resources: carrel.DefaultResources, Sudo: true, Startup: []string{"echo hello"}},
		BusyCPUMillis: carrel.DefaultIdle.BusyCPUMillis,
	}, run)
	w.report(id, carrel.PhaseRunning, func(r *store.RunReport) { r.StartedFrom = "fresh" })
	require.Equal(t, carrel.StateRunning, w.state(id))
	require.True(t, w.status(created).Done)
	require.Nil(t, w.status(created).Failure)
	require.Empty(t, w.due())
	cost("create", 3)

	revision = w.desired().Revision
	pause := w.ask(id, carrel.VerbPause)
	require.Equal(t, carrel.StatePausing, w.state(id))
	require.Greater(t, w.desired().Revision, revision, "the revision is raised with the intent")
	require.Equal(t, carrel.OrderPause, w.desired().Runs[0].Order)
	require.Equal(t, int64(2), w.desired().Runs[0].Generation)
	memory := w.commit(id, carrel.SnapshotMemory)
	require.False(t, w.status(pause).Done, "the run has not ended yet")
	w.report(id, carrel.PhasePaused, func(r *store.RunReport) { r.Snapshot = memory })
	require.Equal(t, carrel.StatePaused, w.state(id))
	require.True(t, w.status(pause).Done)
	require.Empty(t, w.desired().Runs, "a paused box is in nobody's desired set")
	require.Empty(t, w.due())
	cost("pause", 3)

	resume := w.ask(id, carrel.VerbResume)
	require.Equal(t, carrel.StateResuming, w.state(id))
	require.Equal(t, []carrel.BoxID{id}, w.due())
	second := w.assign(id)
	require.NotEqual(t, first, second)
	run = w.desired().Runs[0]
	require.Equal(t, memory, run.Snapshot)
	require.True(t, run.WithMemory)
	require.Equal(t, int64(2), run.Epoch)
	w.report(id, carrel.PhaseRunning, func(r *store.RunReport) { r.StartedFrom = "memory" })
	require.Equal(t, carrel.StateRunning, w.state(id))
	require.True(t, w.status(resume).Done)
	require.True(t, w.status(pause).Done, "what was done stays done")
	require.Nil(t, w.status(pause).Failure)
	cost("resume", 3)

	stop := w.ask(id, carrel.VerbStop)
	require.Equal(t, carrel.OrderStop, w.desired().Runs[0].Order)
	disk := w.commit(id, carrel.SnapshotDisk)
	w.report(id, carrel.PhaseStopped)
	require.Equal(t, carrel.StateStopped, w.state(id))
	require.True(t, w.status(stop).Done)
	cost("stop", 3)
	require.Equal(t, []carrel.SnapshotID{memory}, w.desired().DropSnapshots, "the older snapshot is doomed")
	require.Equal(t, disk, w.box(id).Snapshot.ID)
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Dropped: []carrel.SnapshotID{memory, disk}}}))
	require.Empty(t, w.desired().DropSnapshots)
	require.Equal(t, disk, w.box(id).Snapshot.ID, "only what is doomed can be dropped")

	gone := w.ask(id, carrel.VerbDelete)
	require.Equal(t, carrel.StateDeleting, w.state(id))
	require.Equal(t, []carrel.BoxID{id}, w.due())
	require.NoError(t, w.PurgeBox(ctx, w.lease, id))
	require.NoError(t, w.PurgeBox(ctx, w.lease, id), "it may be purged again")
	require.Equal(t, carrel.StateDeleted, w.state(id))
	require.True(t, w.status(gone).Done)
	require.False(t, w.status(gone).EndedAt.IsZero())
	require.Empty(t, w.due())
	require.Equal(t, []carrel.SnapshotID{disk}, w.desired().DropSnapshots)

	var kinds []string
	events, _, err := w.ListEvents(ctx, w.scope, id, store.Page{})
	require.NoError(t, err)
	for _, e := range events {
		kinds = append(kinds, e.Kind)
	}
	require.Equal(t, []string{
		"deleted", "asked", "stopped", "asked", "running", "placed", "asked", "paused", "asked", "running", "placed", "created",
	}, kinds)
}

func TestRestartAndColdStartGiveUpMemory(t *testing.T) {
	w := newWorld(t)
	b := w.running("live")
	restart := w.ask(b.ID, carrel.VerbRestart)
	require.Equal(t, carrel.OrderStop, w.desired().Runs[0].Order, "what lives is stopped first")
	w.commit(b.ID, carrel.SnapshotDisk)
	w.report(b.ID, carrel.PhaseStopped)
	require.False(t, w.status(restart).Done)
	require.Equal(t, []carrel.BoxID{b.ID}, w.due())
	w.assign(b.ID)
	w.report(b.ID, carrel.PhaseRunning)
	require.True(t, w.status(restart).Done)

	p := w.paused("paused")
	w.ask(p.ID, carrel.VerbStart, func(s *store.SetIntent) { s.Cold = true })
	box := w.box(p.ID)
	require.True(t, box.Snapshot.MemoryRetired)
	require.Equal(t, p.BootGeneration+1, box.BootGeneration)
	bad := assignment(box, w.node)
	bad.WithMemory = true
	_, err := w.AssignRun(t.Context(), w.lease, bad)
	require.ErrorIs(t, err, store.ErrChanged, "memory that was given up cannot be used")
	w.assign(p.ID)
	run := w.box(p.ID).Run
	require.False(t, run.WithMemory)
}

func TestRunWithMemoryHasTheSpecOfItsMemory(t *testing.T) {
	w := newWorld(t)
	b := w.paused("box")
	bigger := carrel.DefaultResources
	bigger.MemoryBytes *= 2
	name, env := "renamed", map[string]string{"A": "1"}
	changed, err := w.UpdateBox(t.Context(), w.scope, store.UpdateBox{Box: b.ID, Name: &name, Resources: &bigger, Env: &env})
	require.NoError(t, err)
	require.Equal(t, bigger, changed.Resources)
	require.Equal(t, b.Generation, changed.Generation, "an update is no change of intent")

	w.ask(b.ID, carrel.VerbResume)
	w.assign(b.ID)
	run, err := w.GetRun(t.Context(), w.scope, w.box(b.ID).Run.ID)
	require.NoError(t, err)
	require.Equal(t, carrel.DefaultResources, run.Spec.Resources)
	require.Empty(t, run.Spec.Env)
	require.Equal(t, "renamed", run.Spec.BoxName)

	w.report(b.ID, carrel.PhaseRunning)
	w.ask(b.ID, carrel.VerbStop)
	w.commit(b.ID, carrel.SnapshotDisk)
	w.report(b.ID, carrel.PhaseStopped)
	w.ask(b.ID, carrel.VerbStart)
	w.assign(b.ID)
	run, err = w.GetRun(t.Context(), w.scope, w.box(b.ID).Run.ID)
	require.NoError(t, err)
	require.Equal(t, bigger, run.Spec.Resources)
	require.Equal(t, env, run.Spec.Env)
}

func TestUndonePauseIsSaidAndNotRepeated(t *testing.T) {
	w := newWorld(t)
	b := w.running("box")
	pause := w.ask(b.ID, carrel.VerbPause)
	w.report(b.ID, carrel.PhasePausing)
	revision := w.desired().Revision
	w.report(b.ID, carrel.PhaseRunning, func(r *store.RunReport) {
		r.FailedOrder, r.Reason, r.Message, r.Transient = carrel.OrderPause, carrel.ReasonDiskFull, "the disk is full", true
	})
	require.Equal(t, carrel.StateRunning, w.state(b.ID))
	require.Equal(t, carrel.OrderRun, w.desired().Runs[0].Order, "it is not tried again")
	require.Greater(t, w.desired().Revision, revision)
	status := w.status(pause)
	require.True(t, status.Done)
	require.Equal(t, carrel.ReasonDiskFull, status.Failure.Reason)
	require.Empty(t, w.due())
	again := w.ask(b.ID, carrel.VerbPause)
	require.Equal(t, carrel.OrderPause, w.desired().Runs[0].Order, "a new request is")
	require.Equal(t, carrel.ReasonDiskFull, w.status(pause).Failure.Reason, "and the first stays as it ended")
	require.False(t, w.status(again).Done)
}

func TestFailedRunIsDueAndRetriedWhenTheVerdictSays(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.running("box")
	w.report(b.ID, carrel.PhaseFailed, func(r *store.RunReport) {
		r.Reason, r.Message, r.Transient = carrel.ReasonSandboxDied, "it died", true
	})
	require.Equal(t, []carrel.BoxID{b.ID}, w.due())
	require.Empty(t, w.desired().Runs)
	seen := w.box(b.ID)
	failure := carrel.NewFailure(&seen.BoxView, carrel.ReasonSandboxDied, "it died", true, w.clock.Now())
	require.NoError(t, w.RecordFailure(ctx, w.lease, b.ID, seen.Touched, failure))
	require.ErrorIs(t, w.RecordFailure(ctx, w.lease, b.ID, seen.Touched, failure), store.ErrChanged)
	require.Empty(t, w.due(), "not before the pause is over")
	next, err := w.NextDue(ctx, 0, 1)
	require.NoError(t, err)
	require.WithinDuration(t, failure.RetryAt, next, time.Millisecond)
	w.clock.Advance(time.Minute)
	require.Equal(t, []carrel.BoxID{b.ID}, w.due())
	require.Equal(t, "it died", w.box(b.ID).Failure.Message)

	failure.Transient = false
	require.NoError(t, w.RecordFailure(ctx, w.lease, b.ID, w.box(b.ID).Touched, failure))
	require.Equal(t, carrel.StateFailed, w.state(b.ID))
	w.clock.Advance(time.Hour)
	require.Empty(t, w.due(), "a permanent failure waits for a new intent")
	w.ask(b.ID, carrel.VerbStart)
	require.Equal(t, []carrel.BoxID{b.ID}, w.due())
}

func TestSettleAndRetireOnlyWhatWasSeen(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.create("box")
	later := w.clock.Now().Add(time.Minute)
	require.ErrorIs(t, w.Settle(ctx, w.lease, b.ID, b.Touched-1, false, later), store.ErrChanged)
	require.Len(t, w.due(), 1)
	require.NoError(t, w.Settle(ctx, w.lease, b.ID, b.Touched, false, later))
	require.Empty(t, w.due())
	w.clock.Advance(2 * time.Minute)
	require.Len(t, w.due(), 1)
	require.NoError(t, w.Settle(ctx, w.lease, b.ID, w.box(b.ID).Touched, true, time.Time{}))
	next, err := w.NextDue(ctx, 0, 1)
	require.NoError(t, err)
	require.Zero(t, next)

	p := w.paused("paused")
	w.ask(p.ID, carrel.VerbStop)
	require.Equal(t, []carrel.BoxID{p.ID}, w.due())
	require.ErrorIs(t, w.RetireMemory(ctx, w.lease, p.ID, carrel.NewSnapshotID()), store.ErrChanged)
	require.NoError(t, w.RetireMemory(ctx, w.lease, p.ID, p.Snapshot.ID))
	require.NoError(t, w.RetireMemory(ctx, w.lease, p.ID, p.Snapshot.ID), "it may be done again")
	require.Equal(t, carrel.StateStopped, w.state(p.ID))
	require.Empty(t, w.due())
	require.ErrorIs(t, w.PurgeBox(ctx, w.lease, p.ID), store.ErrChanged, "nobody asked for its deletion")
}

func TestDueBoxesAreSharedByShards(t *testing.T) {
	w := newWorld(t)
	all := map[carrel.BoxID]bool{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} {
		all[w.create(name).ID] = true
	}
	seen := map[carrel.BoxID]bool{}
	for shard := range 4 {
		boxes, err := w.DueBoxes(t.Context(), shard, 4, 100)
		require.NoError(t, err)
		for _, b := range boxes {
			require.False(t, seen[b.ID], "in two shards")
			seen[b.ID] = true
		}
	}
	require.Equal(t, all, seen)
	few, err := w.DueBoxes(t.Context(), 0, 1, 5)
	require.NoError(t, err)
	require.Len(t, few, 5)
}

func TestSilentNodes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.running("box")
	silent := func() []*store.Box {
		boxes, err := w.BoxesOnSilentNodes(ctx, w.clock.Now().Add(-time.Minute), 10)
		require.NoError(t, err)
		return boxes
	}
	require.Empty(t, silent())
	w.clock.Advance(time.Hour)
	require.Len(t, silent(), 1)
	lost := w.box(b.ID)
	require.NoError(t, w.RecordFailure(ctx, w.lease, b.ID, lost.Touched, carrel.NewFailure(&lost.BoxView, carrel.ReasonNodeLost, "silent", true, w.clock.Now())))
	require.NoError(t, w.TouchNodes(ctx, []store.NodeBeat{{Node: w.node}, {Node: carrel.NewNodeID()}}))
	require.Empty(t, silent())
	w.report(b.ID, carrel.PhaseRunning)
	require.Equal(t, []carrel.BoxID{b.ID}, w.due(), "the lost node's box is looked at as soon as it is heard of")
}

func TestPruneForgetsWhatWasDeletedLongAgo(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.paused("old")
	op := w.ask(b.ID, carrel.VerbDelete)
	require.NoError(t, w.PurgeBox(ctx, w.lease, b.ID))
	w.create("young")
	w.clock.Advance(24 * time.Hour)
	prune := func(age time.Duration) int {
		n, err := w.Prune(ctx, w.lease, w.clock.Now().Add(-age), 100)
		require.NoError(t, err)
		return n
	}
	require.Equal(t, 0, prune(48*time.Hour))
	require.Equal(t, 0, prune(time.Hour), "its snapshot is still on a disk")
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Dropped: w.desired().DropSnapshots}}))
	require.Equal(t, 1, prune(time.Hour))
	_, err := w.GetBox(ctx, w.scope, b.ID)
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	_, err = w.GetOperation(ctx, w.scope, op.ID)
	requireCode(t, err, carrel.CodeNotFound, "operation_not_found")
}
