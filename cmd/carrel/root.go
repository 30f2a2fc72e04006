package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// app is one run of the program.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	env    map[string]string

	flags  client.Choice
	output string
}

func newApp(stdin io.Reader, stdout, stderr io.Writer, env []string) *app {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, env: map[string]string{}}
	for _, e := range env {
		if key, value, ok := strings.Cut(e, "="); ok {
			a.env[key] = value
		}
	}
	return a
}

// warnOfVariables says which variables are probably misspelt. What is only unknown may be a server's.
func (a *app) warnOfVariables(env []string) {
	for _, v := range client.UnreadVariables(env, client.Variables) {
		if v.Meant != "" {
			fmt.Fprintf(a.stderr, "carrel: %s\n", v)
		}
	}
}

func (a *app) getenv(key string) string { return a.env[key] }

const (
	groupBoxes = "boxes"
	groupIn    = "in"
	groupMore  = "more"
	groupAdmin = "admin"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "carrel",
		Short: "Isolated Linux machines that pause with their memory",
		Long: "carrel makes isolated Linux machines (boxes), runs commands in them, pauses them with their\n" +
			"memory and brings them back.\n\n" +
			"Where and as whom it speaks comes from --context, --url and --org, else from CARREL_CONTEXT,\n" +
			"CARREL_URL, CARREL_TOKEN and CARREL_ORG, else from the file that `carrel login` writes.",
		Example:       "  carrel login http://127.0.0.1:7070\n  carrel create mybox -t python\n  carrel exec mybox -- python3 -c 'print(6*7)'\n  carrel pause mybox",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, "%s", err) })
	flags := root.PersistentFlags()
	flags.StringVar(&a.flags.Context, "context", "", "`NAME` of the context to use")
	flags.StringVar(&a.flags.URL, "url", "", "`URL` of the gateway, in place of a context's")
	flags.StringVar(&a.flags.Org, "org", "", "`ORG` to work in, id or name")
	a.complete(root, "context", a.contextNames)
	root.AddGroup(
		&cobra.Group{ID: groupBoxes, Title: "Boxes:"},
		&cobra.Group{ID: groupIn, Title: "In a box:"},
		&cobra.Group{ID: groupMore, Title: "Around boxes:"},
		&cobra.Group{ID: groupAdmin, Title: "You and the platform:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupBoxes, a.createCommand(), a.listCommand(), a.showCommand(), a.startCommand(), a.stopCommand(), a.pauseCommand(),
		a.resumeCommand(), a.restartCommand(), a.updateCommand(), a.waitCommand(), a.activityCommand(), a.keepAwakeCommand(), a.deleteCommand())
	add(groupIn, a.sshCommand(), a.execCommand(), a.runCommand(), a.kernelCommand(), a.psCommand(), a.attachCommand(), a.logsCommand(), a.killCommand(), a.cpCommand(), a.openCommand(), a.portCommand(), a.portForwardCommand())
	add(groupMore, a.templateCommand(), a.imageCommand(), a.opCommand(), a.eventsCommand())
	add(groupAdmin, a.loginCommand(), a.contextCommand(), a.whoamiCommand(), a.tokenCommand(), a.keyCommand(), a.configSSHCommand(), a.userCommand(), a.orgCommand(), a.nodeCommand(), a.gatewayCommand(), a.versionCommand())
	// A parent of commands says what it does not know, in place of showing its help and succeeding.
	for _, c := range root.Commands() {
		if c.HasSubCommands() {
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usageError(cmd, "%q is no command of it", args[0])
				}
				return cmd.Help()
			}
		}
	}
	return root
}

// usage is an error in the command line itself.
type usage struct{ error }

func usageError(cmd *cobra.Command, format string, args ...any) error {
	return usage{fmt.Errorf("%s: %s (see `%s --help`)", cmd.CommandPath(), fmt.Sprintf(format, args...), cmd.CommandPath())}
}

// exitError ends the program without a word.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// ownFailure is the exit code for what goes wrong in Carrel when the program's code else is a command's.
const ownFailure = 255

// exit shows an error in a line or two and gives the exit code.
func (a *app) exit(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	var code exitError
	if errors.As(err, &code) {
		return int(code)
	}
	result := 1
	var wrong usage
	var known *carrel.Error
	switch {
	case errors.As(err, &wrong):
		result = 2
		fmt.Fprintln(a.stderr, wrong.Error())
	case errors.As(err, &known):
		fmt.Fprintln(a.stderr, "carrel: "+known.Message)
		if hint := a.hint(known); hint != "" {
			fmt.Fprintln(a.stderr, hint)
		}
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(a.stderr, "carrel: interrupted; what was asked for already goes on")
	case strings.HasPrefix(err.Error(), "unknown command"):
		result = 2
		fmt.Fprintf(a.stderr, "carrel: %s (see `carrel --help`)\n", strings.ReplaceAll(firstLine(err.Error()), ` for "carrel"`, ""))
	default:
		fmt.Fprintln(a.stderr, "carrel: "+err.Error())
	}
	if cmd != nil && cmd.Annotations[ownsExitCode] != "" {
		return ownFailure
	}
	return result
}

// ownsExitCode marks commands whose exit code is that of a command in a box.
const ownsExitCode = "owns-exit-code"

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func (a *app) hint(e *carrel.Error) string {
	switch {
	case e.Reason == client.ReasonUnreachable:
		return "Is Carrel running there? `carrel context list` shows where you are signed in."
	case e.Code == carrel.CodeUnauthorized:
		return "Sign in with `carrel login URL`; `carrel whoami` shows who you are."
	case e.RetryAfter > 0 && e.Code == carrel.CodeUnavailable:
		return ""
	}
	return ""
}

// contexts reads the contexts file.
func (a *app) contexts() (*client.Contexts, string, error) {
	path, err := client.ContextsPath(a.getenv)
	if err != nil {
		return nil, "", err
	}
	file, err := client.LoadContexts(path)
	return file, path, err
}

// client makes the client of the context in use.
func (a *app) client() (*client.Client, error) {
	chosen := []client.Choice{a.flags, client.ChoiceFromEnv(a.getenv)}
	file, _, err := a.contexts()
	if err != nil {
		return nil, err
	}
	c, _, err := file.Resolve(chosen...)
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{Context: c, UserAgent: "carrel/" + version(), OnAsleep: a.asleep()})
}

// asleep says once of each box that it is being woken.
func (a *app) asleep() func(box string, why error) {
	var said sync.Map
	return func(box string, why error) {
		if _, again := said.LoadOrStore(box, true); again {
			return
		}
		var e *carrel.Error
		if !errors.As(why, &e) {
			return
		}
		switch state := carrel.State(e.Metadata["state"]); state {
		case carrel.StateFailed, carrel.StateDeleting, carrel.StateDeleted: // which the error says that comes
		case carrel.StatePaused, carrel.StateStopped:
			fmt.Fprintf(a.stderr, "carrel: box %s is %s; bringing it up\n", box, strings.ToLower(string(state)))
		default:
			fmt.Fprintf(a.stderr, "carrel: waiting for box %s\n", box)
		}
	}
}

// does is the RunE of a command that makes calls; Ctrl-C ends it.
func (a *app) does(f func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(_ *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return f(ctx, c, args)
	}
}

// takes checks the number of arguments: each name is one, in brackets it may be left out, with … at the
// end there may be more. None is empty: that is a variable of a script that nobody set, and not an argument left out.
func takes(names ...string) cobra.PositionalArgs {
	least, most := 0, len(names)
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
		if strings.Contains(n, "…") {
			most = 1 << 20
		}
	}
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usageError(cmd, "%s is missing", names[len(args)])
		case len(args) > most:
			return usageError(cmd, "%q is one argument too many", args[most])
		}
		if i := slices.Index(args, ""); i >= 0 {
			return usageError(cmd, "%s is empty", strings.Trim(names[min(i, len(names)-1)], "[]…"))
		}
		return nil
	}
}
