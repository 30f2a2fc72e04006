package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxCopyDepth bounds how deep directories may lie in one another; each level holds files open.
	maxCopyDepth = 256
	copyChunk    = 1 << 20 // bytes
)

// pair checks the two paths of a move or copy.
func (s *fileService) pair(from, to string) (source, destination string, err error) {
	if source, err = s.path(from); err != nil {
		return "", "", err
	}
	if destination, err = s.path(to); err != nil {
		return "", "", err
	}
	switch {
	case source == "/" || destination == "/":
		err = carrel.Errorf(carrel.CodePrecondition, "file_busy", `"/" is neither moved nor replaced`)
	case source == destination:
		err = carrel.Errorf(carrel.CodeInvalid, "same_file", "%q is both the source and the destination", shown(source))
	case strings.HasPrefix(destination, source+"/"):
		err = carrel.Errorf(carrel.CodeInvalid, "into_itself", "%q lies in %q, which cannot be put into itself", shown(destination), shown(source))
	}
	return source, destination, err
}

// Move gives a file, link or directory another name, in one step within a file system. To another file system it is copied, put
// in place when the copy is complete, and then removed.
func (s *fileService) Move(ctx context.Context, request *connect.Request[carrelv1.MoveFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	source, destination, err := s.pair(request.Msg.GetSource(), request.Msg.GetDestination())
	if err != nil {
		return nil, err
	}
	overwrite := request.Msg.GetOverwrite()
	return s.answer(ctx, func() (*carrelv1.FileInfo, error) {
		err := s.a.notebooks.service.Move(source, destination, func() error { // open notebooks go with it
			err := renamePath(source, destination, !overwrite)
			if errors.Is(err, unix.EXDEV) {
				if err = copyAway(ctx, source, destination, overwrite); err == nil {
					err = fileError("remove", source, os.RemoveAll(source))
				}
			}
			return err
		})
		if err != nil {
			return nil, moveError(source, destination, err)
		}
		return stat(destination)
	})
}

// moveError says which of the two is meant.
func moveError(source, destination string, err error) error {
	path := destination
	if errors.Is(err, unix.ENOENT) {
		if _, statErr := os.Lstat(source); statErr != nil {
			path = source
		} else {
			path = filepath.Dir(destination)
		}
	}
	return fileError("write", path, err)
}

func renamePath(source, destination string, exclusive bool) error {
	return renameAt(unix.AT_FDCWD, source, unix.AT_FDCWD, destination, exclusive)
}

// Copy copies a file, link or directory; the copy appears when it is complete. A directory replaces only an empty one.
func (s *fileService) Copy(ctx context.Context, request *connect.Request[carrelv1.CopyFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	source, destination, err := s.pair(request.Msg.GetSource(), request.Msg.GetDestination())
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, func() (*carrelv1.FileInfo, error) {
		info, err := os.Lstat(source)
		if err != nil {
			return nil, fileError("read", source, err)
		}
		if info.IsDir() && !request.Msg.GetRecursive() {
			return nil, carrel.Errorf(carrel.CodePrecondition, "is_directory", "%q is a directory; say that what is in it is meant too (recursive)", shown(source))
		}
		if err := copyAway(ctx, source, destination, request.Msg.GetOverwrite()); err != nil {
			return nil, err
		}
		return stat(destination)
	})
}

// copyAway copies to a temporary name beside the destination and renames. For asUser.
func copyAway(ctx context.Context, source, destination string, overwrite bool) (err error) {
	if !overwrite {
		if _, err := os.Lstat(destination); err == nil {
			return fileError("write", destination, unix.EEXIST)
		}
	}
	from, err := os.OpenRoot(filepath.Dir(source))
	if err != nil {
		return fileError("read", source, err)
	}
	defer from.Close()
	to, err := os.OpenRoot(filepath.Dir(destination))
	if err != nil {
		return fileError("write", destination, err)
	}
	defer to.Close()
	c := copier{ctx: ctx, source: source, destination: destination}
	temp := temporaryName()
	defer func() {
		if err != nil {
			_ = to.RemoveAll(temp)
		}
	}()
	if err := c.entry(from, filepath.Base(source), to, temp, 0); err != nil {
		return err
	}
	dir, err := to.Open(".")
	if err != nil {
		return fileError("write", destination, err)
	}
	defer dir.Close()
	return fileError("write", destination, rename(dir, temp, dir, filepath.Base(destination), !overwrite))
}

// copier copies a tree between open directories, following no link in it.
type copier struct {
	ctx                 context.Context
	source, destination string // for messages
	buf                 []byte
}

func (c *copier) entry(from *os.Root, name string, to *os.Root, target string, depth int) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	info, err := from.Lstat(name)
	if err != nil {
		return fileError("read", c.source, err)
	}
	switch info.Mode().Type() {
	case 0:
		return c.file(from, name, to, target)
	case fs.ModeDir:
		return c.directory(from, name, to, target, depth)
	case fs.ModeSymlink:
		link, err := from.Readlink(name)
		if err != nil {
			return fileError("read", c.source, err)
		}
		return fileError("write", c.destination, to.Symlink(link, target))
	case fs.ModeSocket:
		return nil // means nothing without its listener
	}
	return carrel.Errorf(carrel.CodePrecondition, "not_a_file", "%q has a device or pipe (%q), which is not copied", shown(c.source), shown(name))
}

func (c *copier) file(from *os.Root, name string, to *os.Root, target string) error {
	in, err := from.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fileError("read", c.source, err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(c.source, info)
	}
	if err != nil {
		return fileError("read", c.source, err)
	}
	out, err := to.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fileError("write", c.destination, err)
	}
	defer out.Close()
	if c.buf == nil {
		c.buf = make([]byte, copyChunk)
	}
	for {
		n, err := in.Read(c.buf)
		if _, err := out.Write(c.buf[:n]); err != nil {
			return fileError("write", c.destination, err)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fileError("read", c.source, err)
		}
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
	if err := out.Chmod(info.Mode()); err != nil {
		return fileError("write", c.destination, err)
	}
	return fileError("write", c.destination, to.Chtimes(target, time.Time{}, info.ModTime()))
}

func (c *copier) directory(from *os.Root, name string, to *os.Root, target string, depth int) error {
	if depth >= maxCopyDepth {
		return carrel.Errorf(carrel.CodeInvalid, "too_deep", "%q has directories that lie more than %d levels deep", shown(c.source), maxCopyDepth)
	}
	in, err := from.OpenRoot(name)
	if err != nil {
		return fileError("read", c.source, err)
	}
	defer in.Close()
	info, err := in.Stat(".")
	if err != nil {
		return fileError("read", c.source, err)
	}
	if err := to.Mkdir(target, 0o700); err != nil {
		return fileError("write", c.destination, err)
	}
	out, err := to.OpenRoot(target)
	if err != nil {
		return fileError("write", c.destination, err)
	}
	defer out.Close()
	list, err := in.Open(".")
	if err != nil {
		return fileError("read", c.source, err)
	}
	defer list.Close()
	for {
		names, err := list.Readdirnames(readBatch)
		for _, one := range names {
			if err := c.entry(in, one, out, one, depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fileError("read", c.source, fmt.Errorf("list: %w", err))
		}
	}
	if err := out.Chmod(".", info.Mode()); err != nil {
		return fileError("write", c.destination, err)
	}
	return fileError("write", c.destination, out.Chtimes(".", time.Time{}, info.ModTime()))
}
