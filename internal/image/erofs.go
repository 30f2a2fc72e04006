package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/erofs/go-erofs"
)

// treeFS shows a tree to the EROFS writer.
type treeFS struct{ tree *tree }

func (t treeFS) entry(op, name string) (*entry, error) {
	e := t.tree.root
	if name == "." {
		return e, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if e = e.children[part]; e == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	return e, nil
}

func (t treeFS) Open(name string) (fs.File, error) {
	e, err := t.entry("open", name)
	if err != nil {
		return nil, err
	}
	file := &treeFile{entry: e}
	if e.content.size > 0 {
		file.reader = io.NewSectionReader(e.content.from, e.content.offset, e.content.size)
	}
	return file, nil
}

func (t treeFS) Stat(name string) (fs.FileInfo, error) {
	e, err := t.entry("stat", name)
	if err != nil {
		return nil, err
	}
	return treeInfo{e}, nil
}

func (t treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := t.entry("readdir", name)
	if err != nil {
		return nil, err
	}
	entries := make([]fs.DirEntry, 0, len(e.children))
	for _, child := range e.children {
		entries = append(entries, treeInfo{child})
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

func (t treeFS) ReadLink(name string) (string, error) {
	e, err := t.entry("readlink", name)
	if err != nil {
		return "", err
	}
	return e.target, nil
}

type treeFile struct {
	entry  *entry
	reader *io.SectionReader
}

func (f *treeFile) Stat() (fs.FileInfo, error) { return treeInfo{f.entry}, nil }
func (f *treeFile) Close() error               { return nil }

// Read ends with an error where the file below is shorter than it should be: the writer would take an
// early end for the end of a small file, and write an image that is out of step from there on.
func (f *treeFile) Read(p []byte) (int, error) {
	if f.reader == nil {
		return 0, io.EOF
	}
	n, err := f.reader.Read(p)
	if errors.Is(err, io.EOF) {
		if at, seekErr := f.reader.Seek(0, io.SeekCurrent); seekErr == nil && at < f.reader.Size() {
			return n, io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// treeInfo is both the FileInfo and the DirEntry of an entry.
type treeInfo struct{ entry *entry }

func (i treeInfo) Name() string               { return i.entry.name }
func (i treeInfo) Size() int64                { return i.entry.content.size }
func (i treeInfo) Mode() fs.FileMode          { return i.entry.mode }
func (i treeInfo) ModTime() time.Time         { return i.entry.mtime }
func (i treeInfo) IsDir() bool                { return i.entry.isDir() }
func (i treeInfo) Type() fs.FileMode          { return i.entry.mode.Type() }
func (i treeInfo) Info() (fs.FileInfo, error) { return i, nil }

func (i treeInfo) Sys() any {
	e := i.entry
	// Hard links become copies: the writer has no second name for a file. It takes a directory's links
	// from here, and programs such as find rely on them.
	links := 1
	if e.isDir() {
		links = 2
		for _, child := range e.children {
			if child.isDir() {
				links++
			}
		}
	}
	return &erofs.Stat{
		Nlink: links, UID: e.uid, GID: e.gid, Rdev: e.device,
		Mtime: uint64(max(e.mtime.Unix(), 0)), MtimeNs: uint32(e.mtime.Nanosecond()),
	}
}

// writeErofs writes the tree as an EROFS image to an empty file that is open for reading and writing. The
// bytes depend on the tree alone. progress is told how many bytes have been written.
func writeErofs(ctx context.Context, t *tree, out *os.File, tempDir string, progress func(int64)) error {
	w := &imageWriter{ctx: ctx, out: out, buffer: bufio.NewWriterSize(out, 1<<20), progress: progress}
	image := erofs.Create(w, erofs.WithBuildTime(0, 0), erofs.WithTempDir(tempDir))
	if err := image.CopyFrom(treeFS{t}); err != nil {
		return fmt.Errorf("collecting files: %w", err)
	}
	if err := image.Close(); err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	if err := w.buffer.Flush(); err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	if err := plainFiles(ctx, out); err != nil {
		return fmt.Errorf("moving small files to blocks of their own: %w", err)
	}
	return nil
}

// imageWriter gathers small writes, and ends them all when the context ends.
type imageWriter struct {
	ctx      context.Context
	out      io.WriteSeeker
	buffer   *bufio.Writer
	written  int64
	progress func(int64)
}

func (w *imageWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.buffer.Write(p)
	w.written += int64(n)
	w.progress(w.written)
	return n, err
}

func (w *imageWriter) Seek(offset int64, whence int) (int64, error) {
	if err := w.buffer.Flush(); err != nil {
		return 0, err
	}
	return w.out.Seek(offset, whence)
}
