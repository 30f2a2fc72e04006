package main

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// awakeTime is for how long a box is kept awake if nothing else is said.
const awakeTime = 8 * time.Hour

func (a *app) keepAwakeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keep-awake NAME [DURATION|off]",
		Short: "Treat a box as used for a while",
		Long: "Treat a running box as used for a while, 8h if nothing is said and 7d at most, so that it is not paused for being idle.\n" +
			"off ends that. How long one run may last (--max-run) and the box's time to live hold all the same.",
		Example:           example("carrel keep-awake mybox", "carrel keep-awake mybox 2d", "carrel keep-awake mybox off"),
		Args:              takes("NAME", "[DURATION]"),
		ValidArgsFunction: a.boxNames(),
	}
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		d := awakeTime
		if len(args) > 1 {
			var err error
			switch args[1] {
			case "off":
				d = 0
			default:
				if d, err = carrel.ParsePeriod(args[1]); err != nil {
					return usageError(cmd, "DURATION %s, or off", plain(err))
				}
			}
		}
		activity, err := answer(c.Boxes.KeepBoxAwake(ctx, connect.NewRequest(&carrelv1.KeepBoxAwakeRequest{Id: args[0], Duration: durationpb.New(d)})))
		if err != nil {
			return err
		}
		return a.showActivity(args[0], activity)
	})
	return a.shows(cmd)
}
