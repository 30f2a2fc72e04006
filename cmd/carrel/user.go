package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "user", Aliases: []string{"users"}, Short: "Users of the platform", Long: "Users of the platform. For operators.",
		Example: example("carrel user create ada && carrel token create --user ada", "carrel user list"),
	}
	cmd.AddCommand(a.userCreate(), a.userList())
	return cmd
}

func (a *app) userCreate() *cobra.Command {
	var operator bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a user", Long: "Make a user. Give them a token with `carrel token create --user` and a place with `carrel org member set`.",
		Example: example("carrel user create ada"), Args: takes("NAME"),
	}
	cmd.Flags().BoolVar(&operator, "operator", false, "make them an operator of the platform")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		u, err := answer(c.Users.CreateUser(ctx, connect.NewRequest(&carrelv1.CreateUserRequest{Name: args[0], Operator: operator})))
		if err != nil {
			return err
		}
		return a.show(u, []string{u.GetName()}, func(t *table) {
			t.field("Name", u.GetName())
			t.field("Id", u.GetId())
			t.field("Operator", yes(u.GetOperator()))
		})
	})
	return a.shows(cmd)
}

func (a *app) userList() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List users", Long: "List the users of the platform.",
		Example: example("carrel user list"), Args: takes(),
		RunE: a.does(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := answer(c.Users.ListUsers(ctx, connect.NewRequest(&carrelv1.ListUsersRequest{})))
			if err != nil {
				return err
			}
			var names []string
			for _, u := range list.GetUsers() {
				names = append(names, u.GetName())
			}
			return a.show(list, names, func(t *table) {
				t.row("NAME", "OPERATOR", "CREATED", "ID")
				for _, u := range list.GetUsers() {
					t.row(u.GetName(), yes(u.GetOperator()), when(u.GetCreateTime()), u.GetId())
				}
			})
		}),
	})
}
