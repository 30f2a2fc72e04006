package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) createCommand() *cobra.Command {
	var (
		resources   resourceFlags
		wait        waitFlags
		template    string
		labels, env []string
		idle        idleFlags
	)
	cmd := &cobra.Command{
		Use:   "create [NAME]",
		Short: "Make a box and start it",
		Long:  "Make a box from a template and start it. Without a name one is made up. What is not said about\nits size comes from the template.",
		Example: example("carrel create mybox -t python", "carrel create build -t base --cpu 4 --memory 8G --home 20G --label team=infra",
			"carrel create job --idle 10m --idle-action stop --max-run 8h --ttl 2d", "carrel create --no-wait -o name"),
		Args: takes("[NAME]"),
	}
	flags := cmd.Flags()
	flags.StringVarP(&template, "template", "t", "", "template, as NAME or NAME@VERSION (default \"base\")")
	resources.add(cmd)
	flags.StringArrayVar(&labels, "label", nil, "label as `KEY=VALUE`; may be repeated")
	flags.StringArrayVarP(&env, "env", "e", nil, "environment variable of every command as `KEY=VALUE`; may be repeated")
	idle.add(cmd)
	wait.add(cmd)
	a.complete(cmd, "template", a.templateNames())
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		if template == "" && cmd.Flags().Changed("template") {
			return usageError(cmd, "--template is empty; leave it out for the template base")
		}
		req := &carrelv1.CreateBoxRequest{Template: template}
		if len(args) > 0 {
			req.Name = args[0]
		}
		var err error
		if req.Resources, err = resources.parse(cmd); err != nil {
			return err
		}
		if req.Labels, err = keyValues(cmd, "label", labels); err != nil {
			return err
		}
		if req.Env, err = keyValues(cmd, "env", env); err != nil {
			return err
		}
		if req.Idle, _, err = idle.parse(cmd); err != nil {
			return err
		}
		op, err := answer(c.Boxes.CreateBox(ctx, connect.NewRequest(req)))
		if err != nil {
			return err
		}
		name := op.GetTargetName()
		return a.finish(ctx, c, op, &wait, fmt.Sprintf("Go on with:  carrel exec %s -t -- bash\n             carrel pause %s\n", name, name))
	})
	return a.shows(cmd)
}
