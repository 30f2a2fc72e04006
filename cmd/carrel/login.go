package main

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) loginCommand() *cobra.Command {
	var name, tokenFile, caFile string
	cmd := &cobra.Command{
		Use:   "login [URL]",
		Short: "Sign in to a Carrel",
		Long: "Sign in to a Carrel with an API token, and keep both as a context. The token is asked for on a terminal, else\n" +
			"read from standard input, or from --token-file. It is tried before it is kept. The first token of a machine of\n" +
			"your own is in the file admin-token of its data directory.",
		Example: example("carrel login http://127.0.0.1:7070", "carrel login https://carrel.example --name work --token-file ~/token",
			"sudo cat /var/lib/carrel/admin-token | carrel login http://127.0.0.1:7070"),
		Args: takes("[URL]"),
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the context (default: from the host's name)")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with the token")
	cmd.Flags().StringVar(&caFile, "ca-file", "", "PEM file with the authorities to trust for an https URL")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file, path, err := a.contexts()
		if err != nil {
			return err
		}
		address := "http://127.0.0.1:7070"
		if len(args) > 0 {
			address = args[0]
		}
		u, err := client.ParseURL(address)
		if err != nil {
			return err
		}
		if name == "" {
			name = contextName(u)
		}
		if err := client.ValidateContextName(name); err != nil {
			return err
		}
		token, err := a.readToken(tokenFile, u.String())
		if err != nil {
			return err
		}
		entry := client.Context{URL: u.String(), Token: token, Org: a.flags.Org, CAFile: caFile}
		c, err := client.New(client.Config{Context: entry, UserAgent: "carrel/" + version()})
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		who, err := answer(c.Users.WhoAmI(ctx, connect.NewRequest(&carrelv1.WhoAmIRequest{})))
		if err != nil {
			return err
		}
		file.Contexts[name] = entry
		file.Current = name
		if err := file.Save(path); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "You are %s at %s, kept as context %q.\n", who.GetUser().GetName(), entry.URL, name)
		return nil
	}
	return cmd
}

// contextName makes a name from an address: local for this machine, else the host's.
func contextName(u *url.URL) string {
	host := strings.ToLower(u.Hostname())
	if host == "localhost" || host == "127.0.0.1" || host == "::1" {
		return "local"
	}
	if client.ValidateContextName(host) == nil {
		return host
	}
	return "carrel"
}

func (a *app) readToken(path, address string) (string, error) {
	var token string
	switch f, ok := a.stdin.(*os.File); {
	case a.env[client.EnvToken] != "" && path == "":
		token = a.env[client.EnvToken]
	case path != "":
		text, err := a.readText(path)
		if err != nil {
			return "", err
		}
		token = text
	case ok && term.IsTerminal(int(f.Fd())):
		fmt.Fprintf(a.stderr, "API token for %s: ", address)
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.stderr)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		token = string(text)
	default:
		line, _ := bufio.NewReader(a.stdin).ReadString('\n')
		token = line
	}
	token = strings.TrimSpace(token)
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", carrel.Errorf(carrel.CodeInvalid, "no_token", "no API token was given: write it on standard input, or name its file with --token-file")
	}
	return token, nil
}
