package main

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// completeTime bounds what a shell waits for names.
const completeTime = 2 * time.Second

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completes makes a completion of the first argument from a list that the server gives; without an
// answer there is none.
func (a *app) completes(list func(context.Context, *client.Client) []string) completion {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), completeTime)
		defer cancel()
		return list(ctx, c), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) complete(cmd *cobra.Command, flag string, f completion) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, start string) ([]string, cobra.ShellCompDirective) {
		return f(cmd, nil, start)
	})
}

func (a *app) boxNames() completion {
	return a.completes(func(ctx context.Context, c *client.Client) []string {
		resp, err := c.Boxes.ListBoxes(ctx, connect.NewRequest(&carrelv1.ListBoxesRequest{PageSize: 200}))
		if err != nil {
			return nil
		}
		var names []string
		for _, b := range resp.Msg.GetBoxes() {
			names = append(names, b.GetName()+"\t"+stateWord(b.GetState()))
		}
		return names
	})
}

func (a *app) templateNames() completion {
	return a.completes(func(ctx context.Context, c *client.Client) []string {
		resp, err := c.Templates.ListTemplates(ctx, connect.NewRequest(&carrelv1.ListTemplatesRequest{PageSize: 200}))
		if err != nil {
			return nil
		}
		var names []string
		for _, t := range resp.Msg.GetTemplates() {
			names = append(names, t.GetName()+"\t"+t.GetDescription())
		}
		return names
	})
}

func (a *app) nodeNames() completion {
	return a.completes(func(ctx context.Context, c *client.Client) []string {
		resp, err := c.Nodes.ListNodes(ctx, connect.NewRequest(&carrelv1.ListNodesRequest{}))
		if err != nil {
			return nil
		}
		var names []string
		for _, n := range resp.Msg.GetNodes() {
			names = append(names, n.GetId()+"\t"+n.GetName())
		}
		return names
	})
}

func (a *app) contextNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if file, _, err := a.contexts(); err == nil && len(args) == 0 {
		return file.Names(), cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
