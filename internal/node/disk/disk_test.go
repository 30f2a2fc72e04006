package disk_test

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
)

// open makes a real XFS pool of 384 MiB in a directory of the test.
func open(t *testing.T, dir string) *disk.Pool {
	t.Helper()
	p, err := disk.Open(t.Context(), disk.Config{
		Dir: dir, RunDir: filepath.Join(dir, "run"), SizeBytes: 384 * carrel.MiB, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Unmount()) })
	return p
}

func TestOpenIsIdempotentAndReservesItsSpace(t *testing.T) {
	if testing.Short() {
		return // needs root
	}
	dir := t.TempDir()
	// A killed formatting left its file behind.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pool.xfs.tmp"), []byte("half"), 0o600))
	p := open(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(p.Root(), "kept"), []byte("x"), 0o600))

	var s unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(dir, "pool.xfs"), &s))
	require.GreaterOrEqual(t, s.Blocks*512, 384*carrel.MiB, "the pool file has holes that others can fill")

	again := open(t, dir)
	require.FileExists(t, filepath.Join(again.Root(), "kept"))
	require.NoError(t, p.Unmount()) // as a reboot does
	rebooted := open(t, dir)
	require.FileExists(t, filepath.Join(rebooted.Root(), "kept"))
	require.NoFileExists(t, filepath.Join(dir, "pool.xfs.tmp"))

	require.NoError(t, rebooted.Unmount())
	bigger, err := disk.Open(t.Context(), disk.Config{Dir: dir, RunDir: filepath.Join(dir, "run"), SizeBytes: 512 * carrel.MiB, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	space, err := bigger.Space()
	require.NoError(t, err)
	require.Greater(t, space.Total, 400*carrel.MiB)
}

// Boxes may run, and the pool be mounted, for as long as the machine is up.
func TestAPoolGrowsWhileItIsMounted(t *testing.T) {
	if testing.Short() {
		return
	}
	dir := t.TempDir()
	p := open(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(p.Root(), "kept"), []byte("x"), 0o600))
	larger := disk.Config{Dir: dir, RunDir: filepath.Join(dir, "run"), SizeBytes: 512 * carrel.MiB, Logger: slog.New(slog.DiscardHandler)}
	grown, err := disk.Open(t.Context(), larger)
	require.NoError(t, err)
	space, err := grown.Space()
	require.NoError(t, err)
	require.Greater(t, space.Total, 400*carrel.MiB)
	require.FileExists(t, filepath.Join(grown.Root(), "kept"))

	larger.SizeBytes = 1 << 50
	_, err = disk.Open(t.Context(), larger)
	require.Equal(t, "disk_full", carrel.ReasonOf(err))
	larger.SizeBytes = 384 * carrel.MiB
	same, err := disk.Open(t.Context(), larger)
	require.NoError(t, err)
	after, err := same.Space()
	require.NoError(t, err)
	require.Equal(t, space.Total, after.Total, "it is never made smaller")
}

func TestPoolThatDoesNotFitIsRefused(t *testing.T) {
	if testing.Short() {
		return
	}
	_, err := disk.Open(t.Context(), disk.Config{
		Dir: t.TempDir(), RunDir: t.TempDir(), SizeBytes: 1 << 50, Logger: slog.New(slog.DiscardHandler),
	})
	require.Equal(t, "disk_full", carrel.ReasonOf(err))
}

func TestHomes(t *testing.T) {
	if testing.Short() {
		return
	}
	p := open(t, t.TempDir())
	path, err := p.NewHome(t.Context(), "r1", 64*carrel.MiB)
	require.NoError(t, err)
	mnt := t.TempDir()
	mount := func(image string) {
		t.Helper()
		out, err := exec.Command("mount", "-o", "loop", image, mnt).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	unmount := func() { require.NoError(t, unix.Unmount(mnt, 0)) }
	mount(path)
	var s unix.Stat_t
	require.NoError(t, unix.Stat(mnt+"/home", &s))
	require.Equal(t, uint32(1000), s.Uid)
	require.NoError(t, os.WriteFile(mnt+"/home/file", []byte("mine"), 0o600))
	unmount()

	other, err := p.NewHome(t.Context(), "r2", 64*carrel.MiB)
	require.NoError(t, err)
	mount(other)
	require.NoFileExists(t, mnt+"/home/file")
	unmount()

	// A clone of r1's home, grown.
	began := time.Now()
	clone, err := p.CloneHome("r3", path)
	require.NoError(t, err)
	t.Logf("clone took %s", time.Since(began))
	require.NoError(t, p.Grow(t.Context(), clone, 128*carrel.MiB))
	mount(clone)
	require.FileExists(t, mnt+"/home/file")
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(mnt, &fs))
	require.Greater(t, int64(fs.Blocks)*fs.Bsize, 100*carrel.MiB)
	unmount()

	used, err := disk.AllocatedBytes(other)
	require.NoError(t, err)
	require.Less(t, used, 12*carrel.MiB, "an empty home takes space")
	require.True(t, p.HasHome("r3"))
	require.NoError(t, p.RemoveHome("r3"))
	require.NoError(t, p.RemoveHome("r3"))
	require.False(t, p.HasHome("r3"))
}

func TestWatermarksRefuseBeforeThePoolIsFull(t *testing.T) {
	if testing.Short() {
		return
	}
	p := open(t, t.TempDir())
	require.NoError(t, p.Admit())
	space, err := p.Space()
	require.NoError(t, err)
	fill := func(name string, size int64) {
		f, err := os.Create(filepath.Join(p.Root(), name))
		require.NoError(t, err)
		require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, size))
		require.NoError(t, f.Close())
	}
	fill("a", space.Free-p.Reserve()+carrel.MiB)
	err = p.Admit()
	require.Equal(t, "disk_full", carrel.ReasonOf(err))
	require.NoError(t, p.Continue(), "what goes on already may use a part of the reserve")
	space, err = p.Space()
	require.NoError(t, err)
	fill("b", space.Free-8*carrel.MiB)
	require.Equal(t, "disk_full", carrel.ReasonOf(p.Continue()))
}

func TestImagesHaveFixedPaths(t *testing.T) {
	if testing.Short() {
		return
	}
	dir := t.TempDir()
	p := open(t, dir)
	const right = "sha256:0f69a21b8f4377ef04a7eb9db9eda85f2c20fb2f9c6a57f7ecb9c0e5c02e1ca9"
	_, ok := p.ImagePath(right)
	require.False(t, ok)
	require.NoError(t, os.WriteFile(filepath.Join(p.ImageDir(), strings.Replace(right, ":", "-", 1)+".erofs"), []byte("x"), 0o600))
	path, ok := p.ImagePath(right)
	require.True(t, ok)
	require.Equal(t, filepath.Join(dir, "run/images", strings.TrimPrefix(right, "sha256:")), path)

	// The environment that an image comes with is in the description beside it.
	env, err := p.ImageEnv(right)
	require.NoError(t, err)
	require.Empty(t, env)
	description := filepath.Join(p.ImageDir(), strings.Replace(right, ":", "-", 1)+".json")
	require.NoError(t, os.WriteFile(description, []byte(`{"digest":"x","config":{"env":["PATH=/opt/bin:/bin","EMPTY=","HOME=/root","nothing"],"user":"1"}}`), 0o600))
	env, err = p.ImageEnv(right)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"PATH": "/opt/bin:/bin", "EMPTY": ""}, env)
	require.NoError(t, os.WriteFile(description, []byte(`{"config":`), 0o600))
	_, err = p.ImageEnv(right)
	require.Error(t, err)

	// The run directory is empty after a reboot.
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "run")))
	again := open(t, dir)
	require.FileExists(t, path)
	digests, err := again.Images()
	require.NoError(t, err)
	require.Equal(t, []string{right}, digests)
	_, ok = again.ImagePath("sha256:../../etc/passwd")
	require.False(t, ok)

	// A removal that was cut short is done again: until its end the image is listed.
	require.NoError(t, os.Remove(description))
	require.NoError(t, again.RemoveImage(right))
	digests, err = again.Images()
	require.NoError(t, err)
	require.Empty(t, digests)
	_, err = os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	left, err := os.ReadDir(p.ImageDir())
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, again.RemoveImage(right))
	require.Error(t, again.RemoveImage("sha256:../../etc/passwd"))
}

func TestInstallBinary(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	require.NoError(t, os.WriteFile(src, []byte("#!/bin/sh\n"), 0o600))
	path, digest, err := disk.InstallBinary(filepath.Join(dir, "bin"), "agent", src)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "bin", "agent-"+digest), path)
	// One that was damaged is replaced.
	require.NoError(t, os.WriteFile(path, []byte("bad"), 0o755))
	_, _, err = disk.InstallBinary(filepath.Join(dir, "bin"), "agent", src)
	require.NoError(t, err)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "#!/bin/sh\n", string(got))
	_, ok := disk.Binary(filepath.Join(dir, "bin"), "agent", digest)
	require.True(t, ok)
	_, ok = disk.Binary(filepath.Join(dir, "bin"), "agent", "../../../../etc/passwd")
	require.False(t, ok)
}

func TestTreeFindsEveryChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	content := make([]byte, 2*disk.BlockBytes+777)
	_, _ = rand.Read(content)
	_, err = f.WriteAt(content, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(content, 20*disk.BlockBytes) // and a hole between
	require.NoError(t, err)
	tree, err := disk.Hash(t.Context(), f)
	require.NoError(t, err)
	require.Len(t, tree.Blocks, 23)
	require.Empty(t, tree.Blocks[10])
	require.NoError(t, tree.Check(t.Context(), f))

	for _, at := range []int64{0, disk.BlockBytes + 5, 10*disk.BlockBytes + 3, 22*disk.BlockBytes + 776} {
		was := make([]byte, 1)
		_, err := f.ReadAt(was, at)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{was[0] ^ 1}, at)
		require.NoError(t, err)
		require.ErrorIs(t, tree.Check(t.Context(), f), disk.ErrDamaged, "at %d", at)
		_, err = f.WriteAt(was, at)
		require.NoError(t, err)
		require.NoError(t, tree.Check(t.Context(), f))
	}
	require.NoError(t, f.Truncate(22*disk.BlockBytes))
	require.ErrorIs(t, tree.Check(t.Context(), f), disk.ErrDamaged)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = disk.Hash(ctx, f)
	require.ErrorIs(t, err, context.Canceled)
}

func TestHashChangedReadsOnlyWhatWasWritten(t *testing.T) {
	if testing.Short() {
		return
	}
	p := open(t, t.TempDir())
	parent, err := os.Create(filepath.Join(p.Root(), "parent"))
	require.NoError(t, err)
	defer parent.Close()
	content := make([]byte, 8*disk.BlockBytes)
	_, _ = rand.Read(content)
	_, err = parent.Write(content)
	require.NoError(t, err)
	require.NoError(t, parent.Truncate(32*disk.BlockBytes))
	known, err := disk.Hash(t.Context(), parent)
	require.NoError(t, err)
	require.NoError(t, disk.Clone(parent.Name(), parent.Name()+"2"))
	child, err := os.OpenFile(parent.Name()+"2", os.O_RDWR, 0)
	require.NoError(t, err)
	defer child.Close()
	for _, at := range []int64{3*disk.BlockBytes + 4096, 20 * disk.BlockBytes} {
		_, err = child.WriteAt([]byte("changed"), at)
		require.NoError(t, err)
	}
	want, err := disk.Hash(t.Context(), child)
	require.NoError(t, err)
	got, err := disk.HashChanged(t.Context(), child, parent, known)
	require.NoError(t, err)
	require.Equal(t, want, got)

	// With a wrong tree of the parent, the result shows which blocks were not read.
	for i := range known.Blocks {
		known.Blocks[i] = "unread"
	}
	got, err = disk.HashChanged(t.Context(), child, parent, known)
	require.NoError(t, err)
	for b := range got.Blocks {
		switch {
		case b == 3 || b == 20:
			require.Equal(t, want.Blocks[b], got.Blocks[b])
		case b < 8:
			require.Equal(t, "unread", got.Blocks[b], "block %d was read", b)
		default:
			require.Empty(t, got.Blocks[b])
		}
	}
}
