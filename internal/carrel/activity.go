package carrel

import (
	"slices"
	"time"
)

// SignalKind is a kind of activity that was seen in or around a box.
type SignalKind string

const (
	SignalInput     SignalKind = "input"
	SignalExec      SignalKind = "exec"
	SignalCommand   SignalKind = "command"
	SignalCell      SignalKind = "cell"
	SignalPort      SignalKind = "port"
	SignalCPU       SignalKind = "cpu"
	SignalKeepAwake SignalKind = "keep_awake"
	SignalSession   SignalKind = "session"
)

// SignalRule is one row of the rule table.
type SignalRule struct {
	Kind SignalKind
	// Counts says whether it keeps a box awake.
	Counts bool
	// Lasts says that it goes on for a while, and counts for as long as it does; otherwise it is over at once.
	Lasts bool
	// Wakes says whether it starts or resumes a box that is not running, where the policy allows that.
	Wakes bool
	// By says who sees it: gateway, agent, node or control.
	By string
	// Meaning is for people.
	Meaning string
}

// SignalRules is the one table of what counts as activity. docs/idle.md is generated from it.
var SignalRules = []SignalRule{
	{SignalInput, true, false, false, "gateway", "somebody typed into a terminal, sent to the input of a process or edited a notebook in a browser"},
	{SignalExec, true, false, true, "gateway", "a login, a command or code was started, a file was written, or read for the first time in ten minutes, a program edited a notebook"},
	{SignalCommand, true, true, false, "agent", "a command runs in the foreground: one that somebody started to look at, or that is not the shell itself on a terminal"},
	{SignalCell, true, true, false, "agent", "a cell of a notebook is being executed"},
	{SignalPort, true, false, true, "gateway", "a request to a port by somebody who signed in, other than one that repeats itself without a person (polling, open WebSockets)"},
	{SignalCPU, true, true, false, "node", "the box used more CPU than `busy_cpu` on the average of the last minute"},
	{SignalKeepAwake, true, true, false, "control", "`carrel keep-awake`, until its time is over"},
	{SignalSession, false, true, false, "gateway", "a terminal, an SSH connection or a WebSocket is open, and nothing happens on it"},
}

// SignalRuleOf looks up the table. A kind that is not in it, from a newer node, does not count.
func SignalRuleOf(kind SignalKind) (SignalRule, bool) {
	n := slices.IndexFunc(SignalRules, func(r SignalRule) bool { return r.Kind == kind })
	if n < 0 {
		return SignalRule{Kind: kind}, false
	}
	return SignalRules[n], true
}

// Signal is the newest of one kind that was seen of a run.
type Signal struct {
	Kind SignalKind `json:"kind"`
	// At is when it was there last.
	At time.Time `json:"at"`
	// Active: it was there when the node looked last.
	Active bool   `json:"active,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// Counts reports whether the signal keeps a box awake.
func (s Signal) Counts() bool {
	rule, _ := SignalRuleOf(s.Kind)
	return rule.Counts
}

// LastCounting is the newest time of the signals that count, and whether one of them goes on. The time is zero if there is none.
func LastCounting(signals []Signal) (at time.Time, active bool) {
	for _, s := range signals {
		rule, _ := SignalRuleOf(s.Kind)
		if !rule.Counts {
			continue
		}
		at = latest(at, s.At)
		active = active || rule.Lasts && s.Active
	}
	return at, active
}
