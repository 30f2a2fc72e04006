package carrel

import "time"

// Intent is what a user wants of a box. Control is its only writer.
type Intent string

const (
	IntentRunning Intent = "running"
	IntentPaused  Intent = "paused"
	IntentStopped Intent = "stopped"
	IntentDeleted Intent = "deleted"
	// intentRestarting is computed, never stored: running is wanted, but of a newer boot generation
	// than what lives or is remembered.
	intentRestarting Intent = "restarting"
)

// Phase is what a node saw last of a run. Paused, stopped, failed and destroyed end the run: nothing
// of it uses compute any more.
type Phase string

const (
	PhaseAssigned  Phase = "assigned" // placed, and the node has said nothing yet
	PhaseStarting  Phase = "starting"
	PhaseRunning   Phase = "running"
	PhasePausing   Phase = "pausing"
	PhaseStopping  Phase = "stopping"
	PhasePaused    Phase = "paused"
	PhaseStopped   Phase = "stopped"
	PhaseFailed    Phase = "failed"
	PhaseDestroyed Phase = "destroyed"
)

// Ended reports whether a run in this phase is over.
func (p Phase) Ended() bool {
	return p == PhasePaused || p == PhaseStopped || p == PhaseFailed || p == PhaseDestroyed
}

// Valid reports whether p is one of the phases that a node may report.
func (p Phase) Valid() bool {
	switch p {
	case PhaseStarting, PhaseRunning, PhasePausing, PhaseStopping, PhasePaused, PhaseStopped, PhaseFailed, PhaseDestroyed:
		return true
	}
	return false
}

// PhaseAt is one entry in the history of a run: when it reached a phase, and which generation of the
// box's intent that answered.
type PhaseAt struct {
	Phase      Phase     `json:"phase"`
	At         time.Time `json:"at"`
	Generation int64     `json:"generation"`
}

// SnapshotKind says what a snapshot holds: disk is root and home; memory is these and the processes.
type SnapshotKind string

const (
	SnapshotMemory SnapshotKind = "memory"
	SnapshotDisk   SnapshotKind = "disk"
)

// Order is what a node shall do with a run, computed from intent and observation.
type Order string

const (
	OrderNone    Order = ""
	OrderRun     Order = "run"
	OrderPause   Order = "pause"
	OrderStop    Order = "stop"
	OrderDestroy Order = "destroy"
)

// State is what a person sees.
type State string

const (
	StateProvisioning State = "PROVISIONING"
	StateRunning      State = "RUNNING"
	StateIdle         State = "IDLE"
	StatePausing      State = "PAUSING"
	StatePaused       State = "PAUSED"
	StateResuming     State = "RESUMING"
	StateStopping     State = "STOPPING"
	StateStopped      State = "STOPPED"
	StateFailed       State = "FAILED"
	StateDeleting     State = "DELETING"
	StateDeleted      State = "DELETED"
)

// Failure says why something did not happen, to a person.
type Failure struct {
	Reason    string    `json:"reason"`
	Message   string    `json:"message"`
	NextStep  string    `json:"next_step,omitempty"`
	Transient bool      `json:"transient"`
	RetryAt   time.Time `json:"retry_at,omitzero"` // zero unless transient
	Attempts  int       `json:"attempts"`
	// Generation is the intent that could not be fulfilled. A newer intent makes the failure history.
	Generation int64 `json:"generation"`
	// RunID is the newest run of the box when this was written down, the one that failed unless none
	// came about since.
	RunID RunID     `json:"run_id,omitempty"`
	At    time.Time `json:"at,omitzero"`
}

// RunView is what deciding needs to know of a run.
type RunView struct {
	ID             RunID
	NodeID         NodeID
	Epoch          int64
	BootGeneration int64 // of the box, when the run was assigned
	WithMemory     bool  // it was to begin from memory
	Phase          Phase
	Generation     int64 // of the intent that Phase answered
	Reason         string
	Message        string
	Transient      bool
	FailedOrder    Order // a pause or stop that was tried and undone, for Generation
	Phases         []PhaseAt
}

// SnapshotView is what deciding needs to know of the newest committed snapshot of a box.
type SnapshotView struct {
	ID             SnapshotID
	NodeID         NodeID
	Kind           SnapshotKind
	MemoryRetired  bool // its memory is given up for good
	BootGeneration int64
	At             time.Time
}

// BoxView is a box with the newest of its runs and of its snapshots, as one read of the store saw them.
type BoxView struct {
	ID             BoxID
	Intent         Intent
	Generation     int64 // raised by every change of intent
	BootGeneration int64 // raised only by a request to boot anew (restart, cold start): older memory is given up
	Epoch          int64 // of the newest run
	Deleted        bool
	Run            *RunView      // nil: there never was one
	Snapshot       *SnapshotView // nil: none was ever committed
	Failure        *Failure      // reconcile's verdict on the newest attempt, nil when all is well
	// IntentBy is who changed the intent last: user:ID or policy:RULE.
	IntentBy string
	// IdleSince is when a box was used last that the policy pauses or stops for that, or found idle; zero for every other.
	IdleSince time.Time
}

// Observed is the observation of a whole box, one column of the transition table.
type Observed string

const (
	ObservedNew      Observed = "new"      // no run yet
	ObservedStarting Observed = "starting" // assigned or booting
	ObservedResuming Observed = "resuming" // assigned or restoring memory
	ObservedRunning  Observed = "running"
	ObservedUndone   Observed = "undone" // running on, because the pause or stop of this very generation failed
	ObservedPausing  Observed = "pausing"
	ObservedStopping Observed = "stopping"
	ObservedPaused   Observed = "paused"  // no run; memory and files are committed, and nothing ran since
	ObservedStopped  Observed = "stopped" // no run; files are committed
	ObservedCrashed  Observed = "crashed" // the last run failed, after it ran or with no memory to go back to
	ObservedGone     Observed = "gone"    // the last run was destroyed
	ObservedDeleted  Observed = "deleted"
)

// Action is what the transition table answers.
type Action string

const (
	ActNothing      Action = "nothing"
	ActAssign       Action = "assign"        // make a run: with memory if there is some, else from files, else fresh
	ActRetry        Action = "retry"         // as assign, once the back-off is over; permanent failures wait for a new intent
	ActRun          Action = "order run"     // the node gets it to run, undoing a pause or stop that is not committed
	ActPause        Action = "order pause"   //
	ActStop         Action = "order stop"    //
	ActDestroy      Action = "order destroy" // tombstone
	ActRetireMemory Action = "retire memory" // the committed memory is given up, its files stay
	ActFail         Action = "fail"          // what is wanted cannot come about; say so
	ActPurge        Action = "purge"         // give up every snapshot and forget the box
)

// Intents and Observations are the rows and columns of the table, in the order they are shown.
var (
	Intents      = []Intent{IntentRunning, intentRestarting, IntentPaused, IntentStopped, IntentDeleted}
	Observations = []Observed{
		ObservedNew, ObservedStarting, ObservedResuming, ObservedRunning, ObservedUndone, ObservedPausing,
		ObservedStopping, ObservedPaused, ObservedStopped, ObservedCrashed, ObservedGone, ObservedDeleted,
	}
)

// transitions says what happens, for every intent in every observed state. docs/states.md is
// generated from it. The columns are those of Observations.
var transitions = map[Intent][12]Action{
	//                  new         starting    resuming    running     undone      pausing     stopping    paused           stopped     crashed     gone        deleted
	IntentRunning:    {ActAssign, ActRun, ActRun, ActRun, ActRun, ActRun, ActRun, ActAssign, ActAssign, ActRetry, ActAssign, ActNothing},
	intentRestarting: {ActAssign, ActStop, ActStop, ActStop, ActRun, ActStop, ActStop, ActRetireMemory, ActRetireMemory, ActRetireMemory, ActRetireMemory, ActNothing},
	IntentPaused:     {ActAssign, ActPause, ActPause, ActPause, ActRun, ActPause, ActPause, ActNothing, ActFail, ActFail, ActFail, ActNothing},
	IntentStopped:    {ActNothing, ActStop, ActStop, ActStop, ActRun, ActStop, ActStop, ActRetireMemory, ActNothing, ActRetireMemory, ActRetireMemory, ActNothing},
	IntentDeleted:    {ActPurge, ActDestroy, ActDestroy, ActDestroy, ActDestroy, ActDestroy, ActDestroy, ActPurge, ActPurge, ActPurge, ActPurge, ActNothing},
}

// Transition looks up the table.
func Transition(i Intent, o Observed) Action {
	row, ok := transitions[i]
	if !ok {
		return ActNothing
	}
	for n, column := range Observations {
		if column == o {
			return row[n]
		}
	}
	return ActNothing
}

// HasMemory reports whether the newest snapshot's memory can be used.
func (v *BoxView) HasMemory() bool {
	return v.Snapshot != nil && v.Snapshot.Kind == SnapshotMemory && !v.Snapshot.MemoryRetired
}

// Live reports whether the box has a run that is not over.
func (v *BoxView) Live() bool { return v.Run != nil && !v.Run.Phase.Ended() }

// StartsWithMemory reports whether the next run begins from the newest snapshot's memory. Memory of an
// older boot generation is never used: a restart or a cold start was asked for since.
func (v *BoxView) StartsWithMemory() bool {
	return v.HasMemory() && v.Snapshot.BootGeneration >= v.BootGeneration
}

// Ran reports whether the run was seen running, or doing what only a running one can.
func (r *RunView) Ran() bool {
	for _, p := range r.Phases {
		switch p.Phase {
		case PhaseRunning, PhasePausing, PhaseStopping:
			return true
		}
	}
	return false
}

// AnsweredGeneration is the newest generation of the box's intent that the run knew of.
func (r *RunView) AnsweredGeneration() int64 {
	generation := r.Generation
	for _, p := range r.Phases {
		generation = max(generation, p.Generation)
	}
	return generation
}

// Observe folds run and snapshot into one observation. A run that ended without ever having run
// changed nothing: the committed memory of before is still the newest state of the box.
func (v *BoxView) Observe() Observed {
	if v.Deleted {
		return ObservedDeleted
	}
	if v.Run == nil {
		switch {
		case v.HasMemory():
			return ObservedPaused
		case v.Snapshot != nil:
			return ObservedStopped
		}
		return ObservedNew
	}
	switch v.Run.Phase {
	case PhaseAssigned, PhaseStarting:
		if v.Run.WithMemory {
			return ObservedResuming
		}
		return ObservedStarting
	case PhaseRunning:
		if v.Run.FailedOrder != OrderNone && v.Run.Generation == v.Generation {
			return ObservedUndone
		}
		return ObservedRunning
	case PhasePausing:
		return ObservedPausing
	case PhaseStopping:
		return ObservedStopping
	case PhasePaused, PhaseStopped:
		if v.HasMemory() {
			return ObservedPaused
		}
		return ObservedStopped
	case PhaseFailed:
		if v.HasMemory() && !v.Run.Ran() {
			return ObservedPaused
		}
		return ObservedCrashed
	default:
		if v.HasMemory() && !v.Run.Ran() {
			return ObservedPaused
		}
		return ObservedGone
	}
}

// EffectiveIntent is the row of the table: the user's intent, or restarting.
func (v *BoxView) EffectiveIntent() Intent {
	if v.Intent != IntentRunning {
		return v.Intent
	}
	if v.Live() && v.Run.BootGeneration < v.BootGeneration {
		return intentRestarting
	}
	if !v.Live() && v.HasMemory() && v.Snapshot.BootGeneration < v.BootGeneration {
		return intentRestarting
	}
	return v.Intent
}

// Next is what the table says about the box. Giving up memory that is not there is nothing.
func (v *BoxView) Next() Action {
	action := Transition(v.EffectiveIntent(), v.Observe())
	if action == ActRetireMemory && !v.HasMemory() {
		return ActNothing
	}
	return action
}

// NeedsReconcile reports whether a reconciler has something to do for the box, now or after a back-off.
func (v *BoxView) NeedsReconcile() bool {
	switch v.Next() {
	case ActAssign, ActRetry:
		f := v.CurrentFailure()
		return f == nil || f.Transient || v.Unrecorded()
	case ActFail:
		f := v.CurrentFailure()
		return f == nil || f.Transient
	case ActRetireMemory, ActPurge:
		return true
	}
	return false
}

// OrderOf is what the node of the live run is told; OrderNone when there is no live run.
func (v *BoxView) OrderOf() Order {
	switch v.Next() {
	case ActRun:
		return OrderRun
	case ActPause:
		return OrderPause
	case ActStop:
		return OrderStop
	case ActDestroy:
		return OrderDestroy
	}
	return OrderNone
}

// CurrentFailure is the failure that speaks of the present intent, or nil. A run that came up since
// makes it history.
func (v *BoxView) CurrentFailure() *Failure {
	if v.Failure == nil || v.Failure.Generation != v.Generation {
		return nil
	}
	if v.Live() && v.Run.ID != v.Failure.RunID && v.Run.Ran() {
		return nil
	}
	return v.Failure
}

// StateOf is what a person sees of a box. It is the only place where that is decided.
func StateOf(v *BoxView) State {
	observed, intent := v.Observe(), v.EffectiveIntent()
	switch {
	case observed == ObservedDeleted:
		return StateDeleted
	case intent == IntentDeleted:
		return StateDeleting
	}
	if f := v.CurrentFailure(); f != nil && !f.Transient && !v.Live() {
		return StateFailed
	}
	switch observed {
	case ObservedUndone:
		return StateRunning
	case ObservedPaused:
		switch intent {
		case IntentPaused:
			return StatePaused
		case IntentStopped:
			return StateStopping
		case IntentRunning:
			return StateResuming
		}
		return StateProvisioning
	}
	switch intent {
	case IntentPaused:
		switch observed {
		case ObservedNew, ObservedStarting:
			return StateProvisioning
		case ObservedResuming:
			return StateResuming
		case ObservedStopped, ObservedCrashed, ObservedGone:
			return StateFailed
		}
		return StatePausing
	case IntentStopped:
		if v.Live() || v.HasMemory() {
			return StateStopping
		}
		return StateStopped
	case intentRestarting:
		if v.Live() {
			return StateStopping
		}
		return StateProvisioning
	}
	switch observed {
	case ObservedRunning:
		if !v.IdleSince.IsZero() {
			return StateIdle
		}
		return StateRunning
	case ObservedResuming, ObservedPausing:
		return StateResuming
	case ObservedCrashed, ObservedGone:
		if v.StartsWithMemory() {
			return StateResuming
		}
	}
	return StateProvisioning
}

// Goal is the state that a verb leads to, and the phase by which a run shows that it was reached.
func Goal(verb Verb) (State, Phase) {
	switch verb {
	case VerbPause:
		return StatePaused, PhasePaused
	case VerbStop:
		return StateStopped, PhaseStopped
	case VerbDelete:
		return StateDeleted, PhaseDestroyed
	}
	return StateRunning, PhaseRunning
}

// IntentOf is the intent that a verb about a box sets.
func IntentOf(verb Verb) Intent {
	switch verb {
	case VerbPause:
		return IntentPaused
	case VerbStop:
		return IntentStopped
	case VerbDelete:
		return IntentDeleted
	}
	return IntentRunning
}

// Verb names what an Operation is about.
type Verb string

const (
	VerbCreate      Verb = "create"
	VerbStart       Verb = "start"
	VerbStop        Verb = "stop"
	VerbPause       Verb = "pause"
	VerbResume      Verb = "resume"
	VerbRestart     Verb = "restart"
	VerbDelete      Verb = "delete"
	VerbBuildImage  Verb = "build_image"
	VerbImportImage Verb = "import_image"
	VerbDeleteImage Verb = "delete_image"
)
