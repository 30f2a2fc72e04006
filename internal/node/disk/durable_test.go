package disk_test

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
)

// random makes n bytes.
func random(n int64) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// create makes a file to read and write.
func create(t *testing.T, path string, content []byte) *os.File {
	t.Helper()
	require.NoError(t, os.WriteFile(path, content, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestHashDurablyIsHashOfEverySizeAndHole(t *testing.T) {
	dirs := map[string]string{"any file system": t.TempDir(), "memory": "/dev/shm"}
	if !testing.Short() {
		dirs["the pool"] = open(t, t.TempDir()).Root()
	}
	for name, parent := range dirs {
		dir, err := os.MkdirTemp(parent, "durable-")
		require.NoError(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		for _, size := range []int64{0, 1, 4095, 4096, carrel.MiB - 1, carrel.MiB, carrel.MiB + 1, 17*carrel.MiB + 12345} {
			f := create(t, filepath.Join(dir, "file"), random(size))
			want, err := disk.Hash(t.Context(), f)
			require.NoError(t, err)
			got, err := disk.HashDurably(t.Context(), f, nil)
			require.NoError(t, err, "%s, %d bytes", name, size)
			require.Equal(t, want, got, "%s, %d bytes", name, size)
			require.NoError(t, got.Check(t.Context(), f))
		}
		sparse := create(t, filepath.Join(dir, "sparse"), random(100))
		require.NoError(t, sparse.Truncate(9*carrel.MiB))
		_, err = sparse.WriteAt(random(5000), 5*carrel.MiB-1000)
		require.NoError(t, err)
		got, err := disk.HashDurably(t.Context(), sparse, nil)
		require.NoError(t, err)
		require.Len(t, got.Blocks, 9)
		require.Empty(t, got.Blocks[2])
		require.NotEmpty(t, got.Blocks[0])
		require.NotEmpty(t, got.Blocks[4])
		require.NoError(t, got.Check(t.Context(), sparse))
	}
}

// What was hashed while a file was written may be anything by the end: the file may have been changed, cut, or
// emptied in between.
func TestHashDurablyTakesNoGuessForTheTruth(t *testing.T) {
	dir := t.TempDir()
	changes := map[string]func(t *testing.T, f *os.File){
		"nothing": func(*testing.T, *os.File) {},
		"a byte": func(t *testing.T, f *os.File) {
			was := make([]byte, 1)
			_, err := f.ReadAt(was, 3*carrel.MiB+77)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte{was[0] + 1}, 3*carrel.MiB+77)
			require.NoError(t, err)
		},
		"the end": func(t *testing.T, f *os.File) { require.NoError(t, f.Truncate(10*carrel.MiB-5)) },
		"everything": func(t *testing.T, f *os.File) {
			require.NoError(t, f.Truncate(0))
			require.NoError(t, f.Truncate(20*carrel.MiB))
		},
		"more": func(t *testing.T, f *os.File) {
			_, err := f.WriteAt(random(3*carrel.MiB+3), 20*carrel.MiB)
			require.NoError(t, err)
		},
	}
	for name, change := range changes {
		f := create(t, filepath.Join(dir, "pages.img"), random(20*carrel.MiB))
		early, n := disk.LookEarly(t.Context(), dir)
		require.Equal(t, 19, n, "the last block may be in writing")
		change(t, f)
		want, err := disk.Hash(t.Context(), f)
		require.NoError(t, err)
		got, err := disk.HashDurably(t.Context(), f, early)
		require.NoError(t, err)
		require.Equal(t, want, got, name)
	}
}

func TestHashEarlyEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	f := create(t, filepath.Join(dir, "pages.img"), random(9*carrel.MiB))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	early := disk.HashEarly(ctx, dir)
	want, err := disk.Hash(t.Context(), f)
	require.NoError(t, err)
	got, err := disk.HashDurably(t.Context(), f, early)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestAFileThatIsCutWhileItIsHashedHarmsNobody(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "pages.img"), random(2*carrel.MiB))
	n, err := disk.HashMapped(t.Context(), f, 3) // as if a third block had been there a moment ago
	require.Error(t, err)
	require.Equal(t, 2, n)
}

func TestAFileThatIsCutWhileItIsCheckedIsDamaged(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "pages.img"), random(3*carrel.MiB))
	tree, err := disk.Hash(t.Context(), f)
	require.NoError(t, err)
	require.NoError(t, disk.CheckBlocks(t.Context(), tree, f, 3))
	require.NoError(t, f.Truncate(2*carrel.MiB-1))
	require.NoError(t, disk.CheckBlocks(t.Context(), tree, f, 1))
	require.ErrorIs(t, disk.CheckBlocks(t.Context(), tree, f, 3), disk.ErrDamaged)
}

func TestAFileThatCannotBeMappedIsRead(t *testing.T) {
	const unmappable = "/proc/version"
	content, err := os.ReadFile(unmappable)
	require.NoError(t, err)
	tree, err := disk.Hash(t.Context(), create(t, filepath.Join(t.TempDir(), "copy"), content))
	require.NoError(t, err)
	f, err := os.Open(unmappable)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, disk.CheckBlocks(t.Context(), tree, f, 1))
	tree.Fast[0]++
	require.ErrorIs(t, disk.CheckBlocks(t.Context(), tree, f, 1), disk.ErrDamaged)
}
