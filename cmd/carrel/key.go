package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// maxKeyFile is the longest file that is looked at as a public key, in bytes.
const maxKeyFile = 64 << 10

// keyFiles are where public keys are looked for, best first.
var keyFiles = []string{"id_ed25519.pub", "id_ed25519_sk.pub", "id_ecdsa.pub", "id_ecdsa_sk.pub", "id_rsa.pub"}

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Aliases: []string{"keys"}, Short: "SSH keys",
		Long:    "SSH keys, by which you log in to boxes with any SSH client.",
		Example: example("carrel key add", "carrel key list"),
	}
	cmd.AddCommand(a.keyAdd(), a.keyList(), a.keyRemove())
	return cmd
}

func (a *app) keyAdd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "add [FILE]", Short: "Register a public key",
		Long: "Register a public key from a file, such as ~/.ssh/id_ed25519.pub, or from the input with -. Without FILE the first of your\n" +
			"own in ~/.ssh is taken. A key that you registered before stays as it is.",
		Example: example("carrel key add", "carrel key add ~/.ssh/work.pub --name work", "ssh-add -L | head -1 | carrel key add -"),
		Args:    takes("[FILE]"),
	}
	cmd.Flags().StringVar(&name, "name", "", "what to call it (default: the comment in the file)")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		text, err := a.readKey(cmd, args)
		if err != nil {
			return err
		}
		key, err := answer(c.SSH.AddSSHKey(ctx, connect.NewRequest(&carrelv1.AddSSHKeyRequest{PublicKey: text, Name: name})))
		if err != nil {
			return err
		}
		return a.show(key, []string{key.GetId()}, func(t *table) {
			fmt.Fprintf(t.w, "key %q is registered: %s\n", key.GetName(), key.GetFingerprint())
		})
	})
	return a.shows(cmd)
}

// readKey reads the public key that the arguments name.
func (a *app) readKey(cmd *cobra.Command, args []string) (string, error) {
	if len(args) == 0 {
		return a.ownKey(cmd)
	}
	in := a.stdin
	if args[0] != "-" {
		file, err := os.Open(args[0])
		if err != nil {
			return "", usageError(cmd, "the key can't be read: %v", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, maxKeyFile))
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	if bytes.Contains(text, []byte("PRIVATE KEY")) { // it does not even go to the server
		return "", usageError(cmd, "%s is a private key, which must never leave your machine; give the .pub file beside it", args[0])
	}
	return string(text), nil
}

func (a *app) ownKey(cmd *cobra.Command) (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usageError(cmd, "say which key is meant: your home directory is not known")
	}
	for _, name := range keyFiles {
		path := filepath.Join(home, ".ssh", name)
		text, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", usageError(cmd, "the key can't be read: %v", err)
		case len(text) > maxKeyFile:
			return "", usageError(cmd, "%s is too long for a public key", path)
		}
		return string(text), nil
	}
	return "", usageError(cmd, "there is no public key in ~/.ssh; make one with ssh-keygen -t ed25519, or say which file is meant")
}

func (a *app) keyList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List your keys", Long: "List the SSH keys by which you log in to boxes.",
		Example: example("carrel key list", "carrel key list -o json"), Args: takes(),
	}
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := answer(c.SSH.ListSSHKeys(ctx, connect.NewRequest(&carrelv1.ListSSHKeysRequest{})))
		if err != nil {
			return err
		}
		var names []string
		for _, v := range list.GetKeys() {
			names = append(names, v.GetId())
		}
		return a.show(list, names, func(t *table) {
			t.row("ID", "NAME", "FINGERPRINT", "CREATED")
			for _, v := range list.GetKeys() {
				t.row(v.GetId(), v.GetName(), v.GetFingerprint(), when(v.GetCreateTime()))
			}
		})
	})
	return a.shows(cmd)
}

func (a *app) keyRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove KEY", Aliases: []string{"rm"}, Short: "Remove a key",
		Long:    "Remove one of your SSH keys, by its id, its name or its fingerprint. Connections that were made with it end. Operators can remove anybody's, by id or fingerprint.",
		Example: example("carrel key remove laptop", "carrel key remove k0000000000000000001"), Args: takes("KEY"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			if _, err := c.SSH.RemoveSSHKey(ctx, connect.NewRequest(&carrelv1.RemoveSSHKeyRequest{Id: args[0]})); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "key %s is removed\n", args[0])
			return nil
		}),
	}
	cmd.ValidArgsFunction = a.completes(func(ctx context.Context, c *client.Client) []string {
		list, err := answer(c.SSH.ListSSHKeys(ctx, connect.NewRequest(&carrelv1.ListSSHKeysRequest{})))
		if err != nil {
			return nil
		}
		var ids []string
		for _, v := range list.GetKeys() {
			ids = append(ids, v.GetId()+"\t"+v.GetName())
		}
		return ids
	})
	return cmd
}
