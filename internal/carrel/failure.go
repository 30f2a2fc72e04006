package carrel

import "time"

// Reasons why a box is not as it is wanted: a closed set, shown by every API.
const (
	ReasonNoRoom               = "no_room"
	ReasonTooLarge             = "too_large"
	ReasonNoNode               = "no_node"
	ReasonImageMissing         = "image_missing"
	ReasonSnapshotCorrupt      = "snapshot_corrupt"
	ReasonSnapshotIncompatible = "snapshot_incompatible"
	ReasonSnapshotMissing      = "snapshot_missing"
	ReasonDiskFull             = "disk_full"
	ReasonSandboxDied          = "sandbox_died"
	ReasonOutOfMemory          = "out_of_memory"
	ReasonAgentSilent          = "agent_silent"
	ReasonRuntimeError         = "runtime_error"
	ReasonNodeLost             = "node_lost"    // the node of a live run is silent
	ReasonNodeOffline          = "node_offline" // the node that a new run needs is silent
	ReasonStartupFailed        = "startup_failed"
	ReasonPrepareFailed        = "prepare_failed" // what a template's prebuild does did not succeed
	ReasonNotRunning           = "not_running"
	ReasonQueued               = "queued" // its node has as many boxes to start or resume as it takes at once
)

// Remedy is what follows from a reason.
type Remedy struct {
	// Transient causes are tried again; a permanent failure stays until a new request.
	Transient bool
	// MaxAttempts ends the trying of a transient cause; 0: never.
	MaxAttempts int
	// MaxDelay is the longest pause between two attempts.
	MaxDelay time.Duration
	// NextStep tells a person what to do.
	NextStep string
}

// FirstDelay is the pause before the second attempt; each further one is twice as long, up to MaxDelay.
const (
	FirstDelay = time.Second
	MaxDelay   = 5 * time.Minute
	// StableAfter is how long a run must have run for its end to begin a new count of attempts.
	StableAfter = 10 * time.Minute
)

const coldStart = "Start the box from its committed files, giving up the memory: `carrel start NAME --cold`."

// Remedies is the one table of what follows from a reason. Attempts that only ask whether there is room
// cost nothing and stay frequent (an image that no node has may have been built just now); those that begin a run end after a while, because a box that cannot
// start a dozen times will not start by itself.
var Remedies = map[string]Remedy{
	ReasonNoRoom:               {Transient: true, MaxDelay: 10 * time.Second, NextStep: "Stop or delete a box, or make this one smaller. Carrel goes on trying."},
	ReasonTooLarge:             {NextStep: "Make the box smaller, or add a larger node, then start it again."},
	ReasonNoNode:               {Transient: true, MaxDelay: 5 * time.Second, NextStep: "See `carrel node list`: start a node, or make one schedulable. Carrel goes on trying."},
	ReasonImageMissing:         {Transient: true, MaxAttempts: 4, MaxDelay: 5 * time.Second, NextStep: "Build or import the image again (see `carrel image list`), then start the box."},
	ReasonSnapshotCorrupt:      {NextStep: coldStart},
	ReasonSnapshotIncompatible: {NextStep: coldStart},
	ReasonSnapshotMissing:      {NextStep: "Bring back the node or the disk that held the box's files, then start the box."},
	ReasonDiskFull:             {Transient: true, MaxDelay: MaxDelay, NextStep: "Free space on the node's disk: delete boxes or images. Carrel goes on trying."},
	ReasonSandboxDied:          {Transient: true, MaxAttempts: 12, MaxDelay: MaxDelay, NextStep: "See `carrel events NAME` and the node's log."},
	ReasonOutOfMemory:          {Transient: true, MaxAttempts: 12, MaxDelay: MaxDelay, NextStep: "Give the box more memory with --memory, or run less in it."},
	ReasonAgentSilent:          {Transient: true, MaxAttempts: 8, MaxDelay: MaxDelay, NextStep: "See the node's log. If the image is your own, look whether it has what a box needs."},
	ReasonRuntimeError:         {Transient: true, MaxAttempts: 8, MaxDelay: MaxDelay, NextStep: "See the node's log, then start the box again."},
	ReasonNodeLost:             {Transient: true, MaxDelay: 15 * time.Second, NextStep: "Look after the node (`carrel node list`): the box and its files are on it."},
	ReasonNodeOffline:          {Transient: true, MaxDelay: 5 * time.Second, NextStep: "Bring the node back: the box's files are on it. Carrel goes on trying."},
	ReasonStartupFailed:        {NextStep: "Correct the template's startup commands, then start the box again."},
	ReasonPrepareFailed:        {Transient: true, MaxDelay: MaxDelay, NextStep: "Correct what the template says under prebuild and push it again."},
	ReasonQueued:               {Transient: true, MaxDelay: time.Second, NextStep: "Wait: it is started when its turn comes."},
	ReasonNotRunning:           {NextStep: "Start the box with `carrel start NAME`; only a running box can be paused."},
}

// RemedyOf looks up the table. A reason that is not in it, from a newer node, is treated as the node
// says, like runtime_error.
func RemedyOf(reason string, transient bool) Remedy {
	if r, ok := Remedies[reason]; ok {
		return r
	}
	r := Remedies[ReasonRuntimeError]
	r.Transient = transient
	return r
}

// Delay is the pause after so many failed attempts, of which there is at least one.
func (r Remedy) Delay(attempts int) time.Duration {
	delay := FirstDelay
	for n := 1; n < attempts && delay < r.MaxDelay; n++ {
		delay *= 2
	}
	return min(delay, r.MaxDelay)
}

// placing reports whether a failure came about before there was a run.
func placing(reason string) bool {
	return reason == ReasonNoRoom || reason == ReasonNoNode || reason == ReasonNodeOffline || reason == ReasonQueued
}

// NewFailure is what to record after one more attempt for the box's present intent failed. transient
// counts only for reasons that are not in the table.
func NewFailure(v *BoxView, reason, message string, transient bool, now time.Time) Failure {
	remedy := RemedyOf(reason, transient)
	f := Failure{
		Reason: reason, Message: message, NextStep: remedy.NextStep, Transient: remedy.Transient,
		Attempts: 1, Generation: v.Generation, At: now,
	}
	if v.Run != nil {
		f.RunID = v.Run.ID
	}
	// Waiting for room says nothing of how well the box runs, and a run that was stable begins anew.
	last := v.Failure
	if last != nil && last.Generation == v.Generation && placing(last.Reason) == placing(reason) && (last.RunID == f.RunID || !v.Run.stable()) {
		f.Attempts = last.Attempts + 1
	}
	if remedy.MaxAttempts > 0 && f.Attempts >= remedy.MaxAttempts {
		f.Transient = false
	}
	if f.Transient {
		f.RetryAt = now.Add(remedy.Delay(f.Attempts))
	}
	return f
}

// Unrecorded reports whether the newest run failed and the box's failure does not speak of it yet.
func (v *BoxView) Unrecorded() bool {
	return v.Run != nil && v.Run.Phase == PhaseFailed && v.Run.AnsweredGeneration() >= v.Generation &&
		(v.Failure == nil || v.Failure.RunID != v.Run.ID || v.Failure.Reason == ReasonNodeLost)
}

// stable reports whether a run ran long enough to forget the failures before it.
func (r *RunView) stable() bool {
	var from, to time.Time
	for _, p := range r.Phases {
		if p.Phase == PhaseRunning && from.IsZero() {
			from = p.At
		}
		to = latest(to, p.At)
	}
	return !from.IsZero() && to.Sub(from) >= StableAfter
}
