package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) stopCommand() *cobra.Command {
	return a.verb("stop", "Stop a box, keeping its files",
		"Stop a box: its processes end, its home and everything installed stay. `carrel start` starts it again.",
		example("carrel stop mybox", "carrel stop mybox --no-wait"),
		func(ctx context.Context, c *client.Client, box string) (*carrelv1.Operation, error) {
			return answer(c.Boxes.StopBox(ctx, connect.NewRequest(&carrelv1.StopBoxRequest{Id: box})))
		})
}
