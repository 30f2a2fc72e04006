package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "template",
		Aliases: []string{"templates"},
		Short:   "Recipes that boxes are made from",
		Long:    "Recipes that boxes are made from: an image, a size, an environment. A version never changes; pushing makes the next.",
		Example: example("carrel template list", "carrel template push templates/python.yaml"),
	}
	cmd.AddCommand(a.templateList(), a.templateShow(), a.templatePush(), a.templatePool())
	return cmd
}

func (a *app) templateList() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List templates",
		Long:    "List the newest version of every template that you can use.",
		Example: example("carrel template list", "carrel template list --all-versions"),
		Args:    takes(),
	}
	cmd.Flags().BoolVar(&all, "all-versions", false, "every version, not only the newest")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, _ []string) error {
		list := &carrelv1.ListTemplatesResponse{}
		req := &carrelv1.ListTemplatesRequest{AllVersions: all}
		for {
			page, err := answer(c.Templates.ListTemplates(ctx, connect.NewRequest(req)))
			if err != nil {
				return err
			}
			list.Templates = append(list.Templates, page.GetTemplates()...)
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		var names []string
		for _, t := range list.Templates {
			names = append(names, templateName(t))
		}
		return a.show(list, names, func(t *table) {
			t.row("NAME", "VERSION", "IMAGE", "CPU", "MEMORY", "HOME", "DESCRIPTION")
			for _, v := range list.Templates {
				r := v.GetResources()
				t.row(v.GetName(), fmt.Sprint(v.GetVersion()), v.GetImage(), cores(r.GetCpuMillis()), size(r.GetMemoryBytes()), size(r.GetHomeBytes()), v.GetDescription())
			}
		})
	})
	return a.shows(cmd)
}

func templateName(t *carrelv1.Template) string {
	return fmt.Sprintf("%s@%d", t.GetName(), t.GetVersion())
}

func (a *app) templateShow() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "show NAME[@VERSION]", Short: "Show a template", Long: "Show one version of a template, the newest if none is said.",
		Example:           example("carrel template show python", "carrel template show python@2 -o json"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.templateNames(),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := answer(c.Templates.GetTemplate(ctx, connect.NewRequest(&carrelv1.GetTemplateRequest{Name: args[0]})))
			if err != nil {
				return err
			}
			var prebuilds []*carrelv1.Prebuild
			if t.GetPrebuild() != nil {
				list, err := answer(c.Templates.ListPrebuilds(ctx, connect.NewRequest(&carrelv1.ListPrebuildsRequest{Template: t.GetName()})))
				if err != nil {
					return err
				}
				prebuilds = list.GetPrebuilds()
			}
			return a.showTemplate(t, prebuilds...)
		}),
	})
}

func (a *app) showTemplate(v *carrelv1.Template, prebuilds ...*carrelv1.Prebuild) error {
	return a.show(v, []string{templateName(v)}, func(t *table) {
		t.field("Name", templateName(v))
		t.field("Description", v.GetDescription())
		t.field("Image", v.GetImage())
		t.field("Image digest", v.GetImageDigest())
		t.field("Resources", resourcesText(v.GetResources()))
		t.field("Environment", pairs(v.GetEnv()))
		t.field("Labels", pairs(v.GetLabels()))
		t.field("Sudo", yes(v.GetSudo()))
		t.field("Startup", strings.Join(v.GetStartup(), "; "))
		t.field("Idle", idleText(v.GetIdle()))
		t.field("Prepares", recipeText(v.GetPrebuild()))
		for _, p := range prebuilds {
			if p.GetOrgId() == v.GetOrgId() {
				t.field("Prebuild", p.GetTemplate()+" on "+p.GetNodeName()+", "+prebuildText(p))
			}
		}
		if v.GetPoolSize() > 0 {
			t.field("Warm pool", fmt.Sprintf("%d of %d wait", v.GetPoolReady(), v.GetPoolSize()))
		}
		t.field("Organisation", v.GetOrgId())
		t.field("Created", when(v.GetCreateTime()))
		t.field("Id", v.GetId())
	})
}

func (a *app) templatePush() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "push FILE", Short: "Make a new version of a template from a YAML file",
		Long:    "Make a new version of a template from a YAML file; - reads standard input. Unknown fields in it are errors.",
		Example: example("carrel template push templates/python.yaml", "carrel template push - < mine.yaml"),
		Args:    takes("FILE"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			text, err := a.readText(args[0])
			if err != nil {
				return err
			}
			t, err := answer(c.Templates.PushTemplate(ctx, connect.NewRequest(&carrelv1.PushTemplateRequest{Yaml: text})))
			if err != nil {
				return err
			}
			return a.showTemplate(t)
		}),
	})
}

const maxText = 1 << 20

// readText reads a small file, or standard input for "-".
func (a *app) readText(path string) (string, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", carrel.Errorf(carrel.CodeInvalid, "unreadable_file", "the file cannot be read: %v", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxText+1))
	switch {
	case err != nil:
		return "", carrel.Errorf(carrel.CodeInvalid, "unreadable_file", "%s cannot be read: %v", path, err)
	case len(data) > maxText:
		return "", carrel.Errorf(carrel.CodeInvalid, "file_too_large", "%s is larger than %d bytes", path, maxText)
	}
	return string(data), nil
}
