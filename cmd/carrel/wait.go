package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) waitCommand() *cobra.Command {
	var (
		names   []string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:               "wait NAME --state STATE",
		Short:             "Wait until a box is in a state",
		Long:              "Wait until a box is in one of the states, at most for --timeout. A box that has failed ends the wait too.\nStates: " + strings.Join(stateNames(), ", ") + ".",
		Example:           example("carrel wait mybox --state running", "carrel wait mybox --state paused --state stopped --timeout 5m"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.boxNames(),
	}
	cmd.Flags().StringArrayVarP(&names, "state", "s", nil, "`STATE` to wait for; may be repeated (default RUNNING)")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	a.complete(cmd, "state", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return stateNames(), cobra.ShellCompDirectiveNoFileComp
	})
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		if len(names) == 0 {
			names = []string{"RUNNING"}
		}
		wanted, err := states(cmd, names)
		if err != nil {
			return err
		}
		box, err := c.WaitBox(ctx, args[0], wanted, timeout)
		if err != nil {
			return err
		}
		return a.waited(box, wanted)
	})
	return a.shows(cmd)
}

// waited shows the box that a wait ended with; one that failed meanwhile is an error.
func (a *app) waited(box *carrelv1.Box, wanted []carrelv1.State) error {
	if !slices.Contains(wanted, box.GetState()) {
		message := box.GetName() + " is " + stateWord(box.GetState())
		if f := failureText(box.GetFailure()); f != "" {
			message += ": " + f
		}
		return carrel.Errorf(carrel.CodePrecondition, "other_state", "%s", message)
	}
	return a.show(box, []string{box.GetName()}, func(t *table) {
		fmt.Fprintf(t.w, "%s is %s\n", box.GetName(), stateWord(box.GetState()))
	})
}
