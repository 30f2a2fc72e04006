package carrel

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStatusOf(t *testing.T) {
	t0 := time.Unix(1_700_000_000, 0)
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	run := func(boot int64, phases ...PhaseAt) RunView {
		last := phases[len(phases)-1]
		return RunView{ID: "r1", BootGeneration: boot, Phase: last.Phase, Generation: last.Generation, Phases: phases}
	}
	rows := []struct {
		name     string
		op       OperationView
		v        BoxView
		runs     []RunView
		done     bool
		ended    time.Time
		reason   string
		progress string
	}{
		{name: "a create waits for its run", op: OperationView{Verb: VerbCreate, Generation: 1, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 1}, progress: "new"},
		{
			name: "a create is done when a run came up", op: OperationView{Verb: VerbCreate, Generation: 1, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 1},
			runs: []RunView{run(1, PhaseAt{PhaseAssigned, at(0), 1}, PhaseAt{PhaseRunning, at(2), 1})}, done: true, ended: at(2), progress: "running",
		},
		{
			name: "and stays done when the run dies", op: OperationView{Verb: VerbCreate, Generation: 1, CreatedAt: t0},
			v:    BoxView{Intent: IntentRunning, Generation: 1, Failure: &Failure{Generation: 1, Reason: ReasonSandboxDied}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(2), 1}, PhaseAt{PhaseFailed, at(3), 1})}, done: true, ended: at(2), progress: "running",
		},
		{
			name: "a later start of the same kind finishes an earlier one", op: OperationView{Verb: VerbStart, Generation: 2, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 3},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(5), 3})}, done: true, ended: at(5), progress: "running",
		},
		{
			name: "but not before it came up", op: OperationView{Verb: VerbStart, Generation: 2, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 3},
			runs: []RunView{run(1, PhaseAt{PhaseAssigned, at(5), 3})}, progress: "new",
		},
		{
			name: "a run that an older order brought up fulfils a later start", op: OperationView{Verb: VerbStart, Generation: 3, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 3, Run: &RunView{
				ID: "r1", Phase: PhaseFailed, Generation: 2,
			}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(5), 2}, PhaseAt{PhaseFailed, at(6), 2})}, done: true, ended: at(5), progress: "running",
		},
		{
			name: "one that came up before it does not", op: OperationView{Verb: VerbStart, Generation: 3, CreatedAt: at(9)}, v: BoxView{Intent: IntentRunning, Generation: 3, Run: &RunView{
				ID: "r1", Phase: PhaseFailed, Generation: 2,
			}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(5), 2}, PhaseAt{PhaseFailed, at(6), 2})}, progress: "crashed",
		},
		{
			name: "a start of what runs already is done at once", op: OperationView{Verb: VerbStart, Generation: 2, CreatedAt: at(9)}, v: BoxView{Intent: IntentRunning, Generation: 2, Run: &RunView{
				ID: "r1", Phase: PhaseRunning, Generation: 1,
			}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(5), 1})}, done: true, ended: at(9), progress: "running",
		},
		{
			name: "but not while the run may be following the pause before it", op: OperationView{Verb: VerbStart, Generation: 3, CreatedAt: at(9)}, v: BoxView{Intent: IntentRunning, Generation: 3, Run: &RunView{
				ID: "r1", Phase: PhaseRunning, Generation: 1,
			}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(5), 1})}, progress: "running",
		},
		{
			name: "it is done when the run has given the pause up", op: OperationView{Verb: VerbStart, Generation: 3, CreatedAt: at(9)}, v: BoxView{Intent: IntentRunning, Generation: 3, Run: &RunView{
				ID: "r1", Phase: PhaseRunning, Generation: 3,
			}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(5), 1}, PhaseAt{PhaseRunning, at(10), 3})}, done: true, ended: at(10), progress: "running",
		},
		{
			name: "and waits for the next run when the pause was complete", op: OperationView{Verb: VerbStart, Generation: 3, CreatedAt: at(9)}, v: BoxView{Intent: IntentRunning, Generation: 3, Run: &RunView{
				ID: "r1", Phase: PhasePaused, Generation: 2,
			}, Snapshot: &SnapshotView{Kind: SnapshotMemory, BootGeneration: 1}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(5), 1}, PhaseAt{PhasePaused, at(10), 2})}, progress: "paused",
		},
		{
			name: "a stop that a later stop finished is done", op: OperationView{Verb: VerbStop, Generation: 3, CreatedAt: t0},
			v: BoxView{
				Intent: IntentStopped, Generation: 4, Run: &RunView{ID: "r1", Phase: PhasePaused, Generation: 2},
				Snapshot: &SnapshotView{Kind: SnapshotMemory, MemoryRetired: true},
			}, done: true, ended: t0, progress: "stopped",
		},
		{
			name: "another intent supersedes it", op: OperationView{Verb: VerbStart, Generation: 2, CreatedAt: t0}, v: BoxView{Intent: IntentStopped, Generation: 3},
			done: true, reason: "superseded", progress: "superseded",
		},
		{
			name: "a permanent failure ends it", op: OperationView{Verb: VerbStart, Generation: 2, CreatedAt: t0},
			v:    BoxView{Intent: IntentRunning, Generation: 2, Failure: &Failure{Generation: 2, Reason: ReasonImageMissing, At: at(4)}},
			done: true, ended: at(4), reason: ReasonImageMissing, progress: "failed",
		},
		{
			name: "a transient one is waited for", op: OperationView{Verb: VerbStart, Generation: 2, CreatedAt: t0},
			v:        BoxView{Intent: IntentRunning, Generation: 2, Failure: &Failure{Generation: 2, Reason: ReasonNoRoom, Message: "no node has room", Attempts: 3, Transient: true}},
			progress: "waiting to try again (attempt 3): no node has room",
		},
		{
			name: "an older failure does not end it", op: OperationView{Verb: VerbStart, Generation: 2, CreatedAt: t0},
			v: BoxView{Intent: IntentRunning, Generation: 2, Failure: &Failure{Generation: 1, Reason: ReasonImageMissing}}, progress: "new",
		},
		{
			name: "a pause that was undone has failed", op: OperationView{Verb: VerbPause, Generation: 2, CreatedAt: t0},
			v: BoxView{Intent: IntentPaused, Generation: 2, Run: &RunView{
				ID: "r1", Phase: PhaseRunning, Generation: 2, FailedOrder: OrderPause, Reason: ReasonDiskFull, Message: "the disk is full", Phases: []PhaseAt{{PhaseRunning, at(3), 2}},
			}}, done: true, ended: at(3), reason: ReasonDiskFull, progress: "undone",
		},
		{
			name: "a pause is done when memory is committed", op: OperationView{Verb: VerbPause, Generation: 2, CreatedAt: t0}, v: BoxView{Intent: IntentPaused, Generation: 2},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(1), 1}, PhaseAt{PhasePaused, at(3), 2})}, done: true, ended: at(3), progress: "paused",
		},
		{
			name: "a stop of a paused box is done when its memory is given up", op: OperationView{Verb: VerbStop, Generation: 3, CreatedAt: t0},
			v: BoxView{
				Intent: IntentStopped, Generation: 3, Run: &RunView{ID: "r1", Phase: PhasePaused, Generation: 2},
				Snapshot: &SnapshotView{Kind: SnapshotMemory, MemoryRetired: true},
			}, done: true, ended: t0, progress: "stopped",
		},
		{
			name: "a restart is not done while the old boot runs", op: OperationView{Verb: VerbRestart, Generation: 2, BootGeneration: 2, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 2, BootGeneration: 2, Run: &RunView{
				ID: "r1", Phase: PhaseRunning, BootGeneration: 1, Generation: 1,
			}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(1), 2})}, progress: "running",
		},
		{
			name: "a restart is done with the new boot", op: OperationView{Verb: VerbRestart, Generation: 2, BootGeneration: 2, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 2, BootGeneration: 2},
			runs: []RunView{run(1, PhaseAt{PhaseStopped, at(1), 2}), run(2, PhaseAt{PhaseRunning, at(3), 2})}, done: true, ended: at(3), progress: "running",
		},
		{
			name: "a restart whose stop was undone has failed", op: OperationView{Verb: VerbRestart, Generation: 2, BootGeneration: 2, CreatedAt: t0}, v: BoxView{Intent: IntentRunning, Generation: 2, BootGeneration: 2, Run: &RunView{
				ID: "r1", Phase: PhaseRunning, BootGeneration: 1, Generation: 2, FailedOrder: OrderStop, Reason: ReasonDiskFull,
			}},
			runs: []RunView{run(1, PhaseAt{PhaseRunning, at(1), 2})}, done: true, reason: ReasonDiskFull, progress: "undone",
		},
		{name: "deleting", op: OperationView{Verb: VerbDelete, Generation: 2, CreatedAt: t0}, v: BoxView{Intent: IntentDeleted, Generation: 2}, progress: "deleting"},
		{
			name: "deleted", op: OperationView{Verb: VerbDelete, Generation: 2, CreatedAt: t0}, v: BoxView{Intent: IntentDeleted, Generation: 2, Deleted: true},
			runs: []RunView{run(1, PhaseAt{PhaseDestroyed, at(9), 2})}, done: true, ended: at(9), progress: "deleted",
		},
		{
			name: "what was written down stays", op: OperationView{Verb: VerbStop, Generation: 2, Settled: &OperationStatus{Done: true, EndedAt: at(7), Progress: "stopped"}},
			v: BoxView{Intent: IntentRunning, Generation: 9}, done: true, ended: at(7), progress: "stopped",
		},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got := StatusOf(row.op, &row.v, row.runs)
			require.Equal(t, row.done, got.Done, got)
			require.Equal(t, row.progress, got.Progress)
			require.True(t, row.ended.Equal(got.EndedAt), "ended at %s", got.EndedAt)
			if row.reason == "" {
				require.Nil(t, got.Failure)
			} else {
				require.NotNil(t, got.Failure)
				require.Equal(t, row.reason, got.Failure.Reason)
			}
		})
	}
}

func TestSettle(t *testing.T) {
	now := time.Unix(1_700_000_100, 0)
	open := OperationView{Verb: VerbStart, Generation: 2, CreatedAt: now.Add(-time.Minute)}
	v := &BoxView{Intent: IntentRunning, Generation: 2}

	_, end := Settle(open, v, nil, VerbResume, now)
	require.False(t, end, "the next intent is the same: it may still be fulfilled")

	status, end := Settle(open, v, nil, VerbPause, now)
	require.True(t, end)
	require.Equal(t, "superseded", status.Progress)
	require.Equal(t, now, status.EndedAt)

	v.Failure = &Failure{Reason: ReasonImageMissing, Generation: 2}
	status, end = Settle(open, v, nil, VerbStart, now)
	require.True(t, end, "its failure would be forgotten with the next intent")
	require.Equal(t, ReasonImageMissing, status.Failure.Reason)

	open.Settled = &status
	_, end = Settle(open, v, nil, VerbPause, now)
	require.False(t, end, "an end is written down once")
}
