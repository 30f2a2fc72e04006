package node

import "carrel.dev/carrel/internal/carrel"

// stage is how far the ledger knows a run to be. It is what a restarted daemon goes on from.
type stage string

const (
	// stageStarting: its files may exist and its sandbox may run, but nobody was told of it: a start is
	// begun again from nothing.
	stageStarting stage = "starting"
	// stageRunning: people may have worked in it; whatever happens now, its files are kept.
	stageRunning stage = "running"
	// stageCommitting: a sealed snapshot was or will be proposed to control; the outcome may be unknown.
	stageCommitting stage = "committing"
	// stageSalvaging: its sandbox died, its files are being saved.
	stageSalvaging stage = "salvaging"
	// stageClearing: control has its last snapshot and was told how it ended; its sandbox stays frozen until the disk has given the snapshot
	// back, and is removed then.
	stageClearing stage = "clearing"
	// stageEnded: nothing of it is left here but what is to be told.
	stageEnded stage = "ended"
)

// sandboxState is what there is of a run in the runtime.
type sandboxState string

const (
	sandboxAbsent  sandboxState = "absent"
	sandboxRunning sandboxState = "running"
	sandboxFrozen  sandboxState = "frozen"
	sandboxExited  sandboxState = "exited"
)

// seen is what a worker found out about its run.
type seen struct {
	sandbox sandboxState
	// sealed is the kind of the complete snapshot of the run that lies on disk and was not taken back; empty:
	// there is none. At most one exists, because a run ends with it.
	sealed carrel.SnapshotKind
	// identity is the newest of the run that control told.
	identity int64
}

// order is what control wants of a run, and for which generation of the box's intent.
type order struct {
	kind       carrel.Order
	generation int64
}

// step is what a run needs next.
type step string

const (
	stepNothing  step = "nothing"
	stepStart    step = "start"    // from nothing, removing what a killed attempt left
	stepCapture  step = "capture"  // freeze it and make a sealed snapshot
	stepUndo     step = "undo"     // take a capture back and let the box go on
	stepCommit   step = "commit"   // propose the sealed snapshot, and end the run when it is accepted
	stepClear    step = "clear"    // verify the snapshot of a run that is over and remove what is left of the run
	stepSalvage  step = "salvage"  // save the files of a sandbox that died
	stepDestroy  step = "destroy"  // remove all of it, commit nothing
	stepIdentify step = "identify" // tell the agent whose the box is now, and control that it runs
	stepAnnounce step = "announce" // tell control that it runs for a newer intent, too
)

// nextStep decides. It is pure: everything it knows is in its arguments.
func nextStep(e *entry, s seen, o order) step {
	switch e.Stage {
	case stageEnded:
		return stepNothing
	case stageClearing:
		return stepClear
	}
	if o.kind == carrel.OrderDestroy {
		return stepDestroy
	}
	switch e.Stage {
	case stageStarting:
		return stepStart
	case stageSalvaging:
		return stepSalvage
	case stageCommitting:
		if s.sealed != "" {
			return stepCommit // whatever is wanted now: the snapshot may be the box's newest state already
		}
		return stepUndo // the snapshot was refused and taken back
	}
	wanted := wantedKind(o.kind)
	if e.FailedOrder == o.kind && e.FailedGeneration == o.generation {
		wanted = "" // it was tried for this very intent; another try needs a new one
	}
	switch s.sandbox {
	case sandboxRunning:
		switch {
		case s.sealed != "":
			return stepUndo
		case wanted != "":
			return stepCapture
		case s.identity > e.Identity:
			return stepIdentify
		case o.kind == carrel.OrderRun && o.generation > e.Generation:
			return stepAnnounce
		}
		return stepNothing
	case sandboxFrozen:
		switch {
		case wanted == "":
			return stepUndo
		case s.sealed == wanted:
			return stepCommit
		case s.sealed != "":
			return stepUndo // a pause became a stop or the other way round
		}
		return stepCapture
	}
	// The sandbox is gone. A sealed snapshot is then its last state: a box is thawed only after the snapshot was
	// taken back.
	if s.sealed != "" {
		return stepCommit
	}
	return stepSalvage
}

// wantedKind is the snapshot that an order ends in.
func wantedKind(o carrel.Order) carrel.SnapshotKind {
	switch o {
	case carrel.OrderPause:
		return carrel.SnapshotMemory
	case carrel.OrderStop:
		return carrel.SnapshotDisk
	}
	return ""
}

// endPhase is the phase that a committed snapshot of a live sandbox leads to.
func endPhase(kind carrel.SnapshotKind) carrel.Phase {
	if kind == carrel.SnapshotMemory {
		return carrel.PhasePaused
	}
	return carrel.PhaseStopped
}
