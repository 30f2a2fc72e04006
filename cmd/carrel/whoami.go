package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) whoamiCommand() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "whoami", Short: "Who and where you are", Long: "Show as whom and to which Carrel this command line speaks, with your organisations and roles.",
		Example: example("carrel whoami"), Args: takes(),
		RunE: a.does(func(ctx context.Context, c *client.Client, _ []string) error {
			who, err := answer(c.Users.WhoAmI(ctx, connect.NewRequest(&carrelv1.WhoAmIRequest{})))
			if err != nil {
				return err
			}
			return a.show(who, []string{who.GetUser().GetName()}, func(t *table) {
				t.field("User", who.GetUser().GetName())
				t.field("Id", who.GetUser().GetId())
				t.field("Operator", yes(who.GetUser().GetOperator()))
				t.field("At", c.URL())
				names := map[string]string{}
				for _, o := range who.GetOrgs() {
					names[o.GetId()] = o.GetName()
				}
				for _, m := range who.GetMemberships() {
					name := names[m.GetOrgId()]
					if name == "" {
						name = m.GetOrgId()
					}
					t.field("Organisation", name+" ("+m.GetRole()+")")
				}
			})
		}),
	})
}
