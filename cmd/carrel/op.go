package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) opCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "op", Aliases: []string{"operation", "operations"}, Short: "What was asked for and how it goes",
		Long:    "Operations: what was asked for and how it goes.",
		Example: example("carrel op list", "carrel op show p0000000000000000001"),
	}
	cmd.AddCommand(a.opList(), a.opShow())
	return cmd
}

func (a *app) opList() *cobra.Command {
	var (
		target string
		limit  int
	)
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List operations, newest first", Long: "List the operations of the organisation, newest first.",
		Example: example("carrel op list", "carrel op list --target mybox --limit 5", "carrel op list --target myimage"), Args: takes(),
	}
	cmd.Flags().StringVar(&target, "target", "", "only about this box or image")
	cmd.Flags().IntVar(&limit, "limit", 50, "how many to show at most")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, _ []string) error {
		if limit < 1 || limit > 1000 {
			return usageError(cmd, "--limit is %d; it is from 1 to 1000", limit)
		}
		list, err := answer(c.Operations.ListOperations(ctx, connect.NewRequest(&carrelv1.ListOperationsRequest{Target: target, PageSize: int32(limit)})))
		if err != nil {
			return err
		}
		var names []string
		for _, o := range list.GetOperations() {
			names = append(names, o.GetId())
		}
		return a.show(list, names, func(t *table) {
			t.row("ID", "VERB", "TARGET", "STATE", "TOOK", "AGE")
			for _, o := range list.GetOperations() {
				t.row(o.GetId(), o.GetVerb(), o.GetTargetName(), opState(o), took(o), age(o.GetCreateTime()))
			}
		})
	})
	return a.shows(cmd)
}

func opState(o *carrelv1.Operation) string {
	switch {
	case !o.GetDone():
		return o.GetProgress()
	case o.GetError() != nil:
		return "failed: " + o.GetError().GetReason()
	}
	return "done"
}

func took(o *carrelv1.Operation) string {
	if o.GetDuration() == nil {
		return ""
	}
	return roundDuration(o.GetDuration().AsDuration())
}

func (a *app) opShow() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "show OPERATION", Short: "Show an operation", Long: "Show how an operation goes, or how it ended and why.",
		Example: example("carrel op show p0000000000000000001"), Args: takes("OPERATION"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			o, err := answer(c.Operations.GetOperation(ctx, connect.NewRequest(&carrelv1.GetOperationRequest{Id: args[0]})))
			if err != nil {
				return err
			}
			return a.show(o, []string{o.GetId()}, func(t *table) {
				t.field("Id", o.GetId())
				t.field("Verb", o.GetVerb())
				t.field("Target", o.GetTargetName()+" ("+o.GetTargetId()+")")
				t.field("Done", yes(o.GetDone()))
				t.field("Progress", o.GetProgress())
				t.field("Failure", failureText(o.GetError()))
				t.field("Asked for by", o.GetCreatedBy())
				t.field("Asked for at", when(o.GetCreateTime()))
				t.field("Ended at", when(o.GetEndTime()))
				t.field("Took", took(o))
			})
		}),
	})
}
