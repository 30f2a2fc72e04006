package control

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// GetBoxActivity says what keeps a box awake, which rule acts next, and why it was last stopped.
func (b boxService) GetBoxActivity(ctx context.Context, req *connect.Request[carrelv1.GetBoxActivityRequest]) (*connect.Response[carrelv1.BoxActivity], error) {
	box, err := b.s.find(ctx, req.Msg.GetOrg(), req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return b.activity(ctx, box.ID)
}

// KeepBoxAwake treats a box as used for a while.
func (b boxService) KeepBoxAwake(ctx context.Context, req *connect.Request[carrelv1.KeepBoxAwakeRequest]) (*connect.Response[carrelv1.BoxActivity], error) {
	box, err := b.s.find(ctx, req.Msg.GetOrg(), req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	d := req.Msg.GetDuration().AsDuration()
	if d < 0 || d > carrel.MaxKeepAwake {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_duration", "a box can be kept awake for up to %s at once, and the request says %s", carrel.FormatPeriod(carrel.MaxKeepAwake), d)
	}
	keep := store.KeepAwake{Box: box.ID, Check: func(box *store.Box) error { return checkAwake(box, d) }}
	if d > 0 {
		keep.Until = b.s.now().Add(d)
	}
	if err := b.s.store.KeepAwake(ctx, scopeOf(ctx), keep); err != nil {
		return nil, fmt.Errorf("keep box awake: %w", err)
	}
	return b.activity(ctx, box.ID)
}

// checkAwake refuses to keep awake what sleeps.
func checkAwake(box *store.Box, d time.Duration) error {
	state := carrel.StateOf(&box.BoxView)
	switch {
	case state == carrel.StateDeleted || state == carrel.StateDeleting:
		return wrongState(box, "box %s is being deleted; nothing can be done with it any more", box.Name)
	case d > 0 && !box.Live() && box.Intent != carrel.IntentRunning:
		return wrongState(box, "box %s is %s and cannot be kept awake; start it with: carrel start %s", box.Name, word(state), box.Name)
	}
	return nil
}

func (b boxService) activity(ctx context.Context, id carrel.BoxID) (*connect.Response[carrelv1.BoxActivity], error) {
	box, err := b.s.store.PolicyBox(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read activity: %w", err)
	}
	events, err := b.s.store.StopEvents(ctx, scopeOf(ctx), id)
	if err != nil {
		return nil, fmt.Errorf("read why the box stopped: %w", err)
	}
	return reply(activityProto(box, events, b.s.now()))
}

func activityProto(box *store.PolicyBox, events []store.Event, now time.Time) *carrelv1.BoxActivity {
	view := box.View()
	decision := carrel.DecideIdle(view, now)
	out := &carrelv1.BoxActivity{BoxId: string(box.ID), State: stateProto(carrel.StateOf(&box.BoxView))}
	running := box.Live() && box.Run.Phase == carrel.PhaseRunning
	for _, s := range awake(box, running, now) {
		out.Signals = append(out.Signals, &carrelv1.Signal{
			Kind: string(s.Kind), Time: timeProto(s.At), Active: s.Active && running, Counts: s.Counts(), Detail: s.Detail,
		})
	}
	if running {
		last := decision.LastActivity
		if last.After(now) {
			last = now // it is kept awake for some time to come
		}
		out.LastTime = timeProto(last)
	}
	for _, d := range decision.Deadlines {
		out.Deadlines = append(out.Deadlines, &carrelv1.Deadline{Rule: string(d.Rule), Time: timeProto(d.At), Action: d.Action, SetBy: d.SetBy})
	}
	if box.AwakeUntil.After(now) {
		out.AwakeUntil = timeProto(box.AwakeUntil)
	}
	stop := lastStop(events)
	out.LastStopReason, out.LastStopActor, out.LastStopTime = stop.reason, stop.actor, timeProto(stop.at)
	return out
}

// awake are the signals of the box's newest run, with the one that is not its node's.
func awake(box *store.PolicyBox, running bool, now time.Time) []carrel.Signal {
	var signals []carrel.Signal
	if box.Activity.Epoch == box.Epoch {
		signals = box.Activity.Signals
	}
	for i, s := range signals {
		if s.Active && running {
			signals[i].At = now
		}
	}
	if until := box.AwakeUntil; !until.IsZero() {
		s := carrel.Signal{Kind: carrel.SignalKeepAwake, At: until, Detail: "until " + until.UTC().Format("2006-01-02 15:04:05 UTC") + " by " + box.AwakeBy}
		if until.After(now) {
			s.Active, s.At = true, now
		}
		signals = append(signals, s)
	}
	return signals
}

// stop is why a run ended.
type stop struct {
	reason, actor string
	at            time.Time
}

// lastStop finds out why the newest run that is over ended, from the events about that, newest first.
func lastStop(events []store.Event) stop {
	for n, ended := range events {
		switch ended.Kind {
		case "failed":
			if ended.Run != "" { // of a run, not of an attempt to make one
				return stop{ended.Message, ended.Actor, ended.At}
			}
		case "paused", "stopped", "destroyed":
			for _, cause := range events[n+1:] {
				if cause.Kind == "policy" {
					return stop{cause.Message, cause.Actor, ended.At}
				}
				if verb, asked := strings.CutSuffix(cause.Message, " was asked for"); cause.Kind == "asked" && asked && carrel.Verb(verb) != carrel.VerbStart && carrel.Verb(verb) != carrel.VerbResume {
					return stop{ended.Kind + " because " + verb + " was asked for", cause.Actor, ended.At}
				}
			}
			return stop{ended.Message, ended.Actor, ended.At}
		}
	}
	return stop{}
}

// policyReason says in which way the policy, and nobody else, brought the box into its state.
func policyReason(b *store.Box) string {
	rule, ok := carrel.RuleOf(b.IntentBy)
	if !ok || b.Intent == carrel.IntentRunning {
		if !b.IdleSince.IsZero() && carrel.StateOf(&b.BoxView) == carrel.StateIdle {
			return "nobody has used it since " + b.IdleSince.UTC().Format("2006-01-02 15:04:05 UTC")
		}
		return ""
	}
	switch rule {
	case carrel.RuleMaxRun:
		return "it ran as long as one run may"
	case carrel.RuleTTL:
		return "its time to live is over"
	}
	return "nobody has used it since " + b.IdleSince.UTC().Format("2006-01-02 15:04:05 UTC")
}

func idleProto(p carrel.IdlePolicy) *carrelv1.IdlePolicy {
	out := &carrelv1.IdlePolicy{Action: string(p.Action), BusyCpuMillis: p.BusyCPUMillis, Wake: p.Wake}
	for _, f := range []struct {
		to   **durationpb.Duration
		from time.Duration
	}{{&out.After, p.After}, {&out.MaxRun, p.MaxRun}, {&out.Ttl, p.TTL}, {&out.KeepShell, p.KeepShell}} {
		switch {
		case f.from < 0:
			*f.to = durationpb.New(-time.Second)
		case f.from > 0:
			*f.to = durationpb.New(f.from)
		}
	}
	return out
}

func idleFromProto(p *carrelv1.IdlePolicy) carrel.IdlePolicy {
	out := carrel.IdlePolicy{Action: carrel.IdleAction(p.GetAction()), BusyCPUMillis: p.GetBusyCpuMillis(), Wake: p.GetWake()}
	if out.BusyCPUMillis < 0 {
		out.BusyCPUMillis = carrel.NeverCPU
	}
	for _, f := range []struct {
		to   *time.Duration
		from *durationpb.Duration
	}{{&out.After, p.GetAfter()}, {&out.MaxRun, p.GetMaxRun()}, {&out.TTL, p.GetTtl()}, {&out.KeepShell, p.GetKeepShell()}} {
		if *f.to = f.from.AsDuration(); *f.to < 0 {
			*f.to = carrel.Never
		}
	}
	return out
}

// changeIdle changes what a box says itself: a whole policy adds to it, a field of one replaces that, and one left out is the template's again.
func changeIdle(p *carrel.IdlePolicy, field string, to carrel.IdlePolicy, path string) error {
	switch field {
	case "":
		*p = to.Or(*p)
	case "after":
		p.After = to.After
	case "action":
		p.Action = to.Action
	case "max_run":
		p.MaxRun = to.MaxRun
	case "ttl":
		p.TTL = to.TTL
	case "busy_cpu_millis":
		p.BusyCPUMillis = to.BusyCPUMillis
	case "wake":
		p.Wake = to.Wake
	case "keep_shell":
		p.KeepShell = to.KeepShell
	default:
		return carrel.Errorf(carrel.CodeInvalid, "bad_update_mask", "there is no %q in a box", path)
	}
	return nil
}
