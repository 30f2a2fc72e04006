package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) deleteCommand() *cobra.Command {
	var sure bool
	cmd := a.verb("delete", "Delete a box and everything in it",
		"Delete a box with its files, its memory and its snapshots, for good. On a terminal it asks first; elsewhere\n--yes must be said.",
		example("carrel delete mybox", "carrel delete mybox --yes --no-wait"),
		func(ctx context.Context, c *client.Client, box string) (*carrelv1.Operation, error) {
			if !sure {
				if err := a.confirm(fmt.Sprintf("Delete box %s and everything in it?", box)); err != nil {
					return nil, err
				}
			}
			return answer(c.Boxes.DeleteBox(ctx, connect.NewRequest(&carrelv1.DeleteBoxRequest{Id: box})))
		})
	cmd.Aliases = []string{"rm"}
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return cmd
}

// confirm asks on a terminal; without one nothing that needs an answer is done.
func (a *app) confirm(question string) error {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return carrel.Errorf(carrel.CodePrecondition, "not_confirmed", "nobody is here to be asked: say --yes to do it")
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	line, _ := bufio.NewReader(a.stdin).ReadString('\n')
	if word := strings.ToLower(strings.TrimSpace(line)); word != "y" && word != "yes" {
		return carrel.Errorf(carrel.CodeAborted, "not_confirmed", "nothing was done")
	}
	return nil
}
