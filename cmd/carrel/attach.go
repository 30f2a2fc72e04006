package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) attachCommand() *cobra.Command {
	var (
		from int64
		view bool
	)
	cmd := &cobra.Command{
		Use:   "attach NAME PROCESS",
		Short: "Join a command: see its output and type into it",
		Long: "Show the output of a command that was started in a box, what is kept of it and what comes, type into it if it\n" +
			"takes input, and end with its exit code when it ends. Several people can be attached at once. A broken connection\n" +
			"is made again and goes on where it broke. On a terminal, Enter ~ . leaves the command running; elsewhere Ctrl-C is\n" +
			"sent to it. --from says the first byte of output to show; -1: only what comes from now on.",
		Example:     example("carrel attach mybox xddab3ir5ski", "carrel attach mybox xddab3ir5ski --from -1", "carrel attach mybox xddab3ir5ski --view"),
		Args:        takes("NAME", "PROCESS"),
		Annotations: map[string]string{ownsExitCode: "yes"},
	}
	cmd.ValidArgsFunction = a.boxAndProcess()
	cmd.Flags().Int64Var(&from, "from", 0, "first byte of output to show; -1: from now on")
	cmd.Flags().BoolVar(&view, "view", false, "look only: nothing is typed, and Ctrl-C ends the looking")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if from < -1 {
			return usageError(cmd, "--from is %d; it is an offset, or -1", from)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		process, err := c.GetProcess(context.Background(), args[0], args[1])
		if err != nil {
			return err
		}
		how := joining(process, view)
		if how.tty {
			fmt.Fprintln(a.stderr, "carrel: attached; Enter ~ . leaves the command running")
		}
		return a.session(how, func(ctx context.Context, streams client.Streams) (client.ExitStatus, error) {
			return c.Attach(ctx, client.AttachOptions{Box: args[0], Process: args[1], StdoutOffset: from, StderrOffset: min(from, 0), Streams: streams})
		})
	}
	return cmd
}

// joining tells how to join a process. Agents that do not tell the kind of a process are of a time when only one could type.
func joining(p *carrelv1.Process, view bool) sessionMode {
	types := p.GetRunning() && p.GetKind() != "" && !view
	return sessionMode{tty: p.GetPty() && types, stdin: types, view: view}
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
