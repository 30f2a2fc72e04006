package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Where the file system cannot rename exclusively, as in the homes of boxes, nothing is replaced all the same.
func TestARenameByLinkReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	move := func(from, to string) error {
		return renameByLink(unix.AT_FDCWD, at(from), unix.AT_FDCWD, at(to))
	}
	require.NoError(t, os.WriteFile(at("a"), []byte("a"), 0o600))
	require.NoError(t, os.WriteFile(at("b"), []byte("b"), 0o600))
	require.NoError(t, os.Symlink("nowhere", at("link")))
	require.NoError(t, os.MkdirAll(at("full/x"), 0o700))
	require.NoError(t, os.Mkdir(at("empty"), 0o700))
	for _, pair := range [][2]string{{"a", "b"}, {"a", "full"}, {"a", "link"}, {"link", "a"}, {"full", "a"}, {"full", "empty"}} {
		require.ErrorIs(t, move(pair[0], pair[1]), unix.EEXIST, "%s over %s", pair[0], pair[1])
	}
	content, err := os.ReadFile(at("b"))
	require.NoError(t, err)
	require.Equal(t, "b", string(content))

	require.NoError(t, move("a", "c"))
	require.NoFileExists(t, at("a"))
	content, err = os.ReadFile(at("c"))
	require.NoError(t, err)
	require.Equal(t, "a", string(content))
	require.NoError(t, move("link", "link2"))
	target, err := os.Readlink(at("link2"))
	require.NoError(t, err)
	require.Equal(t, "nowhere", target)
	require.NoError(t, move("full", "moved"))
	require.DirExists(t, at("moved/x"))
	require.ErrorIs(t, move("gone", "d"), unix.ENOENT)
}
