package main

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Aliases: []string{"tokens"}, Short: "API tokens",
		Long:    "API tokens, with which programs and the command line speak as you.",
		Example: example("carrel token create --description ci --expires 720h", "carrel token list"),
	}
	cmd.AddCommand(a.tokenCreate(), a.tokenList(), a.tokenRevoke())
	return cmd
}

func (a *app) tokenCreate() *cobra.Command {
	var (
		description, user string
		expires           time.Duration
	)
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token", Long: "Make a token. It is shown once; only a hash of it is kept. Operators can make one for another user.",
		Example: example("carrel token create --description laptop", "carrel token create --expires 720h -o name"), Args: takes(),
	}
	cmd.Flags().StringVar(&description, "description", "", "what it is for")
	cmd.Flags().StringVar(&user, "user", "", "whose it is, id or name (default: yours)")
	cmd.Flags().DurationVar(&expires, "expires", 0, "how long it is good, such as 720h (default: for ever)")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, _ []string) error {
		req := &carrelv1.CreateTokenRequest{Description: description, User: user}
		if cmd.Flags().Changed("expires") {
			if expires <= 0 {
				return usageError(cmd, "--expires is %s; it is a time from now, such as 720h", expires)
			}
			req.ExpireTime = timestamppb.New(time.Now().Add(expires))
		}
		resp, err := answer(c.Tokens.CreateToken(ctx, connect.NewRequest(req)))
		if err != nil {
			return err
		}
		return a.show(resp, []string{resp.GetSecret()}, func(t *table) {
			fmt.Fprintln(t.w, resp.GetSecret())
			fmt.Fprintln(a.stderr, "Keep it: it is not shown again.")
		})
	})
	return a.shows(cmd)
}

func (a *app) tokenList() *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tokens", Long: "List your tokens, or as an operator those of another user. Secrets are not shown.",
		Example: example("carrel token list"), Args: takes(),
	}
	cmd.Flags().StringVar(&user, "user", "", "whose, id or name (default: yours)")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := answer(c.Tokens.ListTokens(ctx, connect.NewRequest(&carrelv1.ListTokensRequest{User: user})))
		if err != nil {
			return err
		}
		var names []string
		for _, v := range list.GetTokens() {
			names = append(names, v.GetId())
		}
		return a.show(list, names, func(t *table) {
			t.row("ID", "DESCRIPTION", "CREATED", "EXPIRES", "REVOKED")
			for _, v := range list.GetTokens() {
				expires := when(v.GetExpireTime())
				if expires == "" {
					expires = "never"
				}
				t.row(v.GetId(), v.GetDescription(), when(v.GetCreateTime()), expires, when(v.GetRevokeTime()))
			}
		})
	})
	return a.shows(cmd)
}

func (a *app) tokenRevoke() *cobra.Command {
	var (
		all  bool
		user string
	)
	cmd := &cobra.Command{
		Use: "revoke [TOKEN]", Short: "Revoke a token, or all", Long: "Revoke a token by its id, at once and for good. Tokens that were made with it stay good: when somebody else had it, revoke all, " +
			"which leaves only the one that this command uses. Operators can revoke all of another user's.",
		Example: example("carrel token revoke t0000000000000000001", "carrel token revoke --all"), Args: takes("[TOKEN]"),
	}
	cmd.Flags().BoolVar(&all, "all", false, "every token of yours but the one in use, sign-ins of browsers included")
	cmd.Flags().StringVar(&user, "user", "", "with --all: whose, id or name (default: yours)")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		switch {
		case all && len(args) > 0:
			return usageError(cmd, "--all means every token; name none")
		case !all && len(args) == 0:
			return usageError(cmd, "TOKEN is missing; --all revokes every one but that in use")
		case !all && user != "":
			return usageError(cmd, "--user says whose tokens --all means")
		case all:
			return a.revokeAll(ctx, c, user)
		}
		if _, err := c.Tokens.RevokeToken(ctx, connect.NewRequest(&carrelv1.RevokeTokenRequest{Id: args[0]})); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "token %s is revoked\n", args[0])
		return nil
	})
	return cmd
}

// revokeAll ends every token of a user but the one in use, until none is left that somebody could make another with meanwhile.
func (a *app) revokeAll(ctx context.Context, c *client.Client, user string) error {
	for count := 0; ; {
		list, err := answer(c.Tokens.ListTokens(ctx, connect.NewRequest(&carrelv1.ListTokensRequest{User: user})))
		if err != nil {
			return err
		}
		before := count
		for _, token := range list.GetTokens() {
			if token.GetRevokeTime() != nil || token.GetId() == c.TokenID() {
				continue
			}
			if _, err := c.Tokens.RevokeToken(ctx, connect.NewRequest(&carrelv1.RevokeTokenRequest{Id: token.GetId()})); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "token %s is revoked\n", token.GetId())
			count++
		}
		if count == before {
			fmt.Fprintf(a.stdout, "%d revoked in all\n", count)
			return nil
		}
	}
}
