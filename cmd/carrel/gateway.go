package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) gatewayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "gateway",
		Aliases: []string{"gateways"},
		Short:   "Machines at the front door",
		Long:    "Machines that take requests and sessions. For operators of the platform.",
		Example: example("carrel gateway list"),
	}
	cmd.AddCommand(a.gatewayList(), a.gatewayRemove())
	return cmd
}

func (a *app) gatewayList() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List gateways", Long: "List the gateways of the cluster.",
		Example: example("carrel gateway list"), Args: takes(),
		RunE: a.does(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := answer(c.Nodes.ListGateways(ctx, connect.NewRequest(&carrelv1.ListGatewaysRequest{})))
			if err != nil {
				return err
			}
			var names []string
			for _, g := range list.GetGateways() {
				names = append(names, g.GetId())
			}
			return a.show(list, names, func(t *table) {
				t.row("ID", "NAME", "REGION", "CONNECTED", "JOINED")
				for _, g := range list.GetGateways() {
					t.row(g.GetId(), g.GetName(), g.GetRegion(), when(g.GetLastSeenTime()), when(g.GetCreateTime()))
				}
			})
		}),
	})
}

func (a *app) gatewayRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove GATEWAY", Aliases: []string{"rm"}, Short: "Remove a gateway for ever",
		Long:    "Remove a gateway (id or name) for ever: its certificate is refused at once, by control and by every node. Another machine may join under its name. If it joined with a join token file, change that as well.",
		Example: example("carrel gateway remove edge-2"), Args: takes("GATEWAY"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			if _, err := answer(c.Nodes.RemoveGateway(ctx, connect.NewRequest(&carrelv1.RemoveGatewayRequest{Id: args[0]}))); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Gateway %s is removed.\n", args[0])
			return nil
		}),
	}
}
