package main

import (
	"context"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/client"
)

func (a *app) attachCommand() *cobra.Command {
	var from int64
	cmd := &cobra.Command{
		Use:   "attach NAME PROCESS",
		Short: "Show a command's output, from the beginning or from now on",
		Long: "Show the output of a command that was started in a box, what is kept of it and what comes, and end with its\n" +
			"exit code when it ends. Ctrl-C is sent to the command. --from says the first byte of output to show; -1: only what comes from now on.",
		Example:     example("carrel attach mybox p3", "carrel attach mybox p3 --from -1"),
		Args:        takes("NAME", "PROCESS"),
		Annotations: map[string]string{ownsExitCode: "yes"},
	}
	cmd.ValidArgsFunction = a.boxAndProcess()
	cmd.Flags().Int64Var(&from, "from", 0, "first byte of output to show; -1: from now on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if from < -1 {
			return usageError(cmd, "--from is %d; it is an offset, or -1", from)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return a.session(false, false, func(ctx context.Context, streams client.Streams) (client.ExitStatus, error) {
			return c.Attach(ctx, client.AttachOptions{Box: args[0], Process: args[1], StdoutOffset: from, StderrOffset: min(from, 0), Streams: streams})
		})
	}
	return cmd
}

// boxAndProcess completes a box and then one of its processes.
func (a *app) boxAndProcess() completion {
	boxes := a.boxNames()
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return boxes(cmd, args, start)
		}
		return a.completes(func(ctx context.Context, c *client.Client) []string {
			list, err := c.ListProcesses(ctx, args[0])
			if err != nil {
				return nil
			}
			var ids []string
			for _, p := range list {
				ids = append(ids, p.GetId()+"\t"+processState(p))
			}
			return ids
		})(cmd, nil, start)
	}
}
