package main

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) nodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "node",
		Aliases: []string{"nodes"},
		Short:   "Machines that boxes run on",
		Long:    "Machines that boxes run on. For operators of the platform.",
		Example: example("carrel node list", "carrel node cordon n0000000000000000001"),
	}
	cmd.AddCommand(a.nodeList(), a.nodeShow(), a.nodeSchedulable("cordon", false), a.nodeSchedulable("uncordon", true), a.nodeRemove(), a.nodeJoinToken())
	return cmd
}

func (a *app) nodeList() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List nodes", Long: "List the nodes with what they have and what of it is given away.",
		Example: example("carrel node list"), Args: takes(),
		RunE: a.does(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := answer(c.Nodes.ListNodes(ctx, connect.NewRequest(&carrelv1.ListNodesRequest{})))
			if err != nil {
				return err
			}
			var names []string
			for _, n := range list.GetNodes() {
				names = append(names, n.GetId())
			}
			return a.show(list, names, func(t *table) {
				t.row("ID", "NAME", "STATE", "SCHEDULABLE", "RUNS", "CPU", "MEMORY", "DISK")
				for _, n := range list.GetNodes() {
					t.row(n.GetId(), n.GetName(), n.GetState(), yes(n.GetSchedulable()), fmt.Sprint(n.GetRuns()),
						share(cores(n.GetUsed().GetCpuMillis()), cores(n.GetCapacity().GetCpuMillis())),
						share(size(n.GetUsed().GetMemoryBytes()), size(n.GetCapacity().GetMemoryBytes())),
						share(size(n.GetDiskUsedBytes()), size(n.GetDiskBytes())))
				}
			})
		}),
	})
}

func share(used, all string) string {
	if used == "" {
		used = "0"
	}
	return used + " of " + all
}

func (a *app) nodeShow() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "show NODE", Short: "Show a node", Long: "Show a node, with what it cannot enforce or do, and why.",
		Example: example("carrel node show n0000000000000000001"), Args: takes("NODE"), ValidArgsFunction: a.nodeNames(),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			n, err := answer(c.Nodes.GetNode(ctx, connect.NewRequest(&carrelv1.GetNodeRequest{Id: args[0]})))
			if err != nil {
				return err
			}
			list, err := answer(c.Templates.ListPrebuilds(ctx, connect.NewRequest(&carrelv1.ListPrebuildsRequest{NodeId: n.GetId()})))
			if err != nil {
				return err
			}
			return a.showNode(n, list.GetPrebuilds()...)
		}),
	})
}

func (a *app) showNode(n *carrelv1.Node, prebuilds ...*carrelv1.Prebuild) error {
	return a.show(n, []string{n.GetId()}, func(t *table) {
		t.field("Id", n.GetId())
		t.field("Name", n.GetName())
		t.field("Region", n.GetRegion())
		t.field("State", n.GetState())
		t.field("Last seen", when(n.GetLastSeenTime()))
		t.field("Schedulable", yes(n.GetSchedulable()))
		t.field("Runs", fmt.Sprint(n.GetRuns()))
		t.field("Cores", share(cores(n.GetUsed().GetCpuMillis()), cores(n.GetCapacity().GetCpuMillis())))
		t.field("Memory", share(size(n.GetUsed().GetMemoryBytes()), size(n.GetCapacity().GetMemoryBytes())))
		t.field("Disk", share(size(n.GetDiskUsedBytes()), size(n.GetDiskBytes())))
		t.field("Version", n.GetVersion())
		t.field("Runtime", n.GetRuntimeVersion())
		t.field("Kernel", n.GetKernel())
		t.field("Enforced", strings.Join(n.GetEnforced(), ", "))
		for _, l := range n.GetLimitations() {
			t.field("Limitation", l)
		}
		for _, d := range n.GetImageDigests() {
			t.field("Image", d)
		}
		for _, p := range prebuilds {
			t.field("Prebuild", p.GetTemplate()+", "+prebuildText(p))
		}
		for _, r := range n.GetQuarantinedRuns() {
			t.field("Unknown run", r)
		}
		t.field("Joined", when(n.GetCreateTime()))
	})
}

func (a *app) nodeSchedulable(use string, schedulable bool) *cobra.Command {
	short, long := "Place no more boxes on a node", "Place no more boxes on a node. Those that run there go on."
	if schedulable {
		short, long = "Place boxes on a node again", "Place boxes on a node again, after `carrel node cordon`."
	}
	return a.shows(&cobra.Command{
		Use: use + " NODE", Short: short, Long: long,
		Example: example("carrel node " + use + " n0000000000000000001"), Args: takes("NODE"), ValidArgsFunction: a.nodeNames(),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			n, err := answer(c.Nodes.UpdateNode(ctx, connect.NewRequest(&carrelv1.UpdateNodeRequest{Id: args[0], Schedulable: schedulable})))
			if err != nil {
				return err
			}
			return a.showNode(n)
		}),
	})
}

func (a *app) nodeRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NODE", Aliases: []string{"rm"}, Short: "Remove a node for ever",
		Long:    "Remove a node (id or name) for ever: its certificate is refused at once, by control and by every gateway. Boxes whose files are there are out of reach then; while there are any, --force is needed. Another machine may join under its name. If it joined with a join token file, change that as well.",
		Example: example("carrel node remove rack-3", "carrel node remove rack-3 --force"), Args: takes("NODE"), ValidArgsFunction: a.nodeNames(),
	}
	force := cmd.Flags().Bool("force", false, "also while boxes have their files there")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		if _, err := answer(c.Nodes.RemoveNode(ctx, connect.NewRequest(&carrelv1.RemoveNodeRequest{Id: args[0], Force: *force}))); err != nil {
			return err
		}
		fmt.Fprintf(a.stderr, "Node %s is removed.\n", args[0])
		return nil
	})
	return cmd
}

func (a *app) nodeJoinToken() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use: "join-token", Short: "Make a token with which a machine joins",
		Long:    "Make a token with which one machine joins the platform, as a node or as a gateway. It is shown once.",
		Example: example("carrel node join-token", "carrel node join-token --role gateway"), Args: takes(),
	}
	cmd.Flags().StringVar(&role, "role", "node", "what the machine is to be: node or gateway")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, _ []string) error {
		if role != "node" && role != "gateway" {
			return usageError(cmd, "--role is %q; use node or gateway", role)
		}
		resp, err := answer(c.Nodes.CreateJoinToken(ctx, connect.NewRequest(&carrelv1.CreateJoinTokenRequest{Role: role})))
		if err != nil {
			return err
		}
		return a.show(resp, []string{resp.GetToken()}, func(t *table) {
			fmt.Fprintln(t.w, resp.GetToken())
			fmt.Fprintf(a.stderr, "Good for one %s until %s.\n", role, when(resp.GetExpireTime()))
		})
	})
	return a.shows(cmd)
}
