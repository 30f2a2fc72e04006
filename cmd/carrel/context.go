package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/carrel"
)

func (a *app) contextCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "context", Aliases: []string{"contexts"}, Short: "Carrels that you are signed in to",
		Long:    "Contexts are the Carrels that you are signed in to: an address, a token and perhaps an organisation.",
		Example: example("carrel context list", "carrel context use work"),
	}
	cmd.AddCommand(a.contextList(), a.contextUse(), a.contextRemove())
	return cmd
}

func (a *app) contextList() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List contexts", Long: "List the contexts; the one in use has a star. Tokens are not shown.",
		Example: example("carrel context list", "carrel context list -o json"), Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			file, _, err := a.contexts()
			if err != nil {
				return err
			}
			switch a.output {
			case "json":
				type entry struct {
					Name    string `json:"name"`
					URL     string `json:"url"`
					Org     string `json:"org"`
					Current bool   `json:"current"`
				}
				list := []entry{}
				for _, name := range file.Names() {
					c := file.Contexts[name]
					list = append(list, entry{name, c.URL, c.Org, name == file.Current})
				}
				text, err := json.MarshalIndent(map[string]any{"contexts": list}, "", "  ")
				if err != nil {
					return fmt.Errorf("encode contexts: %w", err)
				}
				_, err = a.stdout.Write(append(text, '\n'))
				return err
			case "name":
				for _, name := range file.Names() {
					fmt.Fprintln(a.stdout, name)
				}
				return nil
			}
			t := &table{w: tabwriter.NewWriter(a.stdout, 0, 4, 3, ' ', 0)}
			t.row("CURRENT", "NAME", "URL", "ORG")
			for _, name := range file.Names() {
				star := " "
				if name == file.Current {
					star = "*"
				}
				t.row(star, name, file.Contexts[name].URL, file.Contexts[name].Org)
			}
			return t.w.Flush()
		},
	})
}

func (a *app) contextUse() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Use another context from now on", Long: "Use another context from now on.",
		Example: example("carrel context use work"), Args: takes("NAME"), ValidArgsFunction: a.contextNames,
		RunE: func(_ *cobra.Command, args []string) error {
			file, path, err := a.contexts()
			if err != nil {
				return err
			}
			if _, ok := file.Contexts[args[0]]; !ok {
				return unknownContext(args[0])
			}
			file.Current = args[0]
			if err := file.Save(path); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "using context %q\n", args[0])
			return nil
		},
	}
}

func (a *app) contextRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Forget a context", Long: "Forget a context and its token. The token itself stays good: `carrel token revoke` ends it.",
		Example: example("carrel context remove old"), Args: takes("NAME"), ValidArgsFunction: a.contextNames,
		RunE: func(_ *cobra.Command, args []string) error {
			file, path, err := a.contexts()
			if err != nil {
				return err
			}
			if _, ok := file.Contexts[args[0]]; !ok {
				return unknownContext(args[0])
			}
			delete(file.Contexts, args[0])
			if file.Current == args[0] {
				file.Current = ""
			}
			if err := file.Save(path); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "context %q is forgotten\n", args[0])
			return nil
		},
	}
}

func unknownContext(name string) error {
	return carrel.Errorf(carrel.CodeNotFound, "context_not_found", "there is no context %q: `carrel context list` shows those that exist", name)
}
