package carrel

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var idleZero = time.Unix(1_700_000_000, 0).UTC()

// idleView is a box that became running at idleZero, with a policy of 30 minutes from its template.
func idleView() *IdleView {
	return &IdleView{
		Box: &BoxView{
			ID: "b", Intent: IntentRunning, IntentBy: "user:u", Generation: 1, BootGeneration: 1, Epoch: 1,
			Run: &RunView{ID: "r", NodeID: "n", Epoch: 1, BootGeneration: 1, Phase: PhaseRunning, Generation: 1, Phases: []PhaseAt{
				{PhaseAssigned, idleZero.Add(-2 * time.Second), 1}, {PhaseRunning, idleZero, 1},
			}},
		},
		CreatedAt: idleZero.Add(-time.Minute), IntentAt: idleZero.Add(-time.Minute), SignalEpoch: 1, NodeSeen: idleZero.Add(100 * 24 * time.Hour),
		Sources: IdleSources{Template: IdlePolicy{After: 30 * time.Minute, Action: IdlePause}, TemplateName: "base@1"},
	}
}

func at(minutes int) time.Time { return idleZero.Add(time.Duration(minutes) * time.Minute) }

// Each row of the rule table: what counts moves the deadline, what lasts holds it off for as long as it lasts, and nothing else does either.
func TestEveryRowOfTheRuleTable(t *testing.T) {
	for _, rule := range SignalRules {
		t.Run(string(rule.Kind), func(t *testing.T) {
			v := idleView()
			v.Signals = []Signal{{Kind: rule.Kind, At: at(20)}}
			d := DecideIdle(v, at(31))
			if rule.Counts {
				require.Nil(t, d.Act, "used 11 minutes ago")
				require.Equal(t, []Deadline{{RuleIdle, at(50), "pause", "template base@1"}}, d.Deadlines)
				require.Equal(t, at(50), d.Look)
			} else {
				require.NotNil(t, d.Act, "it does not count")
				require.Equal(t, idleZero, d.Act.IdleSince)
			}

			v.Signals = []Signal{{Kind: rule.Kind, At: at(1), Active: true}}
			d = DecideIdle(v, at(31))
			require.Equal(t, rule.Counts && rule.Lasts, d.Active)
			if rule.Counts && rule.Lasts {
				require.Nil(t, d.Act, "it goes on")
				require.Empty(t, d.Deadlines)
				require.Equal(t, at(61), d.Look, "it may end at any moment, and then idleness begins")
			} else {
				require.Equal(t, !rule.Counts || !at(1).Add(30*time.Minute).After(at(31)), d.Act != nil, "it does not last, whoever says so")
			}
		})
	}
	v := idleView()
	v.Signals = []Signal{{Kind: "telepathy", At: at(20), Active: true}}
	require.NotNil(t, DecideIdle(v, at(31)).Act, "a kind that is not in the table does not count")
}

func TestDecideIdle(t *testing.T) {
	for _, c := range []struct {
		name   string
		now    time.Time
		change func(*IdleView)
		want   *PolicyAct
		look   time.Time
	}{
		{"time zero is when it became running", at(29), nil, nil, at(30)},
		{"idle", at(30), nil, &PolicyAct{Rule: RuleIdle, Intent: IntentPaused, IdleSince: idleZero, Message: "paused because nobody used it for 30m (policy of template base@1)"}, at(30)},
		{"the box says stop", at(30), func(v *IdleView) { v.Sources.Box.Action = IdleStop },
			&PolicyAct{Rule: RuleIdle, Intent: IntentStopped, IdleSince: idleZero, Message: "stopped because nobody used it for 30m (policy of box)"}, at(30)},
		{"defaults", at(30), func(v *IdleView) { v.Sources = IdleSources{} },
			&PolicyAct{Rule: RuleIdle, Intent: IntentPaused, IdleSince: idleZero, Message: "paused because nobody used it for 30m (policy of default)"}, at(30)},
		{"nothing is done, but said", at(30), func(v *IdleView) { v.Sources.Box.Action = IdleNothing },
			&PolicyAct{Rule: RuleIdle, Intent: IntentRunning, Mark: true, IdleSince: idleZero, Message: "idle: nobody used it for 30m; nothing is done about that (policy of box)"}, at(30)},
		{"and said once", at(31), func(v *IdleView) { v.Sources.Box.Action = IdleNothing; v.Box.IdleSince = idleZero }, nil, time.Time{}},
		{"used again", at(31), func(v *IdleView) {
			v.Sources.Box.Action, v.Box.IdleSince = IdleNothing, idleZero
			v.Signals = []Signal{{Kind: SignalInput, At: at(30)}}
		}, &PolicyAct{Rule: RuleIdle, Intent: IntentRunning, Mark: true, Message: "used again"}, at(31)},
		{"asking for it is using it", at(31), func(v *IdleView) { v.IntentAt = at(10) }, nil, at(40)},
		{"what an earlier run was used for says nothing", at(30), func(v *IdleView) {
			v.Signals, v.SignalEpoch, v.Box.Epoch, v.Box.Run.Epoch = []Signal{{Kind: SignalCommand, At: at(29), Active: true}}, 1, 2, 2
		}, &PolicyAct{Rule: RuleIdle, Intent: IntentPaused, IdleSince: idleZero, Message: "paused because nobody used it for 30m (policy of template base@1)"}, at(30)},
		{"kept awake", at(31), func(v *IdleView) { v.AwakeUntil = at(60) }, nil, at(90)},
		{"a silent node: nobody knows", at(30), func(v *IdleView) { v.NodeSeen = at(29) }, nil, at(30).Add(silentLook)},
		{"max_run, used or not", at(60), func(v *IdleView) {
			v.Sources.Box.MaxRun = time.Hour
			v.Signals = []Signal{{Kind: SignalCPU, At: at(59), Active: true}}
		}, &PolicyAct{Rule: RuleMaxRun, Intent: IntentPaused, Message: "paused because it ran for 1h, as long as one run may (policy of box)"}, at(60)},
		{"max_run pauses where idleness does nothing", at(60), func(v *IdleView) {
			v.Sources.Box.MaxRun, v.Sources.Box.Action, v.Box.IdleSince = time.Hour, IdleNothing, idleZero
		}, &PolicyAct{Rule: RuleMaxRun, Intent: IntentPaused, Message: "paused because it ran for 1h, as long as one run may (policy of box)"}, at(60)},
		{"ttl before all", at(60), func(v *IdleView) { v.Sources.Box.TTL = time.Hour; v.Sources.Box.MaxRun = time.Minute },
			&PolicyAct{Rule: RuleTTL, Intent: IntentDeleted, Message: "deleted because its time to live of 1h is over (policy of box)"}, at(1)},
		{"ttl of what does not run", at(60), func(v *IdleView) {
			v.Sources.Template.TTL, v.Box.Run.Phase, v.Box.Intent = time.Hour, PhaseStopped, IntentStopped
		}, &PolicyAct{Rule: RuleTTL, Intent: IntentDeleted, Message: "deleted because its time to live of 1h is over (policy of template base@1)"}, at(59)},
		{"the box takes the template's limit back", at(29), func(v *IdleView) { v.Sources.Template.TTL, v.Sources.Box.TTL = time.Minute, Never }, nil, at(30)},
		{"deleted already", at(60), func(v *IdleView) { v.Sources.Box.TTL, v.Box.Intent = time.Hour, IntentDeleted }, nil, time.Time{}},
		{"paused already", at(60), func(v *IdleView) { v.Box.Run.Phase, v.Box.Intent = PhasePaused, IntentPaused }, nil, time.Time{}},
		{"on its way", at(60), func(v *IdleView) { v.Box.Run.Phase = PhaseStarting }, nil, time.Time{}},
		{"undone for use", at(31), undoneBy(ReasonActive, "used"), &PolicyAct{Rule: RuleIdle, Intent: IntentRunning, Message: "runs on: somebody used it while the pause was under way"}, at(31)},
		{"undone for another reason", at(31), undoneBy(ReasonDiskFull, "the disk is full"),
			&PolicyAct{Rule: RuleIdle, Intent: IntentRunning, IdleSince: idleZero, Message: "runs on: the pause did not succeed and is tried again in 5m: the disk is full"}, at(31)},
		{"tried again later", at(35), func(v *IdleView) { v.Box.IntentBy, v.Box.IdleSince, v.IntentAt = "policy:idle", idleZero, at(31) }, nil, at(36)},
		{"tried again", at(36), func(v *IdleView) { v.Box.IntentBy, v.Box.IdleSince, v.IntentAt = "policy:idle", idleZero, at(31) },
			&PolicyAct{Rule: RuleIdle, Intent: IntentPaused, IdleSince: idleZero, Message: "paused because nobody used it for 30m (policy of template base@1)"}, at(36)},
		{"taken back, and the report of use is still to come", at(32), func(v *IdleView) { v.Box.IntentBy, v.IntentAt = "policy:idle", at(31) }, nil, at(61)},
		{"a user's pause did not succeed: the policy holds", at(31), func(v *IdleView) { undoneBy(ReasonDiskFull, "x")(v); v.Box.IntentBy = "user:u" },
			&PolicyAct{Rule: RuleIdle, Intent: IntentPaused, IdleSince: idleZero, Message: "paused because nobody used it for 30m (policy of template base@1)"}, at(30)},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := idleView()
			if c.change != nil {
				c.change(v)
			}
			d := DecideIdle(v, c.now)
			require.Equal(t, c.want, d.Act)
			require.Equal(t, c.look, d.Look)
			for n, l := range d.Deadlines[min(1, len(d.Deadlines)):] {
				require.False(t, l.At.Before(d.Deadlines[n].At), "the next comes first")
			}
		})
	}
}

func undoneBy(reason, message string) func(*IdleView) {
	return func(v *IdleView) {
		v.Box.Intent, v.Box.IntentBy, v.Box.IdleSince, v.Box.Generation, v.IntentAt = IntentPaused, "policy:idle", idleZero, 2, at(30)
		v.Box.Run.Generation, v.Box.Run.FailedOrder, v.Box.Run.Reason, v.Box.Run.Message = 2, OrderPause, reason, message
	}
}

// Between the time that Look says and now nothing is due, whatever is reported meanwhile: so a report need not know the policy.
func TestLookIsNeverTooLate(t *testing.T) {
	for _, kind := range []SignalKind{SignalInput, SignalCommand, SignalCPU, SignalSession} {
		for first := range 40 {
			for _, active := range []bool{false, true} {
				v := idleView()
				v.Signals = []Signal{{Kind: kind, At: at(first / 2), Active: active}}
				before := DecideIdle(v, at(first))
				if before.Act != nil {
					continue
				}
				v.Signals = []Signal{{Kind: kind, At: at(first)}} // it ended a moment after it was looked at
				for now := at(first); now.Before(before.Look); now = now.Add(time.Minute) {
					require.Nil(t, DecideIdle(v, now).Act, "%s, seen at %d, looked at for %s", kind, first, before.Look)
				}
			}
		}
	}
}

func TestIdleBoxIsShownIdle(t *testing.T) {
	v := idleView().Box
	require.Equal(t, StateRunning, StateOf(v))
	v.IdleSince = idleZero
	require.Equal(t, StateIdle, StateOf(v))
	require.True(t, StatusOf(OperationView{Verb: VerbStart, Generation: 1, CreatedAt: at(1)}, v, nil).Done, "an idle box runs: a start is done")
	v.Intent, v.Generation = IntentPaused, 2
	require.Equal(t, StatePausing, StateOf(v))
}

func TestPeriods(t *testing.T) {
	for text, want := range map[string]time.Duration{"90s": 90 * time.Second, "30m": 30 * time.Minute, "12h": 12 * time.Hour, "7d": 7 * day, "1h30m": 90 * time.Minute, "0s": 0, "1d2h3m4s": 26*time.Hour + 3*time.Minute + 4*time.Second} {
		got, err := ParsePeriod(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		back, err := ParsePeriod(FormatPeriod(got))
		require.NoError(t, err)
		require.Equal(t, got, back, "%s is written %s", text, FormatPeriod(got))
	}
	for _, text := range []string{"", "5", "-5m", "1.5h", "m", "5 m", "30m1h", "999999d", "never", "5ms", strings.Repeat("9", 100) + "s"} {
		_, err := ParsePeriod(text)
		require.Equal(t, "bad_period", ReasonOf(err), text)
	}
}

func TestIdlePolicyValidate(t *testing.T) {
	require.NoError(t, IdlePolicy{}.Validate(), "it says nothing")
	require.NoError(t, DefaultIdle.Validate())
	for _, p := range []IdlePolicy{
		{After: time.Millisecond}, {After: 31 * day}, {After: Never}, {Action: "sleep"}, {MaxRun: -2}, {TTL: time.Nanosecond}, {BusyCPUMillis: 1},
		{BusyCPUMillis: -2}, {Wake: "perhaps"}, {KeepShell: 2 * day}, {KeepShell: Never},
	} {
		require.Equal(t, "bad_idle_policy", ReasonOf(p.Validate()), "%+v", p)
	}
}

// The table in docs/idle.md is the one in the code.
func TestIdleDoc(t *testing.T) {
	const path, begin, end = "../../docs/idle.md", "<!-- begin: generated from internal/carrel/activity.go -->\n", "<!-- end -->"
	var table strings.Builder
	table.WriteString("| signal | seen by | keeps awake | starts a box | what it is |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range SignalRules {
		counts := "no"
		switch {
		case r.Counts && r.Lasts:
			counts = "while it lasts"
		case r.Counts:
			counts = "yes"
		}
		wakes := "no"
		if r.Wakes {
			wakes = "yes"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s | %s |\n", r.Kind, r.By, counts, wakes, r.Meaning)
	}
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	head, rest, ok := strings.Cut(string(data), begin)
	require.True(t, ok, "docs/idle.md lost the place of its table")
	_, tail, ok := strings.Cut(rest, end)
	require.True(t, ok, "docs/idle.md lost the end of its table")
	want := head + begin + table.String() + end + tail
	if f := flag.Lookup("update"); f != nil && f.Value.String() == "true" {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(data), "run go test ./internal/carrel -run Doc -update")
}
