// Command carreld is Carrel's server: one binary with the roles control, reconcile, gateway, node and
// proxy, and `up`, which runs all of them with PostgreSQL on one machine. This package parses, wires
// and runs; it decides nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/service"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Environ())
	stop()
	os.Exit(code)
}

// run is the program as a value: it ends when ctx does. env is NAME=VALUE each.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, env []string) int {
	command := newCommand(env)
	command.SetArgs(args)
	command.SetOut(stdout)
	command.SetErr(stderr)
	err := command.ExecuteContext(ctx)
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	var known *carrel.Error
	if errors.As(err, &known) {
		fmt.Fprintf(stderr, "carreld: %s\n", known.Message)
	} else {
		fmt.Fprintf(stderr, "carreld: %v\n", err)
	}
	return 1
}

func newCommand(env []string) *cobra.Command {
	values := map[string]string{}
	for _, entry := range env {
		if name, value, ok := strings.Cut(entry, "="); ok {
			values[name] = value
		}
	}
	environ := func(name string) string { return values[name] }
	unread := client.UnreadVariables(env, knownVariables())
	root := &cobra.Command{
		Use:           "carreld",
		Short:         "Carrel's server",
		Long:          "carreld runs Carrel: all of it on one machine with `carreld up`, or one role at a time in a fleet.",
		SilenceUsage:  true,
		SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd: true,
		},
	}
	path := root.PersistentFlags().String("config", "", "configuration file, YAML ("+client.EnvServerConfig+")")
	for _, s := range settings {
		root.PersistentFlags().String(s.name, "", fmt.Sprintf("%s (%s)", s.help, variableOf(s.name)))
	}
	load := func(cmd *cobra.Command) (*Config, error) {
		flags := map[string]string{}
		for _, s := range settings {
			if flag := cmd.Flags().Lookup(s.name); flag != nil && flag.Changed {
				flags[s.name] = flag.Value.String()
			}
		}
		file := *path
		if file == "" {
			file = environ(client.EnvServerConfig)
		}
		return loadConfig(file, environ, flags)
	}
	// begin is load for what runs: a variable that nothing reads does not keep it from that.
	begin := func(cmd *cobra.Command) (*Config, error) {
		config, err := load(cmd)
		if err != nil {
			return nil, err
		}
		log := service.NewLogger(config.Log, cmd.Name(), cmd.ErrOrStderr())
		for _, v := range unread {
			log.Warn("the environment has a variable that nothing reads", "variable", v.Name, "did_you_mean", v.Meant)
		}
		return config, nil
	}
	role := func(name, short string, run func(context.Context, *Config, io.Writer) error) *cobra.Command {
		return &cobra.Command{
			Use: name, Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				config, err := begin(cmd)
				if err != nil {
					return err
				}
				return run(cmd.Context(), config, cmd.ErrOrStderr())
			},
		}
	}
	root.AddCommand(
		role("control", "Run the API and the links of nodes and gateways", runControl),
		role("reconcile", "Run the reconcilers and the scheduler", runReconcile),
		role("gateway", "Run the front door", runGateway),
		role("node", "Run the node daemon (root)", runNode),
		role("proxy", "Run the data-plane proxy beside a node (unprivileged)", runProxy),
		role("migrate", "Bring PostgreSQL's schema up to date", runMigrate),
	)
	tour := false
	up := &cobra.Command{
		Use: "up", Short: "Run all of Carrel on this machine", Args: cobra.NoArgs,
		Long: "up starts PostgreSQL and every role on loopback and keeps them running. Ctrl-C stops Carrel and leaves\n" +
			"boxes running, to be found again at the next start; `carreld down` pauses them first.",
		Example: "  carreld up\n  carreld up --data /srv/carrel --http 0.0.0.0:7070",
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := begin(cmd)
			if err != nil {
				return err
			}
			return runUp(cmd.Context(), config, tour, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	up.Flags().BoolVar(&tour, "tour", false, "the first time, show what a box can do")
	down := &cobra.Command{
		Use: "down", Short: "Pause every box and stop what `up` started", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := begin(cmd)
			if err != nil {
				return err
			}
			return runDown(cmd.Context(), config, cmd.OutOrStdout())
		},
	}
	configCommand := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	configCommand.AddCommand(&cobra.Command{
		Use: "check", Short: "Check the configuration and print what is in force", Args: cobra.NoArgs,
		Example: "  carreld config check --config /etc/carrel.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := load(cmd)
			if err != nil {
				return err
			}
			for _, v := range unread {
				if v.Meant != "" {
					return carrel.Errorf(carrel.CodeInvalid, "bad_config", "%s", v)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "carreld: %s\n", v)
			}
			return printConfig(cmd.OutOrStdout(), config)
		},
	})
	versionCommand := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
	root.AddCommand(up, down, configCommand, versionCommand)
	return root
}
