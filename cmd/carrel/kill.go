package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/client"
)

func (a *app) killCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:     "kill NAME PROCESS",
		Short:   "Send a signal to a command in a box",
		Long:    "Send a signal to a command in a box and to its children.",
		Example: example("carrel kill mybox xddab3ir5ski", "carrel kill mybox xddab3ir5ski -s KILL"),
		Args:    takes("NAME", "PROCESS"),
	}
	cmd.ValidArgsFunction = a.boxAndProcess()
	cmd.Flags().StringVarP(&signal, "signal", "s", "TERM", "name of the signal")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		name := strings.TrimPrefix(strings.ToUpper(signal), "SIG")
		if err := c.Signal(ctx, args[0], args[1], name); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "sent %s to process %s\n", name, args[1])
		return nil
	})
	return cmd
}
