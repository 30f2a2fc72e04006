package main

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) listCommand() *cobra.Command {
	var (
		filters []string
		state   string
		order   string
		deleted bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List boxes",
		Long:    "List the boxes of the organisation. Filters are joined: state=RUNNING, template=python, owner=ID,\nname=NAME, label.KEY=VALUE.",
		Example: example("carrel list", "carrel list --state paused", "carrel list --filter template=python --filter label.team=infra -o json"),
		Args:    takes(),
	}
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only boxes for which `TERM` holds; may be repeated")
	cmd.Flags().StringVar(&state, "state", "", "only boxes in this state")
	cmd.Flags().StringVar(&order, "order", "", "name, create_time or update_time, with \" desc\" for newest first")
	cmd.Flags().BoolVar(&deleted, "deleted", false, "also boxes that were deleted")
	a.complete(cmd, "state", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return stateNames(), cobra.ShellCompDirectiveNoFileComp
	})
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, _ []string) error {
		if state != "" {
			if _, err := states(cmd, []string{state}); err != nil {
				return err
			}
			filters = append(filters, "state="+strings.ToUpper(state))
		}
		all := &carrelv1.ListBoxesResponse{}
		req := &carrelv1.ListBoxesRequest{Filter: strings.Join(filters, " AND "), OrderBy: order, ShowDeleted: deleted}
		for {
			page, err := answer(c.Boxes.ListBoxes(ctx, connect.NewRequest(req)))
			if err != nil {
				return err
			}
			all.Boxes = append(all.Boxes, page.GetBoxes()...)
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		var names []string
		for _, b := range all.Boxes {
			names = append(names, b.GetName())
		}
		return a.show(all, names, func(t *table) {
			t.row("NAME", "STATE", "TEMPLATE", "CPU", "MEMORY", "AGE", "ID")
			for _, b := range all.Boxes {
				t.row(b.GetName(), stateWord(b.GetState()), b.GetTemplate(), cores(b.GetResources().GetCpuMillis()), size(b.GetResources().GetMemoryBytes()), age(b.GetCreateTime()), b.GetId())
			}
		})
	})
	return a.shows(cmd)
}
