package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) startCommand() *cobra.Command {
	var cold bool
	cmd := a.verb("start", "Start a stopped box, or resume a paused one",
		"Start a stopped box, or resume a paused one. With --cold a paused box is started from its files alone:\nits memory, and so its processes, are given up.",
		example("carrel start mybox", "carrel start mybox --cold"),
		func(ctx context.Context, c *client.Client, box string) (*carrelv1.Operation, error) {
			return answer(c.Boxes.StartBox(ctx, connect.NewRequest(&carrelv1.StartBoxRequest{Id: box, Cold: cold})))
		})
	cmd.Flags().BoolVar(&cold, "cold", false, "start from files alone, giving up the memory of a paused box")
	return cmd
}
