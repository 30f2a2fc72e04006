package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// outside is a directory with one file that must stay as it is, and target one to unpack to beside it.
type place struct {
	t       *testing.T
	outside string
	target  string
}

func newPlace(t *testing.T) place {
	dir := t.TempDir()
	p := place{t: t, outside: filepath.Join(dir, "outside"), target: filepath.Join(dir, "target")}
	require.NoError(t, os.Mkdir(p.outside, 0o755))
	require.NoError(t, os.Mkdir(p.target, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(p.outside, "f"), []byte("outside"), 0o644))
	return p
}

func (p place) unpack(data []byte) (Stats, error) {
	root, err := os.OpenRoot(p.target)
	require.NoError(p.t, err)
	defer root.Close()
	return Unpack(bytes.NewReader(data), root, Options{Mode: fs.ModePerm, Root: true})
}

// requireUntouched holds what is outside of the target to what it was.
func (p place) requireUntouched() {
	p.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(p.target))
	require.NoError(p.t, err)
	require.Len(p.t, entries, 2)
	entries, err = os.ReadDir(p.outside)
	require.NoError(p.t, err)
	require.Len(p.t, entries, 1)
	info, err := os.Lstat(filepath.Join(p.outside, "f"))
	require.NoError(p.t, err)
	require.EqualValues(p.t, 0o644, info.Mode())
	content, err := os.ReadFile(filepath.Join(p.outside, "f"))
	require.NoError(p.t, err)
	require.Equal(p.t, "outside", string(content))
	require.NoError(p.t, filepath.WalkDir(p.target, func(path string, entry fs.DirEntry, err error) error {
		require.False(p.t, strings.HasPrefix(entry.Name(), TempPrefix), path)
		return err
	}))
}

func tarOf(t testing.TB, entries ...tar.Header) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = "content"
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		require.NoError(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func TestUnpackingStaysInItsDirectory(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	for name, entries := range map[string][]tar.Header{
		"dot dot":                     {file("../outside/f")},
		"dot dot within":              {file("a/../../outside/f")},
		"absolute":                    {file("/tmp/carrel-archive-test")},
		"through a link":              {link("a", "../outside"), file("a/f")},
		"through a link twice":        {link("b", "../outside"), link("a", "b"), file("a/f")},
		"through a link in a path":    {dir("d"), link("d/a", "../../outside"), file("d/a/f")},
		"through an inner link":       {dir("d"), link("a", "d"), file("a/f")},
		"a directory over a link":     {link("a", "../outside"), dir("a"), file("a/f")},
		"hard link out":               {hard("a", "../outside/f")},
		"hard link through a link":    {link("a", "../outside"), hard("b", "a/f")},
		"hard link to a link":         {link("a", "../outside/f"), hard("b", "a")},
		"hard link to nothing":        {hard("b", "a")},
		"a device":                    {tar.Header{Typeflag: tar.TypeChar, Name: "zero", Devmajor: 1, Devminor: 5}},
		"a block device":              {tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 8}},
		"a pipe":                      {tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}},
		"a file in place of the root": {file(".")},
		"a file over a directory":     {dir("d"), file("d/x"), file("d")},
		"a file below a file":         {file("f"), file("f/g")},
		"too deep":                    {file(strings.Repeat("a/", 600) + "f")},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			_, err := p.unpack(tarOf(t, entries...))
			require.Error(t, err)
			p.requireUntouched()
		})
	}
	t.Run("a file over a link replaces the link", func(t *testing.T) {
		p := newPlace(t)
		_, err := p.unpack(tarOf(t, link("a", "../outside/f"), file("a")))
		require.NoError(t, err)
		p.requireUntouched()
		content, err := os.ReadFile(filepath.Join(p.target, "a"))
		require.NoError(t, err)
		require.Equal(t, "content", string(content))
	})
	t.Run("times and modes of a link's target stay", func(t *testing.T) {
		p := newPlace(t)
		_, err := p.unpack(tarOf(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "../outside/f", Mode: 0o777, ModTime: time.Unix(5, 0)}))
		require.NoError(t, err)
		p.requireUntouched()
	})
}

// A directory that is replaced by a link while it is unpacked to leads nowhere: what is unpacked goes to the directory that was opened.
func TestADirectoryReplacedWhileUnpackingLeadsNowhere(t *testing.T) {
	p := newPlace(t)
	first := tarOf(t, tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755}, tar.Header{Typeflag: tar.TypeReg, Name: "d/one"})
	second := tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "d/two"})
	in := io.MultiReader(bytes.NewReader(first[:len(first)-1024]), onRead(func() {
		require.NoError(t, os.Rename(filepath.Join(p.target, "d"), filepath.Join(p.target, "moved")))
		require.NoError(t, os.Symlink(p.outside, filepath.Join(p.target, "d")))
	}), bytes.NewReader(second))
	root, err := os.OpenRoot(p.target)
	require.NoError(t, err)
	defer root.Close()
	_, err = Unpack(in, root, Options{Mode: fs.ModePerm})
	require.NoError(t, err)
	p.requireUntouched()
	require.FileExists(t, filepath.Join(p.target, "moved/two"))
}

// onRead calls a function when it is read, and is empty.
type onRead func()

func (f onRead) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

func TestWhatIsPackedComesOutTheSame(t *testing.T) {
	src, p := t.TempDir(), newPlace(t)
	when := time.Unix(1_300_000_000, 7)
	deep := filepath.Join(src, strings.Repeat("d/", 60))
	require.NoError(t, os.MkdirAll(deep, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(deep, "f"), bytes.Repeat([]byte("x"), 1<<20), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(src, "empty"), nil, 0o444))
	require.NoError(t, os.Link(filepath.Join(src, "empty"), filepath.Join(src, "same")))
	require.NoError(t, os.Symlink("empty", filepath.Join(src, "link")))
	require.NoError(t, os.Mkdir(filepath.Join(src, "locked"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(src, "locked/f"), []byte("x"), 0o640))
	require.NoError(t, os.Chmod(filepath.Join(src, "locked"), 0o500))
	require.NoError(t, os.Chtimes(filepath.Join(src, "locked"), when, when))

	var buf bytes.Buffer
	z, err := NewWriter(&buf)
	require.NoError(t, err)
	packer := NewPacker(z)
	root, err := os.OpenRoot(src)
	require.NoError(t, err)
	defer root.Close()
	require.NoError(t, packer.Directory(root))
	require.NoError(t, packer.Close())
	require.NoError(t, z.Close())

	plain, err := NewReader(&buf)
	require.NoError(t, err)
	defer plain.Close()
	target, err := os.OpenRoot(p.target)
	require.NoError(t, err)
	defer target.Close()
	stats, err := Unpack(plain, target, Options{Mode: fs.ModePerm, Root: true})
	require.NoError(t, err)
	require.EqualValues(t, 1<<20+1, stats.Bytes)
	require.NoError(t, filepath.WalkDir(src, func(path string, entry fs.DirEntry, err error) error {
		require.NoError(t, err)
		name, err := filepath.Rel(src, path)
		require.NoError(t, err)
		want, err := os.Lstat(path)
		require.NoError(t, err)
		got, err := os.Lstat(filepath.Join(p.target, name))
		require.NoError(t, err)
		require.Equal(t, want.Mode(), got.Mode(), name)
		if want.Mode().Type() != fs.ModeSymlink {
			require.Equal(t, want.ModTime(), got.ModTime(), name)
		}
		return nil
	}))
	one, err := os.Stat(filepath.Join(p.target, "empty"))
	require.NoError(t, err)
	other, err := os.Stat(filepath.Join(p.target, "same"))
	require.NoError(t, err)
	require.True(t, os.SameFile(one, other))
	require.NoError(t, os.Chmod(filepath.Join(p.target, "locked"), 0o700)) // so that it can be removed
}

func TestAnArchiveThatIsCutLeavesNoHalfFile(t *testing.T) {
	data := tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "f"})
	for n := 0; n < 1024; n += 61 {
		p := newPlace(t)
		_, err := p.unpack(data[:n])
		if n > 0 && n < 512+7 {
			require.Error(t, err, n)
			require.NoFileExists(t, filepath.Join(p.target, "f"), n)
		}
		p.requireUntouched()
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "../outside"}, tar.Header{Typeflag: tar.TypeReg, Name: "a/f"}))
	f.Add(tarOf(f, tar.Header{Typeflag: tar.TypeDir, Name: "d/"}, tar.Header{Typeflag: tar.TypeReg, Name: "d/f"}, tar.Header{Typeflag: tar.TypeLink, Name: "g", Linkname: "d/f"}))
	f.Add(tarOf(f, tar.Header{Typeflag: tar.TypeReg, Name: "../outside/f"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		for archive := tar.NewReader(bytes.NewReader(data)); ; {
			header, err := archive.Next()
			if err != nil {
				break
			}
			if header.Size > 1<<20 {
				return // files with holes may be as large as they say
			}
		}
		p := newPlace(t)
		_, _ = p.unpack(data)
		p.requireUntouched()
		_ = filepath.WalkDir(p.target, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				_ = os.Chmod(path, 0o700) // so that it can be removed
			}
			return nil
		})
	})
}

func FuzzSplit(f *testing.F) {
	for _, name := range []string{"a/b", "/a", "../a", "a/..", "./", "a//b/.", "\x00"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		parts, err := split(name)
		if err != nil {
			require.True(t, errors.Is(err, ErrRefused))
			return
		}
		for _, part := range parts {
			require.NotContains(t, []string{"", ".", ".."}, part)
			require.NotContains(t, part, "/")
		}
	})
}
