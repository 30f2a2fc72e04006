package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) restartCommand() *cobra.Command {
	return a.verb("restart", "Stop a box and start it again",
		"Stop a box and start it again from its files; its processes end.",
		example("carrel restart mybox", "carrel restart mybox --no-wait"),
		func(ctx context.Context, c *client.Client, box string) (*carrelv1.Operation, error) {
			return answer(c.Boxes.RestartBox(ctx, connect.NewRequest(&carrelv1.RestartBoxRequest{Id: box})))
		})
}
