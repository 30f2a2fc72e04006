package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var stamp = time.Unix(1_700_000_000, 0)

// header makes a tar header; the kind is by the name's end and what follows an arrow: "dir/", "link -> target",
// "hard => target", anything else a file.
func header(name string, mode int64) *tar.Header {
	h := &tar.Header{Name: name, Mode: mode, ModTime: stamp, Format: tar.FormatPAX}
	if link, target, ok := strings.Cut(name, " -> "); ok {
		h.Name, h.Linkname, h.Typeflag = link, target, tar.TypeSymlink
	} else if link, target, ok := strings.Cut(name, " => "); ok {
		h.Name, h.Linkname, h.Typeflag = link, target, tar.TypeLink
	} else if strings.HasSuffix(name, "/") {
		h.Typeflag = tar.TypeDir
	} else {
		h.Typeflag = tar.TypeReg
	}
	return h
}

type item struct {
	*tar.Header
	text string
}

// makeTar writes a layer. An entry is a name, "name=content", or an item.
func makeTar(t testing.TB, entries ...any) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, e := range entries {
		var i item
		switch e := e.(type) {
		case string:
			name, text, isFile := e, "", false
			if !strings.Contains(e, " => ") {
				name, text, isFile = strings.Cut(e, "=")
			}
			i = item{header(name, 0o644), text}
			if !isFile && strings.HasSuffix(name, "/") {
				i.Mode = 0o755
			}
		case item:
			i = e
		}
		i.Size = int64(len(i.text))
		require.NoError(t, w.WriteHeader(i.Header))
		_, err := io.WriteString(w, i.text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buffer.Bytes()
}

// merge applies layers as an import would.
func merge(t testing.TB, limits Limits, layers ...[]byte) (*tree, error) {
	t.Helper()
	merged, m := newTree(), &meter{limits: limits.withDefaults()}
	spill, err := os.CreateTemp(t.TempDir(), "spill")
	require.NoError(t, err)
	t.Cleanup(func() { spill.Close() })
	end := int64(0)
	for _, data := range layers {
		source := bytes.NewReader(data)
		l := &layerReader{source: source, data: bytes.NewReader(data), spill: spill, spillEnd: &end, meter: m,
			offset: func() (int64, error) { return source.Seek(0, io.SeekCurrent) }}
		records, err := l.index(t.Context())
		if err != nil {
			return nil, err
		}
		if err := merged.apply(records); err != nil {
			return nil, err
		}
	}
	return merged, nil
}

// show lists a tree, a line for each entry.
func (t *tree) show() []string {
	var lines []string
	var walk func(*entry, string)
	walk = func(e *entry, name string) {
		line := name
		switch e.mode.Type() {
		case fs.ModeDir:
			line += "/"
		case fs.ModeSymlink:
			line += " -> " + e.target
		case 0:
			text, _, err := e.text()
			if err != nil {
				text = err.Error()
			}
			line += "=" + text
		}
		if name != "" {
			lines = append(lines, line)
		}
		for child, c := range e.children {
			walk(c, strings.TrimPrefix(name+"/"+child, "/"))
		}
	}
	walk(t.root, "")
	sort.Strings(lines)
	return lines
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newBuilder(t testing.TB, cfg Config) *Builder {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Log = quiet()
	b, err := New(cfg)
	require.NoError(t, err)
	return b
}

// requireClean checks that no work in progress is left.
func requireClean(t testing.TB, b *Builder) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(b.cfg.Dir, "tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// withMount mounts an EROFS image by the kernel and hands its directory to f.
func withMount(t testing.TB, image string, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("mount", "-o", "loop,ro", "-t", "erofs", image, dir).CombinedOutput()
	require.NoError(t, err, string(out))
	defer func() {
		out, err := exec.Command("umount", dir).CombinedOutput()
		require.NoError(t, err, string(out))
	}()
	f(dir)
}

// describe walks a directory of the kernel and returns what it says of each file.
func describe(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		stat := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%v %d:%d %s", info.Mode(), stat.Uid, stat.Gid, info.ModTime().UTC().Format(time.RFC3339Nano))
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			line += fmt.Sprintf(" %d %q", info.Size(), data[:min(len(data), 40)])
		case info.IsDir():
			line += fmt.Sprintf(" links %d", stat.Nlink)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			require.NoError(t, err)
			line += " " + target
		case info.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" %d", stat.Rdev)
		}
		name, err := filepath.Rel(dir, path)
		require.NoError(t, err)
		all[name] = line
		return nil
	}))
	return all
}

// writeImage writes a tree as an EROFS file.
func writeImage(t testing.TB, merged *tree) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	out, err := os.Create(path)
	require.NoError(t, err)
	defer out.Close()
	require.NoError(t, writeErofs(context.Background(), merged, out, t.TempDir(), func(int64) {}))
	return path
}
