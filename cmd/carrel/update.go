package main

import (
	"context"
	"maps"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) updateCommand() *cobra.Command {
	var (
		resources                              resourceFlags
		name                                   string
		labels, env, dropLabels, dropVariables []string
		idle                                   idleFlags
	)
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change a box's name, labels, environment, size or idle policy",
		Long: "Change a box. Labels and variables are added to those that it has. What is only read when a box boots\n(size, environment) holds from its next start on; " +
			"what becomes of it when nobody uses it, at once. There\nthe word template means: what the template says.",
		Example: example("carrel update mybox --name otherbox", "carrel update mybox --label team=infra --drop-label old",
			"carrel update mybox --memory 8G && carrel restart mybox", "carrel update mybox --idle 2h --max-run template"),
		Args:              takes("NAME"),
		ValidArgsFunction: a.boxNames(),
	}
	resources.add(cmd)
	idle.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "new name")
	flags.StringArrayVar(&labels, "label", nil, "label to set as `KEY=VALUE`; may be repeated")
	flags.StringArrayVar(&dropLabels, "drop-label", nil, "label `KEY` to take away; may be repeated")
	flags.StringArrayVarP(&env, "env", "e", nil, "variable to set as `KEY=VALUE`; may be repeated")
	flags.StringArrayVar(&dropVariables, "drop-env", nil, "variable `NAME` to take away; may be repeated")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		newLabels, err := keyValues(cmd, "label", labels)
		if err != nil {
			return err
		}
		newEnv, err := keyValues(cmd, "env", env)
		if err != nil {
			return err
		}
		size, err := resources.parse(cmd)
		if err != nil {
			return err
		}
		box, err := answer(c.Boxes.GetBox(ctx, connect.NewRequest(&carrelv1.GetBoxRequest{Id: args[0]})))
		if err != nil {
			return err
		}
		change := &carrelv1.Box{Labels: changed(box.GetLabels(), newLabels, dropLabels), Env: changed(box.GetEnv(), newEnv, dropVariables)}
		mask := &fieldmaskpb.FieldMask{}
		if name != "" {
			change.Name = name
			mask.Paths = append(mask.Paths, "name")
		}
		if len(labels)+len(dropLabels) > 0 {
			mask.Paths = append(mask.Paths, "labels")
		}
		if len(env)+len(dropVariables) > 0 {
			mask.Paths = append(mask.Paths, "env")
		}
		if resources != (resourceFlags{}) {
			change.Resources = merged(box.GetResources(), size)
			mask.Paths = append(mask.Paths, "resources")
		}
		policy, fields, err := idle.parse(cmd)
		if err != nil {
			return err
		}
		change.Idle = policy
		for _, field := range fields {
			mask.Paths = append(mask.Paths, "idle."+field)
		}
		if len(mask.Paths) == 0 {
			return usageError(cmd, "nothing to change was said")
		}
		// The etag makes sure that what was merged is still what is there.
		box, err = answer(c.Boxes.UpdateBox(ctx, connect.NewRequest(&carrelv1.UpdateBoxRequest{Id: box.GetId(), Box: change, UpdateMask: mask, Etag: box.GetEtag()})))
		if err != nil {
			return err
		}
		return a.showBox(box)
	})
	return a.shows(cmd)
}

func changed(have, set map[string]string, drop []string) map[string]string {
	result := map[string]string{}
	maps.Copy(result, have)
	maps.Copy(result, set)
	for _, key := range drop {
		delete(result, key)
	}
	return result
}

func merged(have, want *carrelv1.Resources) *carrelv1.Resources {
	r := &carrelv1.Resources{}
	if have != nil {
		r.CpuMillis, r.MemoryBytes, r.HomeBytes, r.RootBytes = have.GetCpuMillis(), have.GetMemoryBytes(), have.GetHomeBytes(), have.GetRootBytes()
		r.Processes, r.TmpBytes, r.ShmBytes = have.GetProcesses(), have.GetTmpBytes(), have.GetShmBytes()
	}
	for _, f := range []struct {
		into *int64
		from int64
	}{{&r.CpuMillis, want.GetCpuMillis()}, {&r.MemoryBytes, want.GetMemoryBytes()}, {&r.HomeBytes, want.GetHomeBytes()}, {&r.RootBytes, want.GetRootBytes()}, {&r.Processes, want.GetProcesses()}} {
		if f.from != 0 {
			*f.into = f.from
		}
	}
	return r
}
