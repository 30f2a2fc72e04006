package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"carrel.dev/carrel/internal/agent/identity"
)

// The file in /etc/profile.d that gives login shells the box's PATH. It is the first there, so that all others, and what users have in
// their homes, can add to it. What the agent wrote is known by its form: any other text is somebody's own and stays.
const (
	loginFile  = "profile.d/00-carrel.sh"
	loginBegin = "# The PATH of this box's image, template or settings, which /etc/profile would hide from login shells.\n" +
		"# Carrel keeps this file up to date for as long as nobody changes it; make it empty to do without.\nPATH="
	loginEnd = "\nexport PATH\n"
)

// setUpLogin lets login shells find what other commands of the box find. /etc/profile sets PATH anew (in Debian, Alpine and
// others), whatever the shell was started with, and reads the files in /etc/profile.d after that; where there is no such directory
// nothing is done. Other variables need no such help: a login shell keeps those that it is started with.
func (a *Agent) setUpLogin(id identity.Identity) error {
	path := a.etc(loginFile)
	if info, err := os.Stat(filepath.Dir(path)); errors.Is(err, os.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	} else if err != nil {
		return fmt.Errorf("look for files of login shells: %w", err)
	}
	text := ""
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if text = string(data); !isLoginText(text) {
			return nil
		}
	} else if err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read %s: %w", path, err)
	}
	_, base := a.current()
	wanted := cmp.Or(id.Env["PATH"], base["PATH"], defaultPath)
	switch {
	case wanted != defaultPath:
		return edit(path, 0o644, true, func(string) string { return loginBegin + quoteForShell(wanted) + loginEnd })
	case text != "":
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}

// isLoginText says whether setUpLogin wrote this text, for whatever PATH.
func isLoginText(text string) bool {
	value, begins := strings.CutPrefix(text, loginBegin)
	value, ends := strings.CutSuffix(value, loginEnd)
	if !begins || !ends || len(value) < 2 || value[0] != '\'' || value[len(value)-1] != '\'' {
		return false
	}
	return quoteForShell(strings.ReplaceAll(value[1:len(value)-1], `'\''`, "'")) == value
}

// quoteForShell makes one word of text, whatever is in it.
func quoteForShell(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
