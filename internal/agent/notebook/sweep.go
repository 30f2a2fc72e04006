package notebook

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxSpills is how much all files with the whole text of executions may have, in bytes, on a disk that is large enough, and spillShare the part of the disk's size that
	// they may have on any. maxSpillFiles is how many there may be. The newest always stays.
	maxSpills     = 1 << 30
	spillShare    = 8
	maxSpillFiles = 1000
	// maxSwept is how many names of a directory are looked at, and sweptKept how many directories are remembered.
	maxSwept  = 20_000
	sweptKept = 1000
)

var (
	// tempName is what a file is called that is to become a notebook, or another file that is saved in one step.
	tempName = regexp.MustCompile(`^\.carrel-([a-z2-7]{12}\.tmp|upload-[A-Z2-7]{26})$`)
	// spillName is what a file with the whole text of an execution is called.
	spillName = regexp.MustCompile(`^e[a-z2-7]{15}\.txt$`)
)

// Sweep removes from the directory of a file what saves of an earlier life of the box left there when it failed: files of the user's that have a name that only those have, and that nobody has
// touched since this life began. Each directory is swept once; the file need not be there.
func (s *Service) Sweep(path string) {
	dir := filepath.Dir(s.withoutLinks(path))
	s.mu.Lock()
	swept := s.swept[dir]
	if len(s.swept) >= sweptKept {
		clear(s.swept)
	}
	s.swept[dir] = true
	s.mu.Unlock()
	if swept {
		return
	}
	err := s.config.AsUser(func() error {
		return eachFile(dir, tempName, func(root *os.Root, name string, info fs.FileInfo) error {
			found, ok := info.Sys().(*syscall.Stat_t)
			if !ok || found.Nlink != 1 || found.Uid != uint32(unix.Geteuid()) || !time.Unix(found.Ctim.Unix()).Before(s.began) {
				return nil
			}
			return root.Remove(name)
		})
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Debug("what saves left behind could not be removed", "error", err)
	}
}

// eachFile calls f with the files of a directory whose names match. Links are none. For AsUser.
func eachFile(dir string, names *regexp.Regexp, f func(root *os.Root, name string, info fs.FileInfo) error) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	list, err := root.Open(".")
	if err != nil {
		return err
	}
	defer list.Close()
	var problems error
	for seen := 0; seen < maxSwept; {
		some, err := list.ReadDir(1024)
		seen += len(some)
		for _, entry := range some {
			if !names.MatchString(entry.Name()) {
				continue
			}
			if info, err := root.Lstat(entry.Name()); err == nil && info.Mode().IsRegular() {
				problems = errors.Join(problems, f(root, entry.Name(), info))
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(problems, err)
		}
	}
	return problems
}

// pruneSpills removes the oldest files with the whole text of executions that are too much.
func (s *Service) pruneSpills() {
	s.pruning.Lock()
	defer s.pruning.Unlock()
	s.mu.Lock()
	used := map[string]bool{}
	for _, r := range s.runners {
		if r.current != nil && r.current.spill != nil {
			used[filepath.Base(r.current.spill.path)] = true
		}
	}
	s.mu.Unlock()
	type file struct {
		name string
		size int64
		at   time.Time
	}
	dir := filepath.Join(s.config.Home, stateDir, "outputs")
	err := s.config.AsUser(func() error {
		var stat unix.Statfs_t
		if err := unix.Statfs(dir, &stat); err != nil {
			return err
		}
		limit := min(s.maxSpills, int64(stat.Blocks)*stat.Bsize/spillShare)
		var all []file
		if err := eachFile(dir, spillName, func(_ *os.Root, name string, info fs.FileInfo) error {
			all = append(all, file{name, info.Size(), info.ModTime()})
			return nil
		}); err != nil {
			return err
		}
		slices.SortFunc(all, func(a, b file) int { return b.at.Compare(a.at) }) // newest first
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		total := int64(0)
		var problems error
		for i, one := range all {
			if total += one.size; i == 0 || used[one.name] || total <= limit && i < maxSpillFiles {
				continue
			}
			problems = errors.Join(problems, root.Remove(one.name))
		}
		return problems
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Debug("old files with the output of executions could not be removed", "error", err)
	}
}
