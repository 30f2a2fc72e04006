package carrel

import (
	"fmt"
	"time"
)

// OperationView is what deciding needs to know of one request about a box.
type OperationView struct {
	Verb       Verb
	Generation int64 // of the box's intent, as the request set it
	// BootGeneration is that of the box after a request that asks for a new boot (restart, cold start);
	// only a run of it or of a later one fulfils the request. 0 for every other.
	BootGeneration int64
	CreatedAt      time.Time
	// Settled is how the request ended, written down with the next change of intent; nil before that.
	Settled *OperationStatus
}

// OperationStatus is computed. It is stored only when a later intent would change what is computed.
type OperationStatus struct {
	Done     bool
	EndedAt  time.Time // zero if not known or not done
	Failure  *Failure  // done, and not as wanted
	Progress string
}

// StatusOf computes what became of a request from the box and all of its runs, oldest first. A request is
// done when a run reached the wanted phase for its generation or a later one, has failed when the
// box failed for its generation, and was superseded when a later intent wants something else.
func StatusOf(op OperationView, v *BoxView, runs []RunView) OperationStatus {
	if op.Settled != nil {
		return *op.Settled
	}
	goal, phase := Goal(op.Verb)
	if goal == StateDeleted {
		if v.Deleted {
			return OperationStatus{Done: true, EndedAt: latest(lastPhaseAt(runs), op.CreatedAt), Progress: "deleted"}
		}
		return OperationStatus{Progress: "deleting"}
	}
	for _, run := range runs {
		if run.BootGeneration < op.BootGeneration {
			continue
		}
		for _, p := range run.Phases {
			// A run that came up after the request fulfils it, whichever order brought it up.
			came := goal == StateRunning && p.At.After(op.CreatedAt)
			if p.Phase == phase && (p.Generation >= op.Generation || came) {
				return OperationStatus{Done: true, EndedAt: latest(p.At, op.CreatedAt), Progress: string(phase)}
			}
		}
	}
	// A run that has not answered the request before this one may be following that just now: a pause that it is told
	// to give up may be complete already. What it says next decides.
	busy := goal == StateRunning && v.Live() && v.Run.AnsweredGeneration() < op.Generation-1
	if v.Intent == IntentOf(op.Verb) && v.Generation >= op.Generation && reached(StateOf(v), goal) && !busy && v.CurrentFailure() == nil && v.Observe() != ObservedUndone {
		// Nothing had to be done, or nothing that a run has seen (memory was retired).
		return OperationStatus{Done: true, EndedAt: op.CreatedAt, Progress: string(phase)}
	}
	if IntentOf(op.Verb) != v.Intent {
		return superseded(op)
	}
	if f := v.Failure; f != nil && f.Generation >= op.Generation && !f.Transient && v.CurrentFailure() != nil {
		return OperationStatus{Done: true, EndedAt: f.At, Failure: f, Progress: "failed"}
	}
	if r := v.Run; r != nil && r.FailedOrder != OrderNone && r.Generation >= op.Generation {
		return OperationStatus{Done: true, EndedAt: lastPhaseAt([]RunView{*r}), Progress: "undone", Failure: &Failure{
			Reason: r.Reason, Message: r.Message, Transient: r.Transient, Generation: r.Generation, RunID: r.ID,
			NextStep: fmt.Sprintf("The box runs on and nothing was lost. Ask for %s again when the cause is gone.", op.Verb),
		}}
	}
	progress := string(v.Observe())
	if f := v.CurrentFailure(); f != nil {
		progress = fmt.Sprintf("waiting to try again (attempt %d): %s", f.Attempts, f.Message)
	}
	return OperationStatus{Progress: progress}
}

// Settle says whether the end of a request must be written down now, because the verb next is about to
// change the box, whose view is still that of before: what is computed later would forget how the
// request ended. It belongs into the transaction that sets the intent, as does writing down the end of
// the new request when StatusOf calls it done at once: a box that runs already may die a moment later.
func Settle(op OperationView, v *BoxView, runs []RunView, next Verb, now time.Time) (OperationStatus, bool) {
	if op.Settled != nil {
		return OperationStatus{}, false
	}
	status := StatusOf(op, v, runs)
	if !status.Done {
		if IntentOf(op.Verb) == IntentOf(next) {
			return OperationStatus{}, false
		}
		status = superseded(op)
	}
	if status.EndedAt.IsZero() {
		status.EndedAt = now
	}
	return status, true
}

// reached reports whether a box in a state is where a verb leads to: an idle box runs.
func reached(state, goal State) bool {
	return state == goal || goal == StateRunning && state == StateIdle
}

func superseded(op OperationView) OperationStatus {
	return OperationStatus{Done: true, Progress: "superseded", Failure: &Failure{
		Reason: "superseded", Message: "a later request about the same box took its place", Generation: op.Generation,
	}}
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
