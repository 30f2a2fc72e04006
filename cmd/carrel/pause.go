package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) pauseCommand() *cobra.Command {
	return a.verb("pause", "Pause a box with its memory",
		"Pause a box: its processes stand still and are kept with their memory, and it uses no compute.\n`carrel resume` lets them go on where they were.",
		example("carrel pause mybox", "carrel pause mybox --no-wait"),
		func(ctx context.Context, c *client.Client, box string) (*carrelv1.Operation, error) {
			return answer(c.Boxes.PauseBox(ctx, connect.NewRequest(&carrelv1.PauseBoxRequest{Id: box})))
		})
}
