package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) execCommand() *cobra.Command {
	var (
		tty, interactive, detach, noStdin bool
		user, cwd                         string
		env                               []string
	)
	cmd := &cobra.Command{
		Use:   "exec NAME [flags] -- COMMAND [ARGUMENT…]",
		Short: "Run a command in a box",
		Long: "Run a command in a box. Standard input, output and error, signals and the exit code are the command's;\n" +
			"255 is for what goes wrong in Carrel. A broken connection is made again and goes on where it broke. The\n" +
			"command goes on when carrel is killed: `carrel ps` and `carrel attach` find it again.",
		Example: example("carrel exec mybox -- uname -a", "carrel exec mybox -t -- bash",
			"tar c src | carrel exec mybox -- tar x", "carrel exec mybox -d -e PORT=8000 -w /srv -- python3 -m http.server"),
		Annotations:       map[string]string{ownsExitCode: "yes"},
		ValidArgsFunction: a.boxNames(),
		Args: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case len(args) == 0 || dash == 0:
				return usageError(cmd, "NAME is missing")
			case len(args) == 1:
				return usageError(cmd, "COMMAND is missing")
			case dash > 1:
				return usageError(cmd, "%q stands before --; only the box's name does", args[1])
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&tty, "tty", "t", false, "run it on a terminal")
	flags.BoolVarP(&interactive, "interactive", "i", false, "forward standard input (it is, unless --no-stdin or --detach is said)")
	flags.BoolVarP(&detach, "detach", "d", false, "print the process's id and leave it running")
	flags.BoolVarP(&noStdin, "no-stdin", "n", false, "do not forward standard input")
	flags.StringVarP(&user, "user", "u", "", "user in the box (default \"carrel\")")
	flags.StringArrayVarP(&env, "env", "e", nil, "environment variable as `KEY=VALUE`; may be repeated")
	flags.StringVarP(&cwd, "workdir", "w", "", "directory in the box (default: the user's home)")
	cmd.MarkFlagsMutuallyExclusive("interactive", "no-stdin")
	cmd.MarkFlagsMutuallyExclusive("interactive", "detach")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		variables, err := keyValues(cmd, "env", env)
		if err != nil {
			return err
		}
		o := client.ExecOptions{Box: args[0], Args: args[1:], Env: variables, Cwd: cwd, User: user, Detach: detach}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		if detach {
			status, err := c.Exec(context.Background(), o)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, status.Process)
			return nil
		}
		if tty {
			o.Pty = a.terminalSize()
			if o.Env["TERM"] == "" && a.env["TERM"] != "" {
				if o.Env == nil {
					o.Env = map[string]string{}
				}
				o.Env["TERM"] = a.env["TERM"]
			}
		}
		return a.session(sessionMode{tty: tty, stdin: !noStdin}, func(ctx context.Context, streams client.Streams) (client.ExitStatus, error) {
			o.Streams = streams
			status, err := c.Exec(ctx, o)
			if err == nil && status.Lost > 0 && !tty {
				err = carrel.Errorf(carrel.CodeUnavailable, "output_lost", "%d bytes of the command's output were lost when the connection broke; it ended with exit code %d", status.Lost, status.Code)
			}
			return status, err
		})
	}
	return cmd
}

// sessionMode is how this program's terminal, input and signals stand to those of a process.
type sessionMode struct {
	tty   bool // the terminal is the process's
	stdin bool // standard input goes to the process
	view  bool // nothing goes to the process; an interrupt ends the session
}

// session runs f between the streams, signals and the terminal of this program, and ends with the exit code
// of the process in the box.
func (a *app) session(mode sessionMode, f func(context.Context, client.Streams) (client.ExitStatus, error)) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	streams := client.Streams{Stdout: a.stdout, Stderr: a.stderr}
	link := &linkWatch{a: a, raw: mode.tty, leaves: mode.view, cancel: cancel}
	if mode.stdin {
		streams.Stdin = a.stdin
	}
	restore := func() {}
	if mode.tty {
		sizes, stop := watchSize(a.terminalSize)
		defer stop()
		streams.Resize = sizes
		if file, ok := a.stdin.(*os.File); ok && mode.stdin && term.IsTerminal(int(file.Fd())) {
			state, err := term.MakeRaw(int(file.Fd()))
			if err != nil {
				return fmt.Errorf("make the terminal raw: %w", err)
			}
			restore = sync.OnceFunc(func() { _ = term.Restore(int(file.Fd()), state) })
			streams.Stdin = &escapes{from: file, leave: link.leave, fresh: true}
		}
	}
	defer restore()

	streams.OnLink = link.set
	streams.OnStarted = link.start
	signals, stop := link.forwardSignals()
	defer stop()
	if !mode.view {
		streams.Signals = signals
	}

	status, err := f(ctx, streams)
	restore() // before anything is printed
	switch {
	case link.left():
		fmt.Fprintf(a.stderr, "carrel: process %s goes on in the box\n", status.Process)
		return nil
	case link.given():
		fmt.Fprintf(a.stderr, "carrel: given up while the connection was broken; process %s goes on in the box\n", status.Process)
		return exitError(ownFailure)
	case err != nil:
		return err
	}
	if status.EndedBy != "" {
		fmt.Fprintf(a.stderr, "carrel: the command was ended by the platform: %s\n", printable(status.EndedBy))
	}
	if status.Code != 0 {
		return exitError(status.Code)
	}
	return nil
}

func (a *app) terminalSize() *client.TerminalSize {
	for _, stream := range []any{a.stdin, a.stdout, a.stderr} {
		if f, ok := stream.(*os.File); ok {
			if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
				return &client.TerminalSize{Rows: uint16(min(rows, 1<<15)), Cols: uint16(min(cols, 1<<15))}
			}
		}
	}
	return &client.TerminalSize{Rows: 24, Cols: 80}
}

// noticeAfter is how long a connection may be broken before it is said: most are back sooner.
const noticeAfter = 2 * time.Second
