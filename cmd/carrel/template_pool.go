package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) templatePool() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pool NAME N", Short: "Have N prepared boxes of a template wait to be taken",
		Long: "Have N prepared boxes of a template wait to be taken, from 0 to 100. Each counts against its node's room like any box, and gives way when a user's box needs it. " +
			"A box that is created without other sizes than the template's is one of them, at once. For operators of the platform.",
		Example:           example("carrel template pool python 2", "carrel template pool python 0"),
		Args:              takes("NAME", "N"),
		ValidArgsFunction: a.templateNames(),
	}
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		size, err := strconv.ParseInt(args[1], 10, 32)
		if err != nil {
			return usageError(cmd, "%q is no number of boxes", args[1])
		}
		t, err := answer(c.Templates.UpdateTemplatePool(ctx, connect.NewRequest(&carrelv1.UpdateTemplatePoolRequest{Name: args[0], Size: int32(size)})))
		if err != nil {
			return err
		}
		return a.showTemplate(t)
	})
	return a.shows(cmd)
}

// recipeText says in one line what is prepared.
func recipeText(r *carrelv1.PrebuildRecipe) string {
	var parts []string
	parts = append(parts, r.GetSetup()...)
	if r.GetKernel() != "" {
		parts = append(parts, "kernel "+r.GetKernel())
	}
	if lines := strings.Fields(strings.ReplaceAll(r.GetImports(), "\n", " ; ")); len(lines) > 0 {
		parts = append(parts, strings.Trim(strings.Join(lines, " "), " ;"))
	}
	return strings.Join(parts, "; ")
}

// prebuildText says how a prebuild is.
func prebuildText(p *carrelv1.Prebuild) string {
	text := p.GetState()
	if p.GetSizeBytes() > 0 {
		text += ", " + size(p.GetSizeBytes())
	}
	if d := p.GetBuildTime(); d != nil {
		text += fmt.Sprintf(", made in %s", d.AsDuration().Round(100*time.Millisecond))
	}
	if f := p.GetFailure(); f != nil {
		text += ": " + f.GetMessage()
		if at := f.GetRetryTime(); at != nil {
			text += " (again at " + when(at) + ")"
		}
	}
	return text
}
