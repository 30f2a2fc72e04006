package main

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) portCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "port", Aliases: []string{"ports"}, Short: "Ports of a box and who may reach them",
		Long: "Ports of a box. Each has a URL. It is private, for those who may use the box, unless it is opened to the members of\n" +
			"the organisation (org) or to everybody (public).",
		Example: example("carrel port list mybox", "carrel port set mybox 8000 org", "carrel port url mybox 8000 --for 24h"),
	}
	cmd.AddCommand(a.portList(), a.portSet(), a.portURL())
	return cmd
}

func (a *app) portList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list NAME", Aliases: []string{"ls"}, Short: "List the ports that are not private",
		Long:    "List the ports of a box that have a visibility of their own. All others are private.",
		Example: example("carrel port list mybox"), Args: takes("NAME"), ValidArgsFunction: a.boxNames(),
	}
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		list, err := answer(c.Boxes.ListBoxPorts(ctx, connect.NewRequest(&carrelv1.ListBoxPortsRequest{Id: args[0]})))
		if err != nil {
			return err
		}
		var names []string
		for _, p := range list.GetPorts() {
			names = append(names, fmt.Sprint(p.GetPort()))
		}
		return a.show(list, names, func(t *table) {
			t.row("PORT", "VISIBILITY", "URL")
			for _, p := range list.GetPorts() {
				t.row(fmt.Sprint(p.GetPort()), p.GetVisibility(), p.GetUrl())
			}
		})
	})
	return a.shows(cmd)
}

func (a *app) portSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set NAME PORT private|org|public", Short: "Say who may reach a port",
		Long:    "Say who may reach a port: those who may use the box (private), every member of its organisation (org), or\neverybody who has the URL, without signing in (public).",
		Example: example("carrel port set mybox 8000 org", "carrel port set mybox 8000 private"), Args: takes("NAME", "PORT", "VISIBILITY"),
		ValidArgsFunction: a.boxNames(),
	}
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		port, err := portNumber(cmd, args[1])
		if err != nil {
			return err
		}
		set, err := answer(c.Boxes.SetBoxPort(ctx, connect.NewRequest(&carrelv1.SetBoxPortRequest{Id: args[0], Port: int32(port), Visibility: args[2]})))
		if err != nil {
			return err
		}
		return a.show(set, []string{fmt.Sprint(set.GetPort())}, func(t *table) {
			t.row("PORT", "VISIBILITY", "URL")
			t.row(fmt.Sprint(set.GetPort()), set.GetVisibility(), set.GetUrl())
		})
	})
	return a.shows(cmd)
}

func (a *app) portURL() *cobra.Command {
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use: "url NAME PORT", Short: "Make a signed URL that opens one port for a while",
		Long:    "Make a URL that opens one port of a box to whoever has it, until its time is over or you may no longer use the box.",
		Example: example("carrel port url mybox 8000", "carrel port url mybox 8000 --for 24h"), Args: takes("NAME", "PORT"), ValidArgsFunction: a.boxNames(),
	}
	cmd.Flags().DurationVar(&lifetime, "for", time.Hour, "how long it is good, at most 168h")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		port, err := portNumber(cmd, args[1])
		if err != nil {
			return err
		}
		made, err := answer(c.Boxes.CreatePortURL(ctx, connect.NewRequest(&carrelv1.CreatePortURLRequest{Id: args[0], Port: int32(port), Lifetime: durationpb.New(lifetime)})))
		if err != nil {
			return err
		}
		return a.show(made, []string{made.GetUrl()}, func(t *table) {
			fmt.Fprintln(t.w, made.GetUrl())
			fmt.Fprintf(a.stderr, "Good until %s, for whoever has it.\n", when(made.GetExpireTime()))
		})
	})
	return a.shows(cmd)
}
