package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) resumeCommand() *cobra.Command {
	return a.verb("resume", "Bring a paused box back",
		"Bring a paused box back: its processes go on where they were. A stopped box is started.",
		example("carrel resume mybox", "carrel resume mybox --no-wait"),
		func(ctx context.Context, c *client.Client, box string) (*carrelv1.Operation, error) {
			return answer(c.Boxes.ResumeBox(ctx, connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: box})))
		})
}
