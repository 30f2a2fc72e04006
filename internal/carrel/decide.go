package carrel

import (
	"fmt"
	"slices"
	"time"
)

const (
	// PolicyRetry is how long after a pause or stop by the policy did not succeed it is tried again.
	PolicyRetry = 5 * time.Minute
	// SilentNode is how long a node may be silent before what it said of a run's use is too old to act on. Nodes speak every 5 s.
	SilentNode = 20 * time.Second
	// silentLook is how soon after it is looked again.
	silentLook = 5 * time.Second
	// ReasonActive is why a pause or stop by the policy was undone: somebody used the box meanwhile.
	ReasonActive = "active"
)

// IdleView is what deciding about the policy of a box needs to know, as one read of the store saw it.
type IdleView struct {
	Box       *BoxView
	CreatedAt time.Time
	// IntentAt is when the intent changed last.
	IntentAt time.Time
	Sources  IdleSources
	// AwakeUntil is what `keep-awake` asked for; zero: nothing.
	AwakeUntil time.Time
	// Signals are of the run with the epoch SignalEpoch.
	Signals     []Signal
	SignalEpoch int64
	// NodeSeen is when the node of the live run was heard last.
	NodeSeen time.Time
}

// Deadline is a time at which a rule acts unless something happens before.
type Deadline struct {
	Rule   Rule
	At     time.Time
	Action string // pause, stop, delete or nothing
	SetBy  string
}

// PolicyAct is a change that the policy makes now.
type PolicyAct struct {
	// Rule that acts, or whose deed is taken back.
	Rule Rule
	// Intent of the box from now on. With Mark it is what it was: all that changes is IdleSince.
	Intent Intent
	Mark   bool
	// IdleSince is the time after which activity undoes the intent, or with IntentRunning since when the box is idle.
	IdleSince time.Time
	// Message says what is done and why, to a person.
	Message string
}

// Decision is what the policy says of a box at a time.
type Decision struct {
	// Deadlines that are ahead or due, the next first.
	Deadlines []Deadline
	// LastActivity is the newest time that counts; zero without a run that runs.
	LastActivity time.Time
	// Active: something that counts goes on, so no deadline of idleness can be told.
	Active bool
	// Act is what to do now, or nil.
	Act *PolicyAct
	// Look is when to decide again if nothing changes before; zero: only after a change. It is never later than the first
	// time at which something could be due, whatever is reported until then.
	Look time.Time
}

// RunningSince is when the run was first seen running; zero if it was not.
func (r *RunView) RunningSince() time.Time {
	for _, p := range r.Phases {
		if p.Phase == PhaseRunning {
			return p.At
		}
	}
	return time.Time{}
}

// ByPolicy reports whether the intent is one of the policy's.
func (v *BoxView) ByPolicy() bool {
	_, ok := RuleOf(v.IntentBy)
	return ok
}

// takenBack reports whether a pause or stop for idleness was undone because the box was used.
func (v *BoxView) takenBack() bool {
	return v.IntentBy == RuleIdle.Actor() && v.Intent == IntentRunning && v.IdleSince.IsZero()
}

// LastActivity is the newest time that counts in the life of the live run, and whether something that counts goes on. What is
// known of an earlier run says nothing of this one, which was used when it became running.
func (v *IdleView) LastActivity(now time.Time) (at time.Time, active bool) {
	at = v.Box.Run.RunningSince()
	// Asking for a box that runs is using it, and so was what undid a pause, of which a report is still to come.
	if v.Box.Intent == IntentRunning && (!v.Box.ByPolicy() || v.Box.takenBack()) {
		at = latest(at, v.IntentAt)
	}
	if v.SignalEpoch == v.Box.Epoch {
		seen, goesOn := LastCounting(v.Signals)
		if seen.After(now) {
			seen = now // the node's clock is ahead
		}
		at, active = latest(at, seen), goesOn
	}
	if active {
		at = latest(at, now)
	}
	return latest(at, v.AwakeUntil), active
}

// DecideIdle is what the policy of a box says at a time. It is a pure function.
func DecideIdle(v *IdleView, now time.Time) Decision {
	b, policy := v.Box, v.Sources.Policy()
	var d Decision
	if b.Deleted || b.Intent == IntentDeleted {
		return d
	}
	if policy.TTL > 0 {
		d.add(Deadline{RuleTTL, v.CreatedAt.Add(policy.TTL), "delete", v.Sources.SetBy(RuleTTL)})
	}
	undone := b.Live() && b.Observe() == ObservedUndone
	// Who asked for a pause that did not succeed has a box that runs on, and the policy holds for it again.
	runs := undone || b.Live() && b.Run.Phase == PhaseRunning && b.EffectiveIntent() == IntentRunning
	if runs {
		v.decideRun(&d, policy, now)
	}
	slices.SortStableFunc(d.Deadlines, func(a, b Deadline) int { return a.At.Compare(b.At) })
	for _, l := range d.Deadlines {
		if !l.At.After(now) && l.Action != string(IdleNothing) && (d.Act == nil || l.Rule == RuleTTL) {
			d.Act = v.act(l, &d)
		}
	}
	switch {
	case undone && b.ByPolicy() && (d.Act == nil || d.Act.Intent != IntentDeleted):
		d.Act = v.takeBack()
	case runs && !undone && d.Act == nil:
		d.Act = v.mark(&d, now)
	}
	if d.Act != nil {
		d.look(now)
	}
	return d
}

// decideRun adds the deadlines of a run that runs, and when to look again.
func (v *IdleView) decideRun(d *Decision, policy IdlePolicy, now time.Time) {
	d.LastActivity, d.Active = v.LastActivity(now)
	// After a try that did not succeed the rules wait.
	var notBefore time.Time
	if v.Box.ByPolicy() {
		notBefore = v.IntentAt.Add(PolicyRetry)
		if v.Box.takenBack() {
			notBefore = time.Time{}
		}
	}
	if policy.MaxRun > 0 {
		action := policy.Action
		if action == IdleNothing {
			action = IdlePause
		}
		d.add(Deadline{RuleMaxRun, latest(v.Box.Run.RunningSince().Add(policy.MaxRun), notBefore), string(action), v.Sources.SetBy(RuleMaxRun)})
	}
	if d.Active {
		d.look(now.Add(policy.After)) // it may end a moment from now
		return
	}
	idle := d.LastActivity.Add(policy.After)
	if policy.Action == IdleNothing && !idle.After(now) {
		return // it is idle, and nothing is done: a report of use has it looked at again
	}
	if idle = latest(idle, notBefore); idle.After(now) || now.Sub(v.NodeSeen) < SilentNode {
		d.add(Deadline{RuleIdle, idle, string(policy.Action), v.Sources.SetBy(RuleIdle)})
		return
	}
	d.look(now.Add(silentLook)) // nobody knows whether it is used
}

func (d *Decision) add(l Deadline) {
	d.Deadlines = append(d.Deadlines, l)
	d.look(l.At)
}

func (d *Decision) look(at time.Time) {
	if d.Look.IsZero() || at.Before(d.Look) {
		d.Look = at
	}
}

// act makes the change for a rule that is due.
func (v *IdleView) act(l Deadline, d *Decision) *PolicyAct {
	policy := v.Sources.Policy()
	a := &PolicyAct{Rule: l.Rule}
	done := map[string]string{"pause": "paused", "stop": "stopped", "delete": "deleted"}[l.Action]
	switch l.Action {
	case "delete":
		a.Intent = IntentDeleted
	case string(IdleStop):
		a.Intent = IntentStopped
	default:
		a.Intent = IntentPaused
	}
	switch l.Rule {
	case RuleTTL:
		a.Message = fmt.Sprintf("%s because its time to live of %s is over (policy of %s)", done, FormatPeriod(policy.TTL), l.SetBy)
	case RuleMaxRun:
		a.Message = fmt.Sprintf("%s because it ran for %s, as long as one run may (policy of %s)", done, FormatPeriod(policy.MaxRun), l.SetBy)
	default:
		a.IdleSince = d.LastActivity
		a.Message = fmt.Sprintf("%s because nobody used it for %s (policy of %s)", done, FormatPeriod(policy.After), l.SetBy)
	}
	return a
}

// takeBack answers a pause or stop by the policy that was undone: running is wanted again. If it was for use, that is all; after
// another failure the box stays marked idle and the rule tries again later.
func (v *IdleView) takeBack() *PolicyAct {
	b := v.Box
	order := string(b.Run.FailedOrder)
	rule, _ := RuleOf(b.IntentBy)
	a := &PolicyAct{Rule: rule, Intent: IntentRunning}
	if b.Run.Reason == ReasonActive {
		a.Message = fmt.Sprintf("runs on: somebody used it while the %s was under way", order)
		return a
	}
	a.IdleSince = b.IdleSince
	a.Message = fmt.Sprintf("runs on: the %s did not succeed and is tried again in %s: %s", order, FormatPeriod(PolicyRetry), b.Run.Message)
	return a
}

// mark notes that a running box became idle, or is not any more. Idle boxes that are about to be paused are marked by that.
func (v *IdleView) mark(d *Decision, now time.Time) *PolicyAct {
	policy := v.Sources.Policy()
	idle := !d.Active && !d.LastActivity.Add(policy.After).After(now)
	switch marked := !v.Box.IdleSince.IsZero(); {
	case idle && !marked && policy.Action == IdleNothing:
		return &PolicyAct{
			Rule: RuleIdle, Intent: v.Box.Intent, Mark: true, IdleSince: d.LastActivity,
			Message: fmt.Sprintf("idle: nobody used it for %s; nothing is done about that (policy of %s)", FormatPeriod(policy.After), v.Sources.SetBy(RuleIdle)),
		}
	case marked && !idle:
		return &PolicyAct{Rule: RuleIdle, Intent: v.Box.Intent, Mark: true, Message: "used again"}
	}
	return nil
}
