package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxDepth bounds how deep directories may lie in one another: each level holds a file open.
	maxDepth = 512
	// maxPath is the longest name of an entry, in bytes.
	maxPath = 4096
	// maxLinks bounds how many files with several names are remembered; further ones are packed once for each name.
	maxLinks = 100_000
	// packBuffer is how much is read at once, in bytes.
	packBuffer = 256 << 10
	readBatch  = 512 // entries of a directory
)

// NewWriter compresses to w. Close ends the stream, not w. It uses about 4 MiB of memory.
func NewWriter(w io.Writer) (io.WriteCloser, error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20), zstd.WithZeroFrames(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("begin to compress: %w", err)
	}
	return z, nil
}

// NewReader takes apart what NewWriter made, and streams of others with windows of at most 8 MiB.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("begin to decompress: %w", err)
	}
	return z.IOReadCloser(), nil
}

// Packer writes one tar stream.
type Packer struct {
	tar   *tar.Writer
	buf   []byte
	links map[fileID]string

	// Left counts sockets, pipes and devices, which are left out.
	Left int64
}

// NewPacker writes to w; Close ends the stream, not w.
func NewPacker(w io.Writer) *Packer {
	return &Packer{tar: tar.NewWriter(w), buf: make([]byte, packBuffer), links: map[fileID]string{}}
}

// Close writes the end of the stream.
func (p *Packer) Close() error { return p.tar.Close() }

// Directory packs a directory: its root entry, then all that is below it. What disappears meanwhile is left out; a file that becomes
// shorter while it is read is an error.
func (p *Packer) Directory(dir *os.Root) error {
	info, err := dir.Stat(".")
	if err != nil {
		return err
	}
	header, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return fmt.Errorf("describe directory: %w", err)
	}
	header.Name = "./"
	if err := p.tar.WriteHeader(plain(header)); err != nil {
		return err
	}
	return p.walk(dir, "", 0)
}

// File packs a single file or link under its name.
func (p *Packer) File(dir *os.Root, name string) error { return p.entry(dir, name, name, 0) }

func (p *Packer) walk(dir *os.Root, prefix string, depth int) error {
	if depth >= maxDepth {
		return fmt.Errorf("%s: directories lie more than %d levels deep", prefix, maxDepth)
	}
	list, err := dir.Open(".")
	if err != nil {
		return named(prefix, err)
	}
	defer list.Close()
	for {
		names, err := list.Readdirnames(readBatch)
		for _, name := range names {
			if err := p.entry(dir, name, path.Join(prefix, name), depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return named(prefix, err)
		}
	}
}

// entry packs what is called name in dir as full.
func (p *Packer) entry(dir *os.Root, name, full string, depth int) error {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return named(full, err)
	}
	switch info.Mode().Type() {
	case 0:
		return p.file(dir, name, full)
	case fs.ModeDir:
		return p.directory(dir, name, full, depth)
	case fs.ModeSymlink:
		target, err := dir.Readlink(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return named(full, err)
		}
		return p.header(info, full, target)
	}
	p.Left++
	return nil
}

func (p *Packer) directory(dir *os.Root, name, full string, depth int) error {
	sub, err := dir.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return named(full, err)
	}
	defer sub.Close()
	info, err := sub.Stat(".")
	if err != nil {
		return named(full, err)
	}
	if err := p.header(info, full+"/", ""); err != nil {
		return err
	}
	return p.walk(sub, full, depth+1)
}

func (p *Packer) file(dir *os.Root, name, full string) error {
	file, err := dir.OpenFile(name, readFlags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return named(full, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return named(full, err)
	}
	if !info.Mode().IsRegular() { // it was another a moment ago
		p.Left++
		return nil
	}
	id, several := identify(info)
	if several {
		if first, ok := p.links[id]; ok {
			header := &tar.Header{Typeflag: tar.TypeLink, Name: full, Linkname: first, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Format: tar.FormatPAX}
			return p.tar.WriteHeader(header)
		}
		if len(p.links) < maxLinks {
			p.links[id] = full
		}
	}
	if err := p.header(info, full, ""); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{p.tar}, struct{ io.Reader }{io.LimitReader(file, info.Size())}, p.buf)
	if err != nil {
		return named(full, err)
	}
	if n < info.Size() {
		return fmt.Errorf("%s became shorter while it was read; try again", full)
	}
	return nil
}

func (p *Packer) header(info fs.FileInfo, full, target string) error {
	if len(full) > maxPath {
		return fmt.Errorf("%s…: the path is longer than %d bytes", full[:64], maxPath)
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return fmt.Errorf("describe %s: %w", full, err)
	}
	header.Name = full
	return p.tar.WriteHeader(plain(header))
}

// plain leaves out of a header what means nothing on another machine.
func plain(h *tar.Header) *tar.Header {
	h.Uname, h.Gname, h.Uid, h.Gid = "", "", 0, 0
	h.Format = tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	return h
}

// named says of what an error of a directory's method is, with the whole path.
func named(full string, err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	if full == "" {
		full = "."
	}
	return &fs.PathError{Op: "pack", Path: full, Err: err}
}
