package node

import (
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

// TestNextStep is the table of what a run needs, by how far it is, what there is of it and what is wanted.
func TestNextStep(t *testing.T) {
	const mem, files = carrel.SnapshotMemory, carrel.SnapshotDisk
	run, pause, stop, destroy := carrel.OrderRun, carrel.OrderPause, carrel.OrderStop, carrel.OrderDestroy
	all := []sandboxState{sandboxAbsent, sandboxRunning, sandboxFrozen, sandboxExited}
	gone := []sandboxState{sandboxAbsent, sandboxExited}
	type row struct {
		stage   stage
		sandbox []sandboxState
		sealed  carrel.SnapshotKind
		orders  []carrel.Order
		want    step
	}
	orders := []carrel.Order{run, pause, stop}
	rows := []row{
		// Whatever was begun and not told is begun anew.
		{stageStarting, all, "", orders, stepStart},
		{stageRunning, []sandboxState{sandboxRunning}, "", []carrel.Order{run}, stepNothing},
		{stageRunning, []sandboxState{sandboxRunning}, "", []carrel.Order{pause, stop}, stepCapture},
		// A daemon that was killed while it captured: the same order goes on, another one lets the box go on.
		{stageRunning, []sandboxState{sandboxFrozen}, "", []carrel.Order{pause, stop}, stepCapture},
		{stageRunning, []sandboxState{sandboxFrozen}, "", []carrel.Order{run}, stepUndo},
		{stageRunning, []sandboxState{sandboxFrozen}, mem, []carrel.Order{pause}, stepCommit},
		{stageRunning, []sandboxState{sandboxFrozen}, files, []carrel.Order{stop}, stepCommit},
		{stageRunning, []sandboxState{sandboxFrozen}, mem, []carrel.Order{run, stop}, stepUndo},
		{stageRunning, []sandboxState{sandboxFrozen}, files, []carrel.Order{run, pause}, stepUndo},
		// A box that goes on has no snapshot, whatever lies there.
		{stageRunning, []sandboxState{sandboxRunning}, mem, orders, stepUndo},
		// It died: a sealed snapshot is its last state, for it was not thawed after it; else its files are saved.
		{stageRunning, gone, "", orders, stepSalvage},
		{stageRunning, gone, mem, orders, stepCommit},
		{stageRunning, gone, files, orders, stepCommit},
		// Once it may have been proposed, only control decides.
		{stageCommitting, all, mem, orders, stepCommit},
		{stageCommitting, all, files, orders, stepCommit},
		{stageCommitting, all, "", orders, stepUndo},
		{stageSalvaging, all, "", orders, stepSalvage},
		{stageSalvaging, all, files, orders, stepSalvage},
		// Control knows that it is over: whatever is there goes, and whatever is wanted.
		{stageClearing, all, mem, []carrel.Order{run, pause, stop, destroy}, stepClear},
		{stageClearing, all, "", []carrel.Order{run, pause, stop, destroy}, stepClear},
		{stageEnded, all, "", []carrel.Order{run, pause, stop, destroy}, stepNothing},
	}
	for _, s := range []stage{stageStarting, stageRunning, stageCommitting, stageSalvaging} {
		for _, sealed := range []carrel.SnapshotKind{"", mem, files} {
			rows = append(rows, row{s, all, sealed, []carrel.Order{destroy}, stepDestroy})
		}
	}
	for _, r := range rows {
		for _, sandbox := range r.sandbox {
			for _, o := range r.orders {
				e := &entry{Stage: r.stage, Generation: 3}
				got := nextStep(e, seen{sandbox: sandbox, sealed: r.sealed}, order{o, 3})
				require.Equal(t, r.want, got, "%s, sandbox %s, sealed %q, order %s", r.stage, sandbox, r.sealed, o)
			}
		}
	}
}

func TestNextStepAfterAnUndonePause(t *testing.T) {
	e := &entry{Stage: stageRunning, Generation: 3, FailedOrder: carrel.OrderPause, FailedGeneration: 3}
	running, frozen := seen{sandbox: sandboxRunning}, seen{sandbox: sandboxFrozen}
	require.Equal(t, stepNothing, nextStep(e, running, order{carrel.OrderPause, 3}), "the same intent is not tried twice")
	require.Equal(t, stepUndo, nextStep(e, frozen, order{carrel.OrderPause, 3}))
	require.Equal(t, stepUndo, nextStep(e, seen{sandbox: sandboxFrozen, sealed: carrel.SnapshotMemory}, order{carrel.OrderPause, 3}))
	require.Equal(t, stepCapture, nextStep(e, running, order{carrel.OrderPause, 4}), "a newer one is")
	require.Equal(t, stepCapture, nextStep(e, running, order{carrel.OrderStop, 3}))
	require.Equal(t, stepAnnounce, nextStep(e, running, order{carrel.OrderRun, 4}), "control hears for which intent it runs")
	require.Equal(t, stepNothing, nextStep(e, running, order{carrel.OrderRun, 3}))
}

func TestAPreparedBoxThatWasTakenIsIdentifiedBeforeItIsSaidToRun(t *testing.T) {
	e := &entry{Stage: stageRunning, Generation: 1}
	taken := seen{sandbox: sandboxRunning, identity: 1}
	require.Equal(t, stepIdentify, nextStep(e, taken, order{carrel.OrderRun, 2}))
	require.Equal(t, stepCapture, nextStep(e, taken, order{carrel.OrderPause, 3}), "a paused box takes its name when it is resumed")
	require.Equal(t, stepDestroy, nextStep(e, taken, order{carrel.OrderDestroy, 3}))
	require.Equal(t, stepStart, nextStep(&entry{Stage: stageStarting}, taken, order{carrel.OrderRun, 2}), "who begins is told at the start")
	e.Identity = 1
	require.Equal(t, stepAnnounce, nextStep(e, taken, order{carrel.OrderRun, 2}))
	require.True(t, interrupts(stepIdentify, order{carrel.OrderRun, 2}, order{carrel.OrderPause, 3}))
}

func TestWhatInterruptsAStep(t *testing.T) {
	pause := order{carrel.OrderPause, 2}
	require.True(t, interrupts(stepCapture, pause, order{carrel.OrderRun, 3}))
	require.True(t, interrupts(stepCapture, pause, order{carrel.OrderStop, 3}))
	require.False(t, interrupts(stepCapture, pause, order{carrel.OrderPause, 3}), "the same again changes nothing")
	for _, s := range []step{stepStart, stepCommit, stepSalvage} {
		require.True(t, interrupts(s, order{carrel.OrderRun, 1}, order{carrel.OrderDestroy, 2}))
		require.False(t, interrupts(s, order{carrel.OrderRun, 1}, order{carrel.OrderPause, 2}))
	}
	require.False(t, interrupts(stepDestroy, order{carrel.OrderDestroy, 1}, order{carrel.OrderRun, 2}))
}
