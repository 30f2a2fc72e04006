package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) orgCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "org", Aliases: []string{"orgs"}, Short: "Organisations and their members",
		Long:    "Organisations, to which boxes, templates and images belong, and their members.",
		Example: example("carrel org list", "carrel org member set research ada --role member"),
	}
	member := &cobra.Command{
		Use: "member", Aliases: []string{"members"}, Short: "Members of an organisation",
		Long:    "Members of an organisation and their roles: owner, admin, member, viewer.",
		Example: example("carrel org member list research"),
	}
	member.AddCommand(a.memberList(), a.memberSet(), a.memberRemove())
	cmd.AddCommand(a.orgList(), a.orgShow(), a.orgCreate(), member)
	return cmd
}

func (a *app) orgList() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List organisations", Long: "List the organisations that you are in; operators see all.",
		Example: example("carrel org list"), Args: takes(),
		RunE: a.does(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := answer(c.Orgs.ListOrgs(ctx, connect.NewRequest(&carrelv1.ListOrgsRequest{})))
			if err != nil {
				return err
			}
			var names []string
			for _, o := range list.GetOrgs() {
				names = append(names, o.GetName())
			}
			return a.show(list, names, func(t *table) {
				t.row("NAME", "CREATED", "ID")
				for _, o := range list.GetOrgs() {
					t.row(o.GetName(), when(o.GetCreateTime()), o.GetId())
				}
			})
		}),
	})
}

func (a *app) showOrg(o *carrelv1.Org) error {
	return a.show(o, []string{o.GetName()}, func(t *table) {
		t.field("Name", o.GetName())
		t.field("Id", o.GetId())
		t.field("Created", when(o.GetCreateTime()))
	})
}

func (a *app) orgShow() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "show ORG", Short: "Show an organisation", Long: "Show an organisation, by id or name.",
		Example: example("carrel org show research"), Args: takes("ORG"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			o, err := answer(c.Orgs.GetOrg(ctx, connect.NewRequest(&carrelv1.GetOrgRequest{Org: args[0]})))
			if err != nil {
				return err
			}
			return a.showOrg(o)
		}),
	})
}

func (a *app) orgCreate() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "create NAME", Short: "Make an organisation", Long: "Make an organisation; you are its owner.",
		Example: example("carrel org create research"), Args: takes("NAME"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			o, err := answer(c.Orgs.CreateOrg(ctx, connect.NewRequest(&carrelv1.CreateOrgRequest{Name: args[0]})))
			if err != nil {
				return err
			}
			return a.showOrg(o)
		}),
	})
}

func (a *app) memberList() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "list ORG", Aliases: []string{"ls"}, Short: "List the members", Long: "List the members of an organisation with their roles.",
		Example: example("carrel org member list research"), Args: takes("ORG"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := answer(c.Orgs.ListMembers(ctx, connect.NewRequest(&carrelv1.ListMembersRequest{Org: args[0]})))
			if err != nil {
				return err
			}
			var names []string
			for _, m := range list.GetMembers() {
				names = append(names, m.GetUserName())
			}
			return a.show(list, names, func(t *table) {
				t.row("USER", "ROLE", "ID")
				for _, m := range list.GetMembers() {
					t.row(m.GetUserName(), m.GetRole(), m.GetUserId())
				}
			})
		}),
	})
}

func (a *app) memberSet() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use: "set ORG USER", Short: "Add a member or change their role", Long: "Add a user to an organisation, or change their role: owner, admin, member or viewer.",
		Example: example("carrel org member set research ada --role admin"), Args: takes("ORG", "USER"),
	}
	cmd.Flags().StringVar(&role, "role", "member", "owner, admin, member or viewer")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		m, err := answer(c.Orgs.SetMember(ctx, connect.NewRequest(&carrelv1.SetMemberRequest{Org: args[0], User: args[1], Role: role})))
		if err != nil {
			return err
		}
		return a.show(m, []string{m.GetUserName()}, func(t *table) {
			fmt.Fprintf(t.w, "%s is %s of %s\n", m.GetUserName(), m.GetRole(), args[0])
		})
	})
	return a.shows(cmd)
}

func (a *app) memberRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove ORG USER", Aliases: []string{"rm"}, Short: "Remove a member", Long: "Remove a user from an organisation. Their boxes stay.",
		Example: example("carrel org member remove research ada"), Args: takes("ORG", "USER"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			if _, err := c.Orgs.RemoveMember(ctx, connect.NewRequest(&carrelv1.RemoveMemberRequest{Org: args[0], User: args[1]})); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s is no member of %s any more\n", args[1], args[0])
			return nil
		}),
	}
}
