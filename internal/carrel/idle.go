package carrel

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// IdleAction is what becomes of a run that nobody uses any more.
type IdleAction string

const (
	IdlePause   IdleAction = "pause"
	IdleStop    IdleAction = "stop"
	IdleNothing IdleAction = "nothing"
)

// Values of IdlePolicy that say "not at all", where leaving a field out says "as the template has it".
const (
	Never    time.Duration = -1 // of MaxRun and TTL
	NeverCPU int64         = -1 // of BusyCPUMillis
)

// IdlePolicy says what becomes of a box that nobody uses. A zero field says nothing: the template's value holds, then the
// default's.
type IdlePolicy struct {
	// After is how long nothing that counts may happen before the box is idle.
	After  time.Duration `json:"after,omitempty"`
	Action IdleAction    `json:"action,omitempty"`
	// MaxRun is how long one run may last, used or not; Never: any time.
	MaxRun time.Duration `json:"max_run,omitempty"`
	// TTL is how long after it was made a box is deleted; Never: it is not.
	TTL time.Duration `json:"ttl,omitempty"`
	// BusyCPUMillis is the CPU, in thousandths of a core, above which a box counts as working; NeverCPU: CPU does not count.
	BusyCPUMillis int64 `json:"busy_cpu_millis,omitempty"`
	// Wake says whether a login or a request starts or resumes the box: "yes" or "no".
	Wake string `json:"wake,omitempty"`
	// KeepShell is how long a shell is kept after its connection was lost.
	KeepShell time.Duration `json:"keep_shell,omitempty"`
}

// DefaultIdle fills what neither box nor template says.
var DefaultIdle = IdlePolicy{
	After: 30 * time.Minute, Action: IdlePause, MaxRun: Never, TTL: Never, BusyCPUMillis: 200, Wake: "yes", KeepShell: 10 * time.Minute,
}

const (
	day = 24 * time.Hour
	// MaxKeepAwake is the longest time for which a box can be kept awake at once.
	MaxKeepAwake = 7 * day
)

// idleDurations are the fields that are times, with the range of each.
var idleDurations = []struct {
	name     string
	get      func(*IdlePolicy) *time.Duration
	min, max time.Duration
	never    bool
}{
	{"after", func(p *IdlePolicy) *time.Duration { return &p.After }, time.Second, 30 * day, false},
	{"max_run", func(p *IdlePolicy) *time.Duration { return &p.MaxRun }, time.Second, 366 * day, true},
	{"ttl", func(p *IdlePolicy) *time.Duration { return &p.TTL }, time.Second, 3660 * day, true},
	{"keep_shell", func(p *IdlePolicy) *time.Duration { return &p.KeepShell }, time.Second, day, false},
}

// Or returns p with what it does not say taken from base.
func (p IdlePolicy) Or(base IdlePolicy) IdlePolicy {
	for _, f := range idleDurations {
		if d := f.get(&p); *d == 0 {
			*d = *f.get(&base)
		}
	}
	if p.Action == "" {
		p.Action = base.Action
	}
	if p.BusyCPUMillis == 0 {
		p.BusyCPUMillis = base.BusyCPUMillis
	}
	if p.Wake == "" {
		p.Wake = base.Wake
	}
	return p
}

// Validate checks what the policy says; what it does not say is no error. The error names the field in its metadata.
func (p IdlePolicy) Validate() error {
	bad := func(field, format string, args ...any) error {
		e := Errorf(CodeInvalid, "bad_idle_policy", "idle."+field+" "+format, args...)
		e.Metadata = map[string]string{"field": field}
		return e
	}
	for _, f := range idleDurations {
		d := *f.get(&p)
		if d == 0 || d == Never && f.never {
			continue
		}
		if d < f.min || d > f.max {
			or := ""
			if f.never {
				or = ", or never"
			}
			return bad(f.name, "is %s; it must be from %s to %s%s", FormatPeriod(d), FormatPeriod(f.min), FormatPeriod(f.max), or)
		}
	}
	switch p.Action {
	case "", IdlePause, IdleStop, IdleNothing:
	default:
		return bad("action", "is %q; it is pause, stop or nothing", p.Action)
	}
	if p.BusyCPUMillis != 0 && p.BusyCPUMillis != NeverCPU && (p.BusyCPUMillis < 10 || p.BusyCPUMillis > MaxResources.CPUMillis) {
		return bad("busy_cpu", "is %d thousandths of a core; it must be from 10 to %d, or never", p.BusyCPUMillis, MaxResources.CPUMillis)
	}
	if p.Wake != "" && p.Wake != "yes" && p.Wake != "no" {
		return bad("wake", "is %q; it is yes or no", p.Wake)
	}
	return nil
}

// IdleSources are where the policy of a box comes from.
type IdleSources struct {
	Box      IdlePolicy
	Template IdlePolicy
	// TemplateName is NAME@VERSION.
	TemplateName string
}

// Policy is the one in force, complete.
func (s IdleSources) Policy() IdlePolicy { return s.Box.Or(s.Template).Or(DefaultIdle) }

// SetBy says who set a part of the policy: "box", "template NAME@VERSION" or "default".
func (s IdleSources) SetBy(rule Rule) string {
	says := func(p IdlePolicy) bool {
		switch rule {
		case RuleMaxRun:
			return p.MaxRun != 0
		case RuleTTL:
			return p.TTL != 0
		}
		return p.After != 0 || p.Action != ""
	}
	switch {
	case says(s.Box):
		return "box"
	case says(s.Template):
		return "template " + s.TemplateName
	}
	return "default"
}

// Rule is a part of the policy that ends runs.
type Rule string

const (
	RuleIdle   Rule = "idle"
	RuleMaxRun Rule = "max_run"
	RuleTTL    Rule = "ttl"
)

// Actor is how the rule is called where it is written who changed an intent.
func (r Rule) Actor() string { return "policy:" + string(r) }

// RuleOf is the rule that set an intent, and false if a user did.
func RuleOf(actor string) (Rule, bool) {
	rule, ok := strings.CutPrefix(actor, "policy:")
	return Rule(rule), ok
}

var periodPattern = regexp.MustCompile(`^(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?$`)

// ParsePeriod reads a time such as 90s, 30m, 12h, 7d or 1h30m. The error is a *Error with the reason bad_period whose message
// completes a sentence that begins with what the time is of.
func ParsePeriod(text string) (time.Duration, error) {
	m := periodPattern.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil || m[0] == "" {
		shown := text
		if len(shown) > 40 {
			shown = shown[:40] + "…"
		}
		return 0, Errorf(CodeInvalid, "bad_period", "is %q, which is no length of time; write it such as 90s, 30m, 12h or 7d", shown)
	}
	var d time.Duration
	for i, unit := range []time.Duration{day, time.Hour, time.Minute, time.Second} {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.ParseInt(m[i+1], 10, 64)
		// No more than this fits into a time, and none of ours is a hundred years long.
		if err != nil || time.Duration(n) > 36_500*day/unit {
			return 0, Errorf(CodeInvalid, "bad_period", "is %q, which is too long", text)
		}
		d += time.Duration(n) * unit
	}
	return d, nil
}

// FormatPeriod writes a time as ParsePeriod reads it, rounded to seconds.
func FormatPeriod(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	d = d.Round(time.Second)
	if d == 0 {
		return "0s"
	}
	text := ""
	for _, u := range []struct {
		of   time.Duration
		name string
	}{{day, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if n := int64(d / u.of); n > 0 {
			text += fmt.Sprint(n) + u.name
			d %= u.of
		}
	}
	return text
}
