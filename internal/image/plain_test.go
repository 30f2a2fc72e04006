package image

import (
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"github.com/stretchr/testify/require"
)

func TestNoFileIsInline(t *testing.T) {
	merged, err := merge(t, Limits{}, everyKind(t))
	require.NoError(t, err)
	image, err := os.Open(writeImage(t, merged))
	require.NoError(t, err)
	defer image.Close()
	info, err := image.Stat()
	require.NoError(t, err)
	require.Zero(t, info.Size()%erofsBlock)

	written, err := erofs.Open(image)
	require.NoError(t, err)
	files, names := 0, map[string]bool{}
	require.NoError(t, fs.WalkDir(written, ".", func(name string, d fs.DirEntry, err error) error {
		require.NoError(t, err, "%q", name)
		info, err := d.Info()
		require.NoError(t, err)
		names[name] = true
		if !info.Mode().IsRegular() {
			return nil
		}
		files++
		require.Zero(t, info.Sys().(*erofs.Stat).InodeLayout, "%q", name)
		at := merged.root
		for part := range strings.SplitSeq(name, "/") {
			at = at.children[part]
			require.NotNil(t, at, "%q", name)
		}
		got, err := fs.ReadFile(written, name)
		require.NoError(t, err)
		require.Len(t, got, int(at.content.size), "%q", name)
		if at.content.size > 0 {
			want, err := io.ReadAll(io.NewSectionReader(at.content.from, at.content.offset, at.content.size))
			require.NoError(t, err)
			require.Equal(t, want, got, "%q", name)
		}
		return nil
	}))
	require.Greater(t, files, 510)
	require.True(t, names["many"])
}

func TestUnknownImagesAreNotChanged(t *testing.T) {
	merged, err := merge(t, Limits{}, makeTar(t, "a/", "a/small=1", "b=2"))
	require.NoError(t, err)
	whole, err := os.ReadFile(writeImage(t, merged))
	require.NoError(t, err)
	meta := int(whole[superAt+superMeta]) * erofsBlock // that of so small an image fits into a byte
	open := func(data []byte) *os.File {
		path := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		t.Cleanup(func() { file.Close() })
		return file
	}

	file := open(whole)
	require.NoError(t, plainFiles(t.Context(), file), "nothing is left to do")
	again, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	require.Equal(t, whole, again)

	for what, at := range map[string]int{
		"magic": superAt, "checksum": superAt + superFeatures, "block size": superAt + superBlockBits,
		"feature": superAt + superIncompat, "fewer blocks": superAt + superBlocks, "inode format": meta,
	} {
		damaged := append([]byte(nil), whole...)
		damaged[at] ^= 0x0f
		if what == "fewer blocks" {
			damaged[at] = 1
		}
		file := open(damaged)
		require.ErrorIs(t, plainFiles(t.Context(), file), errErofs, what)
		after, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		require.Equal(t, damaged, after, what)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, plainFiles(ctx, open(whole)), context.Canceled)
}

// TestSandboxMapsSmallFiles runs a program in gVisor that maps files of an image into its memory.
func TestSandboxMapsSmallFiles(t *testing.T) {
	if testing.Short() {
		return // sandboxes need root
	}
	runsc := os.Getenv("CARREL_RUNSC")
	if runsc == "" {
		runsc = "../../bin/runsc"
		_, err := os.Stat(runsc)
		require.NoError(t, err, "run `make bin/runsc`, or set CARREL_RUNSC")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "mapfiles")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testdata/mapfiles")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	code, err := os.ReadFile(program)
	require.NoError(t, err)

	layer := makeTar(t, "proc/", "etc/", item{header("mapfiles", 0o755), string(code)},
		"etc/one=1", "etc/page="+strings.Repeat("p", erofsBlock-1)+"!", "etc/almost="+strings.Repeat("a", erofsBlock-101)+"?", "etc/more="+strings.Repeat("m", 2*erofsBlock)+"+")
	merged, err := merge(t, Limits{}, layer)
	require.NoError(t, err)
	image := writeImage(t, merged)

	bundle := map[string]any{
		"ociVersion": "1.2.0",
		"process":    map[string]any{"args": []string{"/mapfiles", "/etc/one", "/etc/page", "/etc/almost", "/etc/more"}, "cwd": "/"},
		"root":       map[string]any{"path": "rootfs"},
		"mounts":     []any{map[string]any{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux":      map[string]any{"namespaces": []any{map[string]any{"type": "pid"}, map[string]any{"type": "mount"}}},
		"annotations": map[string]string{
			"dev.gvisor.spec.rootfs.source": image, "dev.gvisor.spec.rootfs.type": "erofs", "dev.gvisor.spec.rootfs.overlay": "memory",
		},
	}
	data, err := json.Marshal(bundle)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "rootfs"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, runsc, "--root="+filepath.Join(dir, "state"), "--ignore-cgroups", "--network=none", "run", "--bundle="+dir, filepath.Base(filepath.Dir(dir)))
	out, err = run.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, "1 1\n4096 !\n3996 ?\n8193 +\n", string(out))
}
