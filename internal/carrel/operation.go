package carrel

import (
	"fmt"
	"time"
)

// OperationView is what deciding needs to know of one request about a box.
type OperationView struct {
	Verb       Verb
	Generation int64 // of the box's intent, as the request set it
	CreatedAt  time.Time
}

// OperationStatus is computed, never stored.
type OperationStatus struct {
	Done     bool
	EndedAt  time.Time // zero if not known or not done
	Failure  *Failure  // done, and not as wanted
	Progress string
}

// StatusOf computes what became of a request from the box and all of its runs, oldest first. A request is
// done when a run reached the wanted phase for its generation or a later one, has failed when the
// box failed for its generation, and was superseded when a later intent came first.
func StatusOf(op OperationView, v *BoxView, runs []RunView) OperationStatus {
	goal, phase := Goal(op.Verb)
	if goal == StateDeleted {
		if v.Deleted {
			return OperationStatus{Done: true, EndedAt: lastPhaseAt(runs), Progress: "deleted"}
		}
		return OperationStatus{Progress: "deleting"}
	}
	for _, run := range runs {
		for _, p := range run.Phases {
			if p.Phase == phase && p.Generation >= op.Generation {
				return OperationStatus{Done: true, EndedAt: latest(p.At, op.CreatedAt), Progress: string(phase)}
			}
		}
	}
	state := StateOf(v)
	if v.Generation == op.Generation && state == goal && v.CurrentFailure() == nil && v.Observe() != ObservedUndone {
		// Nothing had to be done, or nothing that a run has seen (memory was retired).
		return OperationStatus{Done: true, EndedAt: op.CreatedAt, Progress: string(phase)}
	}
	if f := v.Failure; f != nil && f.Generation == op.Generation && !f.Transient {
		return OperationStatus{Done: true, Failure: f, Progress: "failed"}
	}
	if r := v.Run; r != nil && r.FailedOrder != OrderNone && r.Generation == op.Generation {
		return OperationStatus{Done: true, Progress: "undone", Failure: &Failure{
			Reason: r.Reason, Message: r.Message, Transient: r.Transient, Generation: op.Generation,
			NextStep: fmt.Sprintf("The box runs on and nothing was lost. Ask for %s again when the cause is gone.", op.Verb),
		}}
	}
	if v.Generation > op.Generation {
		return OperationStatus{Done: true, Progress: "superseded", Failure: &Failure{
			Reason: "superseded", Message: "a later request about the same box took its place", Generation: op.Generation,
		}}
	}
	progress := string(v.Observe())
	if f := v.CurrentFailure(); f != nil {
		progress = fmt.Sprintf("waiting to try again (attempt %d): %s", f.Attempts, f.Message)
	}
	return OperationStatus{Progress: progress}
}

func lastPhaseAt(runs []RunView) time.Time {
	var at time.Time
	for _, run := range runs {
		for _, p := range run.Phases {
			at = latest(at, p.At)
		}
	}
	return at
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
