package main

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a box",
		Long:              "Show all about one box: its state and why, what it may use, where it runs and what its last run did.",
		Example:           example("carrel show mybox", "carrel show mybox -o json"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.boxNames(),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			box, err := answer(c.Boxes.GetBox(ctx, connect.NewRequest(&carrelv1.GetBoxRequest{Id: args[0]})))
			if err != nil {
				return err
			}
			return a.showBox(box)
		}),
	}
	return a.shows(cmd)
}

func (a *app) showBox(b *carrelv1.Box) error {
	return a.show(b, []string{b.GetName()}, func(t *table) {
		t.field("Name", b.GetName())
		t.field("State", stateWord(b.GetState())+since(b))
		t.field("Why", b.GetStateReason())
		t.field("Failure", failureText(b.GetFailure()))
		t.field("Notice", b.GetNotice())
		t.field("Wanted", b.GetIntent())
		t.field("Template", fmt.Sprintf("%s@%d", b.GetTemplate(), b.GetTemplateVersion()))
		t.field("Resources", resourcesText(b.GetResources()))
		t.field("Idle", idleText(b.GetIdle()))
		t.field("Labels", pairs(b.GetLabels()))
		t.field("Environment", pairs(b.GetEnv()))
		t.field("Id", b.GetId())
		t.field("Organisation", b.GetOrgId())
		t.field("Owner", b.GetOwnerId())
		t.field("Node", b.GetNodeId())
		t.field("Region", b.GetRegion())
		t.field("Run", b.GetRunId())
		t.field("Started from", b.GetStartedFrom())
		t.field("Created", when(b.GetCreateTime()))
		t.field("Safe on disk", when(b.GetDurableTime()))
		t.field("Deleted", when(b.GetDeleteTime()))
		var phases []string
		for _, p := range b.GetPhases() {
			phases = append(phases, p.GetPhase()+" "+p.GetTime().AsTime().Local().Format("15:04:05.000"))
		}
		t.field("Phases", strings.Join(phases, ", "))
	})
}

func since(b *carrelv1.Box) string {
	if b.GetStateTime() == nil {
		return ""
	}
	return " for " + age(b.GetStateTime())
}

func resourcesText(r *carrelv1.Resources) string {
	if r == nil {
		return ""
	}
	var parts []string
	add := func(value, what string) {
		if value != "" {
			parts = append(parts, value+" "+what)
		}
	}
	unit := "cores"
	if r.GetCpuMillis() == 1000 {
		unit = "core"
	}
	add(cores(r.GetCpuMillis()), unit)
	add(size(r.GetMemoryBytes()), "memory")
	add(size(r.GetHomeBytes()), "home")
	add(size(r.GetRootBytes()), "root")
	if r.GetProcesses() > 0 {
		add(fmt.Sprint(r.GetProcesses()), "processes")
	}
	return strings.Join(parts, ", ")
}
