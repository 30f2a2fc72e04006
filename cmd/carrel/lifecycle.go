package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// waitFlags are --wait, --no-wait and --timeout of every verb that answers with an Operation.
type waitFlags struct {
	wait, noWait bool
	timeout      time.Duration
}

func (f *waitFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.wait, "wait", true, "wait until it is done")
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "answer at once; 'carrel op show' tells how it goes")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to wait")
}

// finish waits for an operation, if so asked, and shows it. after is printed below a success, in a table only.
func (a *app) finish(ctx context.Context, c *client.Client, op *carrelv1.Operation, f *waitFlags, after string) error {
	waits := f.wait && !f.noWait
	if waits {
		ctx, cancel := context.WithTimeout(ctx, f.timeout)
		defer cancel()
		line := a.progressLine(op)
		done, err := c.WaitOperation(ctx, op, time.Minute, line.show)
		line.clear()
		op = done
		switch {
		case ctx.Err() == context.DeadlineExceeded:
			return carrel.Errorf(carrel.CodeDeadline, "wait_over", "%s of %s is not done after %s (%s); it goes on: `carrel op show %s` tells how", op.GetVerb(), op.GetTargetName(), f.timeout, op.GetProgress(), op.GetId())
		case err != nil:
			if known := (*carrel.Error)(nil); asError(err, &known) && op.GetDone() {
				return &carrel.Error{Code: known.Code, Reason: known.Reason, Cause: known, Message: fmt.Sprintf("%s of %s did not succeed: %s", op.GetVerb(), op.GetTargetName(), known.Message)}
			}
			return err
		}
	}
	return a.show(op, []string{op.GetTargetName()}, func(t *table) {
		switch {
		case !op.GetDone():
			fmt.Fprintf(t.w, "%s of %s is under way: `carrel op show %s` tells how it goes\n", op.GetVerb(), op.GetTargetName(), op.GetId())
		default:
			took := ""
			if op.GetDuration() != nil {
				took = " (" + roundDuration(op.GetDuration().AsDuration()) + ")"
			}
			fmt.Fprintf(t.w, "%s is %s%s\n", op.GetTargetName(), past(op), took)
			if after != "" {
				fmt.Fprint(t.w, after)
			}
		}
	})
}

// past says what became of the target.
func past(op *carrelv1.Operation) string {
	switch carrel.Verb(op.GetVerb()) {
	case carrel.VerbPause:
		return "paused"
	case carrel.VerbStop:
		return "stopped"
	case carrel.VerbDelete, carrel.VerbDeleteImage:
		return "deleted"
	case carrel.VerbBuildImage, carrel.VerbImportImage:
		return "ready"
	}
	return "running"
}

func roundDuration(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// progressLine is one line on a terminal that is written over and over. Elsewhere it is nothing, but for one line when an operation has
// come to nothing for now and is tried again: whoever waits has to know for what.
type progressLine struct {
	a     *app
	op    *carrelv1.Operation
	start time.Time
	on    bool
	shown bool
	said  bool
}

func (a *app) progressLine(op *carrelv1.Operation) *progressLine {
	f, ok := a.stderr.(*os.File)
	return &progressLine{a: a, op: op, start: time.Now(), on: ok && term.IsTerminal(int(f.Fd())) && a.output == "table"}
}

func (l *progressLine) show(op *carrelv1.Operation) {
	if op.GetDone() {
		return
	}
	if !l.on {
		if !l.said && strings.HasPrefix(op.GetProgress(), "waiting ") {
			l.said = true
			fmt.Fprintf(l.a.stderr, "carrel: %s of %s: %s\n", op.GetVerb(), printable(op.GetTargetName()), printable(op.GetProgress()))
		}
		return
	}
	l.shown = true
	fmt.Fprintf(l.a.stderr, "\r%s %s: %s (%s)\x1b[K", op.GetVerb(), printable(op.GetTargetName()), printable(op.GetProgress()), roundDuration(time.Since(l.start)))
}

func (l *progressLine) clear() {
	if l.shown {
		fmt.Fprint(l.a.stderr, "\r\x1b[K")
	}
}

// verb makes a lifecycle command with one argument, the box.
func (a *app) verb(use, short, long, example string, call func(ctx context.Context, c *client.Client, box string) (*carrelv1.Operation, error)) *cobra.Command {
	var wait waitFlags
	cmd := &cobra.Command{
		Use: use + " NAME", Short: short, Long: long, Example: example,
		Args: takes("NAME"), ValidArgsFunction: a.boxNames(),
	}
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		op, err := call(ctx, c, args[0])
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, &wait, "")
	})
	wait.add(cmd)
	return a.shows(cmd)
}

// answer takes the message out of a response.
func answer[T any](resp *connect.Response[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func example(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }

func asError(err error, into **carrel.Error) bool { return errors.As(err, into) }
