package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) activityCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "activity NAME",
		Short: "Show what keeps a box awake and what will end its run",
		Long: "Show what keeps a box awake, which deadline comes next, by which rule and who set it, and why the box was\n" +
			"last stopped.",
		Example:           example("carrel activity mybox", "carrel activity mybox -o json"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.boxNames(),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			activity, err := answer(c.Boxes.GetBoxActivity(ctx, connect.NewRequest(&carrelv1.GetBoxActivityRequest{Id: args[0]})))
			if err != nil {
				return err
			}
			return a.showActivity(args[0], activity)
		}),
	}
	return a.shows(cmd)
}

func (a *app) showActivity(name string, v *carrelv1.BoxActivity) error {
	return a.show(v, []string{name}, func(t *table) {
		t.field("State", stateWord(v.GetState()))
		t.field("Kept awake by", awakeText(v))
		next := "nothing ends this run"
		if v.GetState() != carrelv1.State_STATE_RUNNING && v.GetState() != carrelv1.State_STATE_IDLE {
			next = "nothing: it does not run"
		}
		if d := v.GetDeadlines(); len(d) > 0 {
			next = deadlineText(d[0])
		} else if somethingGoesOn(v) {
			next = "none while that goes on"
		}
		t.field("Next deadline", next)
		if d := v.GetDeadlines(); len(d) > 0 {
			t.field("Rule", ruleText[carrel.Rule(d[0].GetRule())])
			t.field("Set by", d[0].GetSetBy())
		}
		for _, d := range v.GetDeadlines()[min(1, len(v.GetDeadlines())):] {
			t.field("Then", deadlineText(d)+", by "+d.GetSetBy())
		}
		t.field("Used last", when(v.GetLastTime()))
		last := "it never was"
		if v.GetLastStopReason() != "" {
			last = v.GetLastStopReason()
			if v.GetLastStopTime() != nil {
				last += ", " + when(v.GetLastStopTime())
			}
			if v.GetLastStopActor() != "" {
				last += " (" + v.GetLastStopActor() + ")"
			}
		}
		t.field("Last stopped", last)
		if len(v.GetSignals()) == 0 {
			return
		}
		t.blank()
		t.row("SIGNAL", "COUNTS", "LAST SEEN", "NOW", "WHAT")
		for _, s := range v.GetSignals() {
			t.row(s.GetKind(), yes(s.GetCounts()), when(s.GetTime()), yes(s.GetActive()), s.GetDetail())
		}
	})
}

var ruleText = map[carrel.Rule]string{
	carrel.RuleIdle: "idle: nobody used it for a while", carrel.RuleMaxRun: "max_run: how long one run may last", carrel.RuleTTL: "ttl: how long the box may exist",
}

func somethingGoesOn(v *carrelv1.BoxActivity) bool {
	for _, s := range v.GetSignals() {
		if s.GetCounts() && s.GetActive() {
			return true
		}
	}
	return false
}

// awakeText names what goes on and counts.
func awakeText(v *carrelv1.BoxActivity) string {
	var parts []string
	for _, s := range v.GetSignals() {
		if !s.GetCounts() || !s.GetActive() {
			continue
		}
		text := strings.ReplaceAll(s.GetKind(), "_", "-")
		if s.GetDetail() != "" {
			text += ": " + s.GetDetail()
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "nothing just now"
	}
	return strings.Join(parts, "; ")
}

func deadlineText(d *carrelv1.Deadline) string {
	at := d.GetTime().AsTime()
	action := d.GetAction()
	if action == string(carrel.IdleNothing) {
		action = "called idle, nothing else"
	}
	left := time.Until(at)
	if left <= 0 {
		return action + " now"
	}
	return fmt.Sprintf("%s in %s (%s)", action, carrel.FormatPeriod(max(left, time.Second)), at.Local().Format("2006-01-02 15:04:05"))
}
