package wholefile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/wholefile"
)

func TestAFileIsReplacedAsAWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, wholefile.Write(path, []byte("old"), 0o600))
	old, err := os.Open(path)
	require.NoError(t, err)
	defer old.Close()
	require.NoError(t, wholefile.Write(path, []byte("new"), 0o644))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "new", string(data))
	before := make([]byte, 3)
	_, err = old.ReadAt(before, 0)
	require.NoError(t, err)
	require.Equal(t, "old", string(before), "who reads it goes on reading what there was")
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode())
}

func TestWhatCannotBeWrittenLeavesNothingAndNamesThePath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "directory")
	require.NoError(t, os.Mkdir(path, 0o755))
	err := wholefile.Write(path, []byte("x"), 0o600)
	require.ErrorContains(t, err, "write "+path+": ")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}
