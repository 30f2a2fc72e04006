package jupyter

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/archive"
	"carrel.dev/carrel/internal/carrel"
)

// What is here runs with the user's rights, within Config.AsUser.

// maxLinks is how many symbolic links are followed to a file, as the kernel does.
const maxLinks = 40

// place finds what an API path means: a path below the root, without links followed. Where a link leads is the user's business, whose rights
// everything is done with.
func (s *Server) place(path string) (string, error) {
	path = carrel.DecodeFileName(strings.Trim(path, "/"))
	if strings.ContainsRune(path, 0) {
		return "", refuse(http.StatusBadRequest, "a path has no zero bytes")
	}
	full := filepath.Join(s.config.Home, path)
	if len(full) >= unix.PathMax {
		return "", refuse(http.StatusBadRequest, "the path is longer than %d bytes", unix.PathMax-1)
	}
	if full != s.config.Home && !strings.HasPrefix(full, strings.TrimSuffix(s.config.Home, "/")+"/") {
		return "", refuse(http.StatusNotFound, "%s is outside root contents directory", clip(path))
	}
	return full, nil
}

// hidden reports whether a part of an API path begins with a dot. Such files are not shown and cannot be made, as Jupyter has it by default.
func hidden(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if strings.HasPrefix(part, ".") && part != "." && part != ".." {
			return true
		}
	}
	return false
}

// openRegular opens a file, through links; what could keep the reader waiting is no file.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = refuse(http.StatusBadRequest, "Cannot read non-file %s", carrel.EncodeFileName(filepath.Base(path)))
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

// readWhole reads a file of at most limit bytes.
func readWhole(path string, limit int64) ([]byte, error) {
	file, info, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	tooLarge := refuse(http.StatusRequestEntityTooLarge,
		"%s is larger than the %d MiB that can be opened here; look at it in a terminal, or download it", carrel.EncodeFileName(filepath.Base(path)), limit>>20)
	if info.Size() > limit {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = tooLarge
	}
	return data, err
}

// target follows links to what a write replaces, be it there or not.
func target(path string) (string, error) {
	for range maxLinks {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return path, nil
		}
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			return path, err
		}
		link, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(link) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", err
			}
			link = filepath.Join(dir, link)
		}
		path = link
	}
	return "", unix.ELOOP
}

// replaceFile writes a file so that at any moment either the old content or the new one is there, whole. A file that is there keeps its
// mode; mode is for a new one.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	return replaceWith(path, mode, func(file *os.File) error {
		_, err := file.Write(data)
		return err
	})
}

// replaceWith is replaceFile with content that write makes.
func replaceWith(path string, mode fs.FileMode, write func(*os.File) error) (err error) {
	if path, err = target(path); err != nil {
		return err
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return refuse(http.StatusBadRequest, "%s is there and is no file", carrel.EncodeFileName(filepath.Base(path)))
	default:
		if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS); err != nil {
			return &fs.PathError{Op: "write", Path: path, Err: err}
		}
		mode = info.Mode().Perm()
	}
	file, err := os.OpenFile(filepath.Join(filepath.Dir(path), archive.TempPrefix+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: errors.Unwrap(err)}
	}
	defer file.Close()
	if err = write(file); err == nil {
		err = file.Chmod(mode)
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil //nolint:nilerr // a directory that may be written but not read has nothing to be synced with
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some file systems have nothing to sync in a directory
		return err
	}
	return nil
}

// copyFile copies content, mode and time.
func copyFile(from, to string) error {
	source, info, err := openRegular(from)
	if err != nil {
		return err
	}
	defer source.Close()
	return replaceWith(to, info.Mode().Perm(), func(file *os.File) error {
		if _, err := io.Copy(file, source); err != nil {
			return err
		}
		return os.Chtimes(file.Name(), info.ModTime(), info.ModTime())
	})
}

// rename moves what is at a path, and never onto something else.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a kernel or file system without that
		if _, err := os.Lstat(to); err == nil {
			return unix.EEXIST
		}
		err = os.Rename(from, to)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "rename", Path: from, Err: err}
	}
	return err
}

// discard puts something into the user's trash, as desktops have it, from where it can be taken back.
func (s *Server) discard(path string) error {
	dir := filepath.Join(s.config.Home, ".local/share/Trash")
	for _, sub := range []string{"files", "info"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	base := filepath.Base(path)
	for i := 1; i < 10_000; i++ {
		name := base
		if i > 1 {
			name = fmt.Sprintf("%s %d", base, i)
		}
		info, err := os.OpenFile(filepath.Join(dir, "info", name+".trashinfo"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(info, "[Trash Info]\nPath=%s\nDeletionDate=%s\n", escapePath(path), s.now().Format("2006-01-02T15:04:05"))
		err = errors.Join(err, info.Close())
		if err == nil {
			err = rename(path, filepath.Join(dir, "files", name))
		}
		if err != nil {
			_ = os.Remove(info.Name())
			if errors.Is(err, unix.EEXIST) {
				continue
			}
		}
		return err
	}
	return refuse(http.StatusConflict, "the trash has thousands of files of the name %s; empty it (~/.local/share/Trash)", carrel.EncodeFileName(base))
}
