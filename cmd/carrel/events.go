package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) eventsCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "events NAME", Short: "What happened to a box", Long: "What happened to a box and who did it, newest first.",
		Example: example("carrel events mybox", "carrel events mybox --limit 200 -o json"),
		Args:    takes("NAME"), ValidArgsFunction: a.boxNames(),
	}
	cmd.Flags().IntVar(&limit, "limit", 50, "how many to show at most")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		if limit < 1 || limit > 1000 {
			return usageError(cmd, "--limit is %d; it is from 1 to 1000", limit)
		}
		list, err := answer(c.Boxes.ListBoxEvents(ctx, connect.NewRequest(&carrelv1.ListBoxEventsRequest{Id: args[0], PageSize: int32(limit)})))
		if err != nil {
			return err
		}
		var names []string
		for _, e := range list.GetEvents() {
			names = append(names, e.GetId())
		}
		return a.show(list, names, func(t *table) {
			t.row("TIME", "KIND", "BY", "MESSAGE")
			for _, e := range list.GetEvents() {
				t.row(when(e.GetTime()), e.GetKind(), e.GetActor(), e.GetMessage())
			}
		})
	})
	return a.shows(cmd)
}
