package carrel

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// viewsOf gives a box for one cell of the table, without and with committed memory where both can be.
// Empty: no box can be there.
func viewsOf(intent Intent, observed Observed) []BoxView {
	at := time.Unix(1_700_000_000, 0)
	v := BoxView{ID: "b1", Intent: intent, Generation: 2, BootGeneration: 1, Epoch: 1}
	if intent == intentRestarting {
		v.Intent, v.BootGeneration = IntentRunning, 2
	}
	memory := &SnapshotView{ID: "s1", NodeID: "n1", Kind: SnapshotMemory, BootGeneration: 1, At: at}
	disk := &SnapshotView{ID: "s2", NodeID: "n1", Kind: SnapshotDisk, BootGeneration: 1, At: at}
	run := func(phase Phase, generation int64, ran bool) *RunView {
		r := &RunView{ID: "r1", NodeID: "n1", Epoch: 1, BootGeneration: 1, Phase: phase, Generation: generation}
		r.Phases = append(r.Phases, PhaseAt{PhaseAssigned, at, 1})
		if ran {
			r.Phases = append(r.Phases, PhaseAt{PhaseRunning, at, 1})
		}
		r.Phases = append(r.Phases, PhaseAt{phase, at, generation})
		return r
	}
	with := func(r *RunView, snapshots ...*SnapshotView) (views []BoxView) {
		for _, s := range snapshots {
			c := v
			c.Run, c.Snapshot = r, s
			if c.EffectiveIntent() == intent {
				views = append(views, c)
			}
		}
		return views
	}
	switch observed {
	case ObservedNew:
		v.Epoch = 0
		return with(nil, nil)
	case ObservedStarting:
		return with(run(PhaseStarting, 1, false), nil)
	case ObservedResuming:
		r := run(PhaseStarting, 1, false)
		r.WithMemory = true
		return with(r, memory)
	case ObservedRunning:
		return with(run(PhaseRunning, 1, true), nil)
	case ObservedUndone:
		r := run(PhaseRunning, 2, true)
		r.FailedOrder, r.Reason, r.Message = OrderPause, ReasonDiskFull, "the disk is full"
		return with(r, nil)
	case ObservedPausing:
		return with(run(PhasePausing, 1, true), nil)
	case ObservedStopping:
		return with(run(PhaseStopping, 1, true), nil)
	case ObservedPaused:
		return with(run(PhasePaused, 1, true), memory)
	case ObservedStopped:
		return with(run(PhaseStopped, 1, true), disk)
	case ObservedCrashed:
		return with(run(PhaseFailed, 1, true), disk, memory)
	case ObservedGone:
		return with(run(PhaseDestroyed, 1, true), disk, memory)
	case ObservedDeleted:
		v.Deleted = true
		return with(run(PhaseDestroyed, 1, true), nil)
	}
	return nil
}

func TestEveryCellIsWhatItSays(t *testing.T) {
	for _, intent := range Intents {
		for _, observed := range Observations {
			for _, v := range viewsOf(intent, observed) {
				require.Equal(t, observed, v.Observe(), "%s × %s", intent, observed)
				if observed != ObservedDeleted {
					require.Equal(t, intent, v.EffectiveIntent(), "%s × %s", intent, observed)
				}
			}
		}
	}
}

func TestTableIsComplete(t *testing.T) {
	for _, intent := range Intents {
		for _, observed := range Observations {
			require.NotEmpty(t, Transition(intent, observed), "%s × %s", intent, observed)
		}
	}
	require.Len(t, transitions, len(Intents))
	require.Equal(t, ActNothing, Transition("unheard of", ObservedRunning))
	require.Equal(t, ActNothing, Transition(IntentRunning, "unheard of"))
}

// A run that lives always has an order: no cell leaves a node without knowing what to do.
func TestEveryLiveCellHasAnOrder(t *testing.T) {
	for _, intent := range Intents {
		for _, observed := range Observations {
			for _, v := range viewsOf(intent, observed) {
				if v.Live() {
					require.NotEqual(t, OrderNone, v.OrderOf(), "%s × %s", intent, observed)
				} else {
					require.Equal(t, OrderNone, v.OrderOf(), "%s × %s", intent, observed)
				}
			}
		}
	}
}

// Memory is given up only where a user asked for it: by stop, restart, cold start or delete.
func TestNothingLosesMemorySilently(t *testing.T) {
	for _, intent := range []Intent{IntentRunning, IntentPaused} {
		for _, observed := range Observations {
			switch action := Transition(intent, observed); action {
			case ActRetireMemory, ActPurge, ActDestroy, ActStop:
				require.Fail(t, "memory is lost", "%s × %s → %s", intent, observed, action)
			}
		}
	}
}

func TestOnlyDeletionDestroys(t *testing.T) {
	for _, intent := range Intents {
		for _, observed := range Observations {
			action := Transition(intent, observed)
			if action == ActDestroy || action == ActPurge {
				require.Equal(t, IntentDeleted, intent, "%s × %s → %s", intent, observed, action)
			}
		}
	}
}

func TestStateOf(t *testing.T) {
	permanent := &Failure{Reason: ReasonImageMissing, Generation: 2}
	transient := &Failure{Reason: ReasonNoRoom, Transient: true, Generation: 2}
	rows := []struct {
		name    string
		intent  Intent
		at      Observed
		failure *Failure
		change  func(*BoxView)
		want    State
	}{
		{"a new box is being provisioned", IntentRunning, ObservedNew, nil, nil, StateProvisioning},
		{"waiting for room is provisioning", IntentRunning, ObservedNew, transient, nil, StateProvisioning},
		{"no hope is failed", IntentRunning, ObservedNew, permanent, nil, StateFailed},
		{"a failure of an older intent is history", IntentRunning, ObservedNew, &Failure{Generation: 1}, nil, StateProvisioning},
		{"starting", IntentRunning, ObservedStarting, nil, nil, StateProvisioning},
		{"resuming", IntentRunning, ObservedResuming, nil, nil, StateResuming},
		{"running", IntentRunning, ObservedRunning, nil, nil, StateRunning},
		{"a live run outweighs a failure", IntentRunning, ObservedRunning, permanent, nil, StateRunning},
		{"a paused box that shall run is resuming", IntentRunning, ObservedPaused, nil, nil, StateResuming},
		{"a stopped box that shall run is provisioning", IntentRunning, ObservedStopped, nil, nil, StateProvisioning},
		{"a crashed box is started again", IntentRunning, ObservedCrashed, nil, nil, StateProvisioning},
		{"a pause taken back is resuming", IntentRunning, ObservedPausing, nil, nil, StateResuming},
		{"a pause that failed leaves it running", IntentPaused, ObservedUndone, nil, nil, StateRunning},
		{"pausing", IntentPaused, ObservedRunning, nil, nil, StatePausing},
		{"paused", IntentPaused, ObservedPaused, nil, nil, StatePaused},
		{"a box paused while it starts is still provisioning", IntentPaused, ObservedStarting, nil, nil, StateProvisioning},
		{"a box paused while it resumes is still resuming", IntentPaused, ObservedResuming, nil, nil, StateResuming},
		{"what died cannot be paused", IntentPaused, ObservedCrashed, nil, nil, StateFailed},
		{"stopping", IntentStopped, ObservedRunning, nil, nil, StateStopping},
		{"a paused box that shall stop is stopping until its memory is given up", IntentStopped, ObservedPaused, nil, nil, StateStopping},
		{"stopped", IntentStopped, ObservedStopped, nil, nil, StateStopped},
		{"stopped before it began", IntentStopped, ObservedNew, nil, nil, StateStopped},
		{"restarting begins with stopping", intentRestarting, ObservedRunning, nil, nil, StateStopping},
		{"a restart of a paused box is provisioning", intentRestarting, ObservedPaused, nil, nil, StateProvisioning},
		{"deleting", IntentDeleted, ObservedRunning, nil, nil, StateDeleting},
		{"deleting what never ran", IntentDeleted, ObservedNew, permanent, nil, StateDeleting},
		{"deleted", IntentDeleted, ObservedDeleted, nil, nil, StateDeleted},
		{"a resume that failed before it ran leaves a paused box", IntentPaused, ObservedPaused, nil, func(v *BoxView) {
			v.Run.Phase, v.Run.Phases = PhaseFailed, []PhaseAt{{PhaseAssigned, time.Time{}, 1}}
		}, StatePaused},
		{"a resume that is tried again is resuming", IntentRunning, ObservedPaused, transient, func(v *BoxView) {
			v.Run.Phase, v.Run.Phases = PhaseFailed, []PhaseAt{{PhaseAssigned, time.Time{}, 1}}
		}, StateResuming},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			v := viewsOf(row.intent, row.at)[0]
			v.Failure = row.failure
			if row.change != nil {
				row.change(&v)
			}
			require.Equal(t, row.want, StateOf(&v))
		})
	}
}

// A cold start of a paused box uses its files, never its memory, even when the memory was tried and refused.
func TestColdStartAfterCorruptMemory(t *testing.T) {
	v := viewsOf(IntentRunning, ObservedPaused)[0]
	v.Run = &RunView{ID: "r2", Phase: PhaseFailed, Generation: 2, WithMemory: true, BootGeneration: 1}
	f := NewFailure(&v, ReasonSnapshotCorrupt, "block 7 is damaged", false, time.Now())
	v.Failure = &f
	require.Equal(t, StateFailed, StateOf(&v))
	v.Generation++
	v.BootGeneration++
	require.Equal(t, ActRetireMemory, v.Next())
	require.False(t, v.StartsWithMemory())
	v.Snapshot.MemoryRetired = true
	require.Equal(t, ActRetry, v.Next())
	require.Equal(t, StateProvisioning, StateOf(&v))
}

func TestPhases(t *testing.T) {
	for _, p := range []Phase{PhaseStarting, PhaseRunning, PhasePausing, PhaseStopping, PhasePaused, PhaseStopped, PhaseFailed, PhaseDestroyed} {
		require.True(t, p.Valid(), p)
	}
	require.False(t, PhaseAssigned.Valid(), "a node cannot report that a run was assigned")
	require.False(t, Phase("").Valid())
	for _, p := range []Phase{PhasePaused, PhaseStopped, PhaseFailed, PhaseDestroyed} {
		require.True(t, p.Ended(), p)
	}
	for _, p := range []Phase{PhaseAssigned, PhaseStarting, PhaseRunning, PhasePausing, PhaseStopping} {
		require.False(t, p.Ended(), p)
	}
}

// A stop, a restart and a cold start give memory up wherever it is left over, also when the run after it crashed: what comes
// next must not be what was before.
func TestMemoryIsGivenUpWhereverItIsLeft(t *testing.T) {
	for _, intent := range []Intent{intentRestarting, IntentStopped} {
		for _, observed := range []Observed{ObservedPaused, ObservedCrashed, ObservedGone} {
			seen := 0
			for _, v := range viewsOf(intent, observed) {
				if v.HasMemory() {
					seen++
					require.Equal(t, ActRetireMemory, v.Next(), "%s × %s", intent, observed)
					require.True(t, v.NeedsReconcile())
				} else {
					require.Equal(t, ActNothing, v.Next(), "%s × %s without memory", intent, observed)
				}
			}
			require.Equal(t, 1, seen, "%s × %s", intent, observed)
		}
	}
}
