package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
)

// debianProfile is what Debian's /etc/profile does to PATH.
const debianProfile = `if [ "$(id -u)" -eq 0 ]; then
  PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
else
  PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
fi
export PATH
if [ -d /etc/profile.d ]; then
  for i in /etc/profile.d/*.sh; do
    if [ -r $i ]; then
      . $i
    fi
  done
  unset i
fi
`

func TestLoginShellsHaveThePathOfTheBox(t *testing.T) {
	if !asRoot() {
		return // only root can make the namespace
	}
	const path = "/usr/local/go/bin:/it's here:/$HOME:" + defaultPath
	b, _ := startInit(t, func(id *identity.Identity) {
		id.Sudo, id.Env = true, map[string]string{"PATH": path, "GOROOT": "/usr/local/go"}
	})
	home := filepath.Join(b.dir, "other")
	require.NoError(t, os.Mkdir(home, 0o755))
	say := `echo "$PATH $GOROOT"`
	said := func(user string, args ...string) string {
		s := b.run(&carrelv1.StartProcessRequest{Args: append(args, say), User: user, Env: map[string]string{"HOME": home}})
		require.Empty(t, s.out[stderr].String())
		return s.out[stdout].String()
	}
	require.Equal(t, path+" /usr/local/go\n", said("", "sh", "-c"))
	for _, shell := range []string{"bash", "dash"} {
		for _, user := range []string{"", "root"} {
			require.Equal(t, path+":/added /usr/local/go\n", said(user, shell, "-l", "-c"), "%s as %q", shell, user)
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(home, ".profile"), []byte("PATH=mine:$PATH\n"), 0o644))
	require.Equal(t, "mine:"+path+":/added /usr/local/go\n", said("", "bash", "-l", "-c"), "what a user has at home has the last word")
}

func TestTheFileForLoginShellsIsKeptUpToDateUnlessItIsChanged(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "etc", loginFile)
	a := &Agent{config: Config{Root: root}, base: map[string]string{}}
	set := func(base, own string) {
		t.Helper()
		a.base["PATH"] = base
		require.NoError(t, a.setUpLogin(identity.Identity{Env: map[string]string{"PATH": own}}))
	}
	text := func() string {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(data)
	}
	set("/a:/b", "")
	require.NoDirExists(t, filepath.Join(root, "etc"), "nothing reads such files in this image")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	for _, usual := range []string{"", defaultPath} {
		set(usual, "")
		require.NoFileExists(t, file)
	}

	set("/a'b:/c", "")
	require.Contains(t, text(), `PATH='/a'\''b:/c'`)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode())
	set("/a'b:/c", "")
	again, err := os.Stat(file)
	require.NoError(t, err)
	require.True(t, os.SameFile(info, again), "it is not written anew for nothing")
	set("/a", "/own")
	require.Contains(t, text(), "PATH='/own'\n")
	set(defaultPath, "")
	require.NoFileExists(t, file)

	for what, change := range map[string]func(string) string{
		"another line": func(s string) string { return s + "PATH=$PATH:/more\n" },
		"another path": func(s string) string { return s[:len(s)-len("'"+loginEnd)] + "':$PATH" + loginEnd },
		"a way out":    func(s string) string { return loginBegin + "'/a'; echo '" + loginEnd },
		"nothing":      func(string) string { return "" },
	} {
		set("/a:/b", "")
		changed := change(text())
		require.NoError(t, os.WriteFile(file, []byte(changed), 0o644))
		set("/c", "")
		require.Equal(t, changed, text(), what)
		set(defaultPath, "")
		require.Equal(t, changed, text(), what)
		require.NoError(t, os.Remove(file))
	}
	require.NoError(t, os.Symlink("/nowhere", file))
	set("/c", "")
	to, err := os.Readlink(file)
	require.NoError(t, err)
	require.Equal(t, "/nowhere", to)
}
