package main

import (
	"context"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/client"
)

func (a *app) logsCommand() *cobra.Command {
	o := client.LogOptions{}
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show the output of a command that runs or has run in a box",
		Long: "Show what the box keeps of the output of a command: the last 1 MiB of standard output and 256 KiB of standard error,\n" +
			"also after it has ended. Without --process it is the newest; `carrel ps NAME --all` lists all of them, the startup\n" +
			"commands of the template too. With --follow it goes on until the command ends; Ctrl-C ends the showing, not the command.",
		Example:           example("carrel logs mybox", "carrel logs mybox -f", "carrel logs mybox --process xddab3ir5ski --since 4096"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.boxNames(),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on until the command ends")
	flags.StringVar(&o.Process, "process", "", "`PROCESS` whose output is shown (default: the newest)")
	flags.Int64Var(&o.Since, "since", 0, "first byte of each stream to show")
	_ = cmd.RegisterFlagCompletionFunc("process", func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.boxAndProcess()(cmd, args[:1], start)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.Since < 0 {
			return usageError(cmd, "--since is %d; it is an offset in bytes", o.Since)
		}
		return a.does(func(ctx context.Context, c *client.Client, args []string) error {
			o.Box, o.Stdout, o.Stderr = args[0], a.stdout, a.stderr
			err := c.Logs(ctx, o)
			if ctx.Err() != nil {
				return exitError(0) // shown as far as was wanted
			}
			return err
		})(cmd, args)
	}
	return cmd
}
