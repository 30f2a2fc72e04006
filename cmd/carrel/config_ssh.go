package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/carrel"
)

// The marks of the block that belongs to Carrel.
const (
	blockBegin = "# >>> carrel: written by `carrel config-ssh`, changes between these lines are lost >>>"
	blockEnd   = "# <<< carrel <<<"
)

func (a *app) configSSHCommand() *cobra.Command {
	var (
		path           string
		remove, dryRun bool
	)
	cmd := &cobra.Command{
		Use: "config-ssh", Short: "Let every SSH program find boxes as NAME.carrel",
		Long: "Write a block into the configuration of OpenSSH (~/.ssh/config), so that `ssh mybox.carrel`, scp, rsync, git,\n" +
			"VS Code and JetBrains Gateway find boxes. Everything outside the block stays as it is; to write it again is no harm.\n" +
			"Certificates are got and renewed by `carrel` when ssh starts. Boxes of another organisation are NAME.ORG.carrel.",
		Example: example("carrel config-ssh", "ssh mybox.carrel", "carrel config-ssh --dry-run", "carrel config-ssh --remove"), Args: takes(),
	}
	cmd.Flags().StringVar(&path, "file", "", "`FILE` to write (default ~/.ssh/config)")
	cmd.Flags().BoolVar(&remove, "remove", false, "take the block out")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what the file would be and write nothing")
	cmd.RunE = func(*cobra.Command, []string) error {
		if path == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return carrel.Errorf(carrel.CodePrecondition, "no_home", "your home directory is not known (%v); give the file with --file", err)
			}
			path = filepath.Join(home, ".ssh", "config")
		}
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target // a link to a file kept elsewhere stays a link
		}
		old, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return carrel.Errorf(carrel.CodePrecondition, "ssh_config", "%s cannot be read: %v", path, err)
		}
		block := ""
		if !remove {
			access, err := a.sshAccess(context.Background(), true)
			if err != nil {
				return err
			}
			if block, err = access.block(); err != nil {
				return err
			}
		}
		text, err := replaceBlock(string(old), block)
		if err != nil {
			return carrel.Errorf(carrel.CodePrecondition, "ssh_config", "%s: %v", path, err)
		}
		switch {
		case dryRun:
			_, err := fmt.Fprint(a.stdout, text)
			return err
		case text == string(old):
			fmt.Fprintf(a.stdout, "%s is as it should be\n", path)
			return nil
		}
		if err := writeSSHConfig(path, []byte(text)); err != nil {
			return carrel.Errorf(carrel.CodePrecondition, "ssh_config", "%s cannot be written: %v", path, err)
		}
		if remove {
			fmt.Fprintf(a.stdout, "%s has no block of Carrel's any more\n", path)
			return nil
		}
		fmt.Fprintf(a.stdout, "%s is written. Try: ssh NAME%s\n", path, boxDomain)
		return nil
	}
	return cmd
}

// block is the text between the marks, and they.
func (s *sshAccess) block() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own executable: %w", err)
	}
	program := shellWord(exe)
	if s.name != "" {
		program += " --context " + s.name
	} else {
		program += " --url " + s.context.URL
	}
	lines := []string{
		blockBegin,
		"# The certificate is renewed before ssh reads it.",
		"Match originalhost *" + boxDomain + ` exec "` + program + ` ssh --renew"`,
		"Host *" + boxDomain,
		"  ProxyCommand " + program + " ssh --stdio %n",
	}
	for _, option := range s.options() {
		lines = append(lines, "  "+option[0]+" "+option[1])
	}
	return strings.Join(append(lines, blockEnd, ""), "\n"), nil
}

// shellWord writes a path for a shell's command line inside of a quoted word of OpenSSH's, which knows no way to write a quote
// itself. Where that cannot be done the program is looked up in PATH.
func shellWord(path string) string {
	path = strings.ReplaceAll(filepath.ToSlash(path), "%", "%%")
	switch {
	case !strings.ContainsAny(path, " \t\"'$`\\&;()<>|*?[]#~"):
		return path
	case runtime.GOOS == "windows" || strings.ContainsAny(path, "\"'"):
		return "carrel"
	}
	return "'" + path + "'"
}

// replaceBlock puts block in the place of the one that is there, or at the beginning: the first value that ssh finds counts.
// An empty block takes it out.
func replaceBlock(text, block string) (string, error) {
	begin := strings.Index(text, blockBegin)
	if begin < 0 {
		if strings.Contains(text, blockEnd) {
			return "", errors.New("the end of Carrel's block is there without its beginning; take that line out")
		}
		if block != "" && text != "" {
			block += "\n"
		}
		return block + text, nil
	}
	length := strings.Index(text[begin:], blockEnd)
	if length < 0 {
		return "", errors.New("the beginning of Carrel's block is there without its end; take the block out")
	}
	rest := strings.TrimPrefix(text[begin+length+len(blockEnd):], "\r")
	rest = strings.TrimPrefix(rest, "\n")
	if block == "" {
		rest = strings.TrimPrefix(rest, "\n")
	}
	return text[:begin] + block + rest, nil
}

// writeSSHConfig replaces the file and keeps its mode; ssh wants that nobody else can write it.
func writeSSHConfig(path string, data []byte) error {
	mode := fs.FileMode(0o600)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".config-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	_, err = bytes.NewReader(data).WriteTo(tmp)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}
