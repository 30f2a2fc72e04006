package notebook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

// TestWhatSavesLeftIsRemoved promises that a failure in the middle of a save leaves nothing for good, and that nobody else's file is taken for such a thing.
func TestWhatSavesLeftIsRemoved(t *testing.T) {
	const ours, jupyters = ".carrel-abcdefghij27.tmp", ".carrel-upload-ABCDEFGHIJKLMNOPQRSTUVWX27"
	put := func(s *Service) string {
		dir := filepath.Join(s.config.Home, "work")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "a.ipynb"), nil, 0o600))
		for _, name := range []string{ours, jupyters, ".carrel-ABCDEFGHIJ27.tmp", ".carrel-abcdefghij27.tmp.txt", ".carrel-upload-0123456789abcdef0123456789abcdef", "precious"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
		}
		require.NoError(t, os.Symlink("precious", filepath.Join(dir, ".carrel-aaaaaaaaaaaa.tmp")))
		require.NoError(t, os.Mkdir(filepath.Join(dir, ".carrel-bbbbbbbbbbbb.tmp"), 0o700))
		require.NoError(t, os.Link(filepath.Join(dir, "precious"), filepath.Join(dir, ".carrel-cccccccccccc.tmp")))
		return dir
	}
	open := func(s *Service, path string) {
		d, err := s.document(s.ctx, path)
		require.NoError(t, err)
		s.release(d)
	}
	s := newService(t, nil)
	dir := put(s)
	before := names(t, dir)
	open(s, filepath.Join(dir, "a.ipynb"))
	require.Equal(t, before, names(t, dir), "what was made in this life may be in use")

	s = newService(t, nil)
	dir = put(s)
	link := filepath.Join(s.config.Home, "link.ipynb")
	require.NoError(t, os.Symlink("work/a.ipynb", link))
	s.began = time.Now().Add(time.Hour) // so all of it is of an earlier life
	open(s, link)
	var want []string
	for _, name := range before {
		if name != ours && name != jupyters {
			want = append(want, name)
		}
	}
	require.Equal(t, want, names(t, dir))
}

// TestOldOutputFilesMakeRoom promises that files with the whole text of executions have a bound, and that neither the newest nor one that grows is removed.
func TestOldOutputFilesMakeRoom(t *testing.T) {
	s := newService(t, nil)
	s.maxSpills = 100
	dir := filepath.Join(s.config.Home, stateDir, "outputs")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	put := func(name string, size, age int) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o600))
		at := time.Now().Add(-time.Duration(age) * time.Hour)
		require.NoError(t, os.Chtimes(path, at, at))
	}
	name := func(c string) string { return "e" + strings.Repeat(c, 15) + ".txt" }
	put("notes.txt", 500, 9)
	put(name("a"), 10, 5)
	put(name("b"), 60, 4)
	put(name("c"), 60, 3)
	put(name("d"), 30, 2)
	put(name("f"), 10, 8)
	s.mu.Lock()
	s.runners["k"] = &runner{current: &execution{spill: &spill{path: filepath.Join(dir, name("f"))}}}
	s.mu.Unlock()
	s.pruneSpills()
	require.Equal(t, []string{name("c"), name("d"), name("f"), "notes.txt"}, names(t, dir))

	put(name("g"), 500, 0)
	s.mu.Lock()
	delete(s.runners, "k")
	s.mu.Unlock()
	s.pruneSpills()
	require.Equal(t, []string{name("g"), "notes.txt"}, names(t, dir))
}
