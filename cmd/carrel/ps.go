package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) psCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               "ps NAME",
		Short:             "List the commands that run in a box",
		Long:              "List the commands that were started in a box with `carrel exec` and run; with --all also those that have\nended and whose output is still kept.",
		Example:           example("carrel ps mybox", "carrel ps mybox --all -o json"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.boxNames(),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		found, err := c.ListProcesses(ctx, args[0])
		if err != nil {
			return err
		}
		list := &carrelv1.ListProcessesResponse{}
		var names []string
		for _, p := range found {
			if p.GetRunning() || all {
				list.Processes = append(list.Processes, p)
				names = append(names, p.GetId())
			}
		}
		return a.show(list, names, func(t *table) {
			t.row("PROCESS", "PID", "STATE", "USER", "STARTED", "COMMAND")
			for _, p := range list.Processes {
				t.row(p.GetId(), fmt.Sprint(p.GetPid()), processState(p), p.GetUser(), when(p.GetStartTime()), strings.Join(p.GetArgs(), " "))
			}
		})
	})
	return a.shows(cmd)
}

func processState(p *carrelv1.Process) string {
	switch {
	case p.GetRunning():
		return "running"
	case p.GetEndedBy() != "":
		return "ended: " + p.GetEndedBy()
	case p.GetExitSignal() != "":
		return "signal " + p.GetExitSignal()
	}
	return fmt.Sprintf("exit %d", p.GetExitCode())
}
