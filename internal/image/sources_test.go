package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"carrel.dev/carrel/internal/carrel"
	"github.com/stretchr/testify/require"
)

func writeTree(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

func TestDebianSourcesTakesOnlyDebiansOwn(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{
		"sources.list": `# a comment
deb http://one.example/debian bookworm main contrib non-free # the archive
deb-src http://one.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/other.gpg] http://tools.example/debian bookworm main
deb http://one.example/debian trixie main
deb [broken http://one.example/debian bookworm main
deb http://tools.example/linux/debian bookworm stable
`,
		"sources.list.d/debian.sources": `Types: deb deb-src
# snapshot
URIs: http://two.example/debian-security
Suites: bookworm-security
  bookworm-backports
Components: main non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
Check-Valid-Until: no

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://pg.example/apt
Suites: bookworm
Components: main
`,
		"sources.list.d/other.list.disabled": "deb http://disabled.example/debian bookworm main\n",
	})
	text, err := debianSources(dir, "bookworm")
	require.NoError(t, err)
	text = strings.ReplaceAll(text, "Signed-By: "+debianKeyring+"\n", "")
	require.Equal(t, `Types: deb
URIs: http://one.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://two.example/debian-security
Suites: bookworm-security
Components: main
Check-Valid-Until: no
`, text)

	_, err = debianSources(dir, "sid")
	require.Equal(t, "no_debian_sources", carrel.ReasonOf(err))
	_, err = debianSources(t.TempDir(), "bookworm")
	require.Equal(t, "no_debian_sources", carrel.ReasonOf(err))
}
