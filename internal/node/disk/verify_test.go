package disk_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
)

// spoil changes the byte at an offset of a file on its disk, past the file system. dir is that of the pool.
func spoil(t *testing.T, dir string, f *os.File, offset int64) {
	t.Helper()
	require.NoError(t, f.Sync())
	at, ok := disk.OnDisk(f, offset)
	require.True(t, ok)
	device, err := os.OpenFile(filepath.Join(dir, "pool.xfs"), os.O_RDWR|os.O_SYNC, 0)
	require.NoError(t, err)
	defer device.Close()
	was := make([]byte, 1)
	_, err = device.ReadAt(was, at)
	require.NoError(t, err)
	_, err = device.WriteAt([]byte{was[0] + 1}, at)
	require.NoError(t, err)
}

func TestVerifySeesWhatTheDiskHas(t *testing.T) {
	if testing.Short() {
		return // needs root
	}
	const size = 9*carrel.MiB + 12345
	dir := t.TempDir()
	pool := open(t, dir)
	f := create(t, filepath.Join(pool.Root(), "pages.img"), random(size))
	tree, err := disk.HashDurably(t.Context(), f, nil)
	require.NoError(t, err)
	mended, err := tree.Verify(t.Context(), f)
	require.NoError(t, err)
	require.Zero(t, mended)

	spoil(t, dir, f, 3*carrel.MiB+77)
	spoil(t, dir, f, size-1)
	require.NoError(t, tree.Check(t.Context(), f), "whoever reads the page cache sees nothing of it")
	mended, err = tree.Verify(t.Context(), f)
	require.NoError(t, err)
	require.Equal(t, 2, mended)
	require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	require.NoError(t, tree.Check(t.Context(), f), "the disk has what was written again")

	// Without the page cache nothing can be mended.
	spoil(t, dir, f, 3*carrel.MiB+77)
	require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	_, err = tree.Verify(t.Context(), f)
	require.ErrorIs(t, err, disk.ErrDamaged)
}

func TestVerifyOfEverySizeAndHole(t *testing.T) {
	dirs := map[string]string{"any file system": t.TempDir(), "memory": "/dev/shm"}
	if !testing.Short() {
		dirs["the pool"] = open(t, t.TempDir()).Root()
	}
	for name, parent := range dirs {
		dir, err := os.MkdirTemp(parent, "verify-")
		require.NoError(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		for _, size := range []int64{0, 1, 4095, 4096, carrel.MiB - 1, carrel.MiB, carrel.MiB + 1, 5*carrel.MiB + 511} {
			f := create(t, filepath.Join(dir, "file"), random(size))
			require.NoError(t, f.Truncate(size+2*carrel.MiB))
			tree, err := disk.HashDurably(t.Context(), f, nil)
			require.NoError(t, err)
			mended, err := tree.Verify(t.Context(), f)
			require.NoError(t, err, "%s, %d bytes", name, size)
			require.Zero(t, mended, "%s, %d bytes", name, size)
		}
	}
}
