package main

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) kernelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "kernel",
		Short:   "Show, interrupt, restart and end the kernels of a box",
		Long:    "A kernel is a process that runs code for notebooks and for `carrel run`, and keeps its variables between one cell and\nthe next. It goes on when nobody is connected, and is part of the memory that a pause keeps.",
		Example: example("carrel kernel list mybox", "carrel kernel interrupt mybox", "carrel kernel restart mybox work/plot.ipynb"),
	}
	cmd.AddCommand(a.kernelListCommand(), a.kernelInterruptCommand(), a.kernelRestartCommand(), a.kernelShutdownCommand())
	return cmd
}

func (a *app) kernelListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "list NAME",
		Short:             "List the kernels of a box and what they do",
		Example:           example("carrel kernel list mybox", "carrel kernel list mybox -o json"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.boxNames(),
	}
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		status, err := c.NotebookStatus(ctx, args[0])
		if err != nil {
			return err
		}
		var names []string
		for _, k := range status.GetKernels() {
			names = append(names, k.GetId())
		}
		return a.show(status, names, func(t *table) {
			t.row("KERNEL", "LANGUAGE", "STATE", "QUEUED", "STARTED", "ACTIVE", "NOTEBOOK")
			for _, k := range status.GetKernels() {
				t.row(k.GetId(), k.GetDisplayName(), kernelState(k), strconv.Itoa(int(k.GetQueued())), when(k.GetStartTime()), age(k.GetActivityTime()), k.GetPath())
			}
		})
	})
	return a.shows(cmd)
}

func kernelState(k *carrelv1.Kernel) string {
	state := strings.ToLower(strings.TrimPrefix(k.GetState().String(), "KERNEL_STATE_"))
	if k.GetMessage() != "" {
		state += ": " + k.GetMessage()
	}
	return state
}

func (a *app) kernelInterruptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "interrupt NAME [KERNEL]",
		Short:   "Interrupt what a kernel runs",
		Long:    "Interrupt what a kernel runs, as Ctrl-C does, and cancel what waits for it. Without KERNEL all that are busy are\ninterrupted. KERNEL is an id, or the path of a notebook.",
		Example: example("carrel kernel interrupt mybox", "carrel kernel interrupt mybox work/plot.ipynb"),
		Args:    takes("NAME", "[KERNEL]"),
	}
	cmd.ValidArgsFunction = a.boxAndKernel()
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		id := ""
		if len(args) > 1 {
			k, err := findKernel(ctx, c, args)
			if err != nil {
				return err
			}
			id = k.GetId()
		}
		n, err := c.Interrupt(ctx, args[0], id)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, "interrupted or cancelled: %d\n", n)
		return err
	})
	return cmd
}

func (a *app) kernelRestartCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "restart NAME [KERNEL]",
		Short:   "Give a kernel a new process",
		Long:    "End a kernel's process and start another under the same id. Its variables are lost, and what was queued is cancelled.\nKERNEL is an id, or the path of a notebook; it may be left out when the box has one kernel.",
		Example: example("carrel kernel restart mybox", "carrel kernel restart mybox work/plot.ipynb"),
		Args:    takes("NAME", "[KERNEL]"),
	}
	cmd.ValidArgsFunction = a.boxAndKernel()
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := findKernel(ctx, c, args)
		if err != nil {
			return err
		}
		_, err = c.RestartKernel(ctx, args[0], k.GetId())
		return err
	})
	return cmd
}

func (a *app) kernelShutdownCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "shutdown NAME [KERNEL]",
		Short:   "End a kernel",
		Long:    "End a kernel and free its memory. KERNEL is an id, or the path of a notebook; it may be left out when the box has one\nkernel.",
		Example: example("carrel kernel shutdown mybox", "carrel kernel shutdown mybox work/plot.ipynb"),
		Args:    takes("NAME", "[KERNEL]"),
	}
	cmd.ValidArgsFunction = a.boxAndKernel()
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := findKernel(ctx, c, args)
		if err != nil {
			return err
		}
		return c.ShutdownKernel(ctx, args[0], k.GetId())
	})
	return cmd
}

// findKernel finds the kernel that a command line means: by id, by its notebook's path or the last part of that, or the only one.
func findKernel(ctx context.Context, c *client.Client, args []string) (*carrelv1.Kernel, error) {
	status, err := c.NotebookStatus(ctx, args[0])
	if err != nil {
		return nil, err
	}
	wanted := ""
	if len(args) > 1 {
		wanted = args[1]
	}
	var found []*carrelv1.Kernel
	for _, k := range status.GetKernels() {
		if k.GetId() == wanted || k.GetPath() != "" && k.GetPath() == wanted {
			return k, nil
		}
		if wanted == "" || k.GetPath() != "" && strings.HasSuffix(k.GetPath(), "/"+path.Clean(wanted)) {
			found = append(found, k)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, carrel.Errorf(carrel.CodeInvalid, "several_kernels", "box %s has several kernels that are meant by that; `carrel kernel list %s` has their ids", args[0], args[0])
	case wanted == "":
		return nil, carrel.Errorf(carrel.CodeNotFound, "kernel_not_found", "box %s has no kernel", args[0])
	}
	return nil, carrel.Errorf(carrel.CodeNotFound, "kernel_not_found", "box %s has no kernel %q; `carrel kernel list %s` has those that it has", args[0], wanted, args[0])
}

// boxAndKernel completes a box and then one of its kernels.
func (a *app) boxAndKernel() completion {
	boxes := a.boxNames()
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return boxes(cmd, args, start)
		}
		return a.completes(func(ctx context.Context, c *client.Client) []string {
			status, err := c.NotebookStatus(ctx, args[0])
			if err != nil {
				return nil
			}
			var ids []string
			for _, k := range status.GetKernels() {
				ids = append(ids, k.GetId()+"\t"+strings.TrimSpace(kernelState(k)+" "+k.GetPath()))
			}
			return ids
		})(cmd, nil, start)
	}
}
