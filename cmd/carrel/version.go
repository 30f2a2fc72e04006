package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
)

// buildVersion is set by the linker (-X main.buildVersion=…).
var buildVersion string

func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use: "version", Short: "Versions of this program and of the server", Long: "Show the version of this program and, if it can be reached, of the server.",
		Example: example("carrel version", "carrel version --client"), Args: takes(),
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "do not ask the server")
	cmd.RunE = func(*cobra.Command, []string) error {
		fmt.Fprintf(a.stdout, "client %s\n", version())
		if clientOnly {
			return nil
		}
		c, err := a.client()
		if err != nil {
			return nil //nolint:nilerr // nobody is signed in: there is no server to ask
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		server, err := c.ServerVersion(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "server %s (%s)\n", server, c.URL())
		return nil
	}
	return cmd
}
