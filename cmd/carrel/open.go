package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) openCommand() *cobra.Command {
	var (
		path  string
		quiet bool
	)
	cmd := &cobra.Command{
		Use:   "open [NAME [PORT]]",
		Short: "Open Carrel, or a port of a box, in the browser",
		Long: "Open Carrel's pages in the browser of this computer, signed in as you; with NAME a port of that box. Without PORT it is the\n" +
			"one on which a program in the box listens. The link that signs the browser in is good once and for a minute.",
		Example:           example("carrel open", "carrel open mybox 8000", "carrel open mybox", "carrel open mybox 8888 --path /lab --print"),
		Args:              takes("[NAME]", "[PORT]"),
		ValidArgsFunction: a.boxNames(),
	}
	cmd.Flags().StringVar(&path, "path", "/", "`PATH` to open there")
	cmd.Flags().BoolVar(&quiet, "print", false, "print the link and open nothing")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		if len(args) == 0 {
			link, err := answer(c.Ports.OpenWeb(ctx, connect.NewRequest(&carrelv1.OpenWebRequest{Path: path})))
			if err != nil {
				return err
			}
			return a.show(link, []string{link.GetUrl()}, func(t *table) {
				if quiet || a.browse(ctx, link.GetUrl()) != nil {
					fmt.Fprintln(t.w, link.GetUrl())
					return
				}
				fmt.Fprintln(t.w, "Carrel is open in your browser.")
			})
		}
		box, err := answer(c.Boxes.GetBox(ctx, connect.NewRequest(&carrelv1.GetBoxRequest{Id: args[0]})))
		if err != nil {
			return err
		}
		var port int
		if len(args) > 1 {
			if port, err = portNumber(cmd, args[1]); err != nil {
				return err
			}
		} else if port, err = onlyListener(ctx, c, box); err != nil {
			return err
		}
		link, err := answer(c.Ports.OpenPort(ctx, connect.NewRequest(&carrelv1.OpenPortRequest{Box: box.GetId(), Port: int32(port), Path: path})))
		if err != nil {
			return err
		}
		return a.show(link, []string{link.GetPortUrl()}, func(t *table) {
			if quiet || a.browse(ctx, link.GetUrl()) != nil {
				fmt.Fprintln(t.w, link.GetUrl())
				return
			}
			fmt.Fprintf(t.w, "Port %d of box %s is open in your browser: %s\n", port, box.GetName(), link.GetPortUrl())
		})
	})
	return a.shows(cmd)
}

// portNumber reads a port of the command line.
func portNumber(cmd *cobra.Command, text string) (int, error) {
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return 0, usageError(cmd, "%q is no port; it is a number from 1 to 65535", text)
	}
	return port, nil
}

// onlyListener is the port on which a program in the box listens, if it is the only one.
func onlyListener(ctx context.Context, c *client.Client, box *carrelv1.Box) (int, error) {
	list, err := answer(c.Ports.ListBoxListeners(ctx, connect.NewRequest(&carrelv1.ListBoxListenersRequest{Box: box.GetId()})))
	if err != nil {
		return 0, err
	}
	switch found := list.GetListeners(); len(found) {
	case 0:
		return 0, carrel.Errorf(carrel.CodePrecondition, "no_listener", "no program in box %s listens on a port yet; start one, or say which port you mean: carrel open %s PORT", box.GetName(), box.GetName())
	case 1:
		return int(found[0].GetPort()), nil
	default:
		text := ""
		for _, l := range found {
			text += fmt.Sprintf(" %d", l.GetPort())
			if l.GetProcess() != "" {
				text += " (" + l.GetProcess() + ")"
			}
		}
		return 0, carrel.Errorf(carrel.CodePrecondition, "many_listeners", "programs in box %s listen on several ports:%s. Say which one: carrel open %s PORT", box.GetName(), text, box.GetName())
	}
}

// browse opens a URL with the program that this system has for that.
func (a *app) browse(ctx context.Context, url string) error {
	program := []string{"xdg-open", url}
	switch runtime.GOOS {
	case "darwin":
		program[0] = "open"
	case "windows":
		program = []string{"rundll32", "url.dll,FileProtocolHandler", url}
	}
	if browser := a.getenv("BROWSER"); browser != "" {
		program = []string{browser, url}
	}
	return exec.CommandContext(ctx, program[0], program[1:]...).Run()
}
