package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// Limits bound what one image may cost, whatever it claims. Zero values take the defaults.
type Limits struct {
	// Layers of one image; 500 by default.
	Layers int
	// Entries of all layers together; 1,000,000 by default, about 500 bytes of memory each.
	Entries int64
	// Bytes of all layers together when unpacked, and of the finished image; 64 GiB by default.
	Bytes int64
	// NameBytes of all paths, link targets and attributes together, which are held in memory; 256 MiB by default.
	NameBytes int64
}

func (l Limits) withDefaults() Limits {
	if l.Layers == 0 {
		l.Layers = 500
	}
	if l.Entries == 0 {
		l.Entries = 1_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 64 * carrel.GiB
	}
	if l.NameBytes == 0 {
		l.NameBytes = 256 * carrel.MiB
	}
	return l
}

func tooLarge(format string, args ...any) error {
	return carrel.Errorf(carrel.CodeInvalid, "image_too_large", "the image is too large: %s", fmt.Sprintf(format, args...))
}

// meter counts what an image costs so far.
type meter struct {
	limits                    Limits
	entries, bytes, nameBytes int64
}

func (m *meter) addEntry(names int) error {
	m.entries++
	m.nameBytes += int64(names)
	if m.entries > m.limits.Entries {
		return tooLarge("it has more than %d files", m.limits.Entries)
	}
	if m.nameBytes > m.limits.NameBytes {
		return tooLarge("its names are more than %d bytes", m.limits.NameBytes)
	}
	return nil
}

func (m *meter) addBytes(n int64) error {
	if n < 0 || n > m.limits.Bytes-m.bytes {
		return tooLarge("unpacked it is more than %d bytes", m.limits.Bytes)
	}
	m.bytes += n
	return nil
}

type recordKind int

const (
	recordAdd      recordKind = iota
	recordLink                // a hard link to target
	recordWhiteout            // hides parts in the layers below
	recordOpaque              // hides everything in the directory parts in the layers below
)

// record is one entry of a layer.
type record struct {
	kind   recordKind
	parts  []string
	target []string
	entry  *entry
}

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// layerReader indexes one layer. The layer's bytes are read from source, which is a file that is already there
// or a stream that is being written to one; data is that file, and offset says how far source has been read.
type layerReader struct {
	source io.Reader
	offset func() (int64, error)
	data   io.ReaderAt
	// spill takes the contents of sparse files, which do not lie in one piece in the layer.
	spill    *os.File
	spillEnd *int64
	meter    *meter
}

// index reads the whole layer and returns its entries in order.
func (l *layerReader) index(ctx context.Context) ([]record, error) {
	var records []record
	reader := tar.NewReader(l.source)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return records, nil
		}
		if err != nil {
			return nil, l.readError(err)
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		r, err := l.record(reader, header)
		if err != nil {
			return nil, err
		}
		if r != nil {
			records = append(records, *r)
		}
	}
}

// readError tells a bad layer from a reader that failed.
func (l *layerReader) readError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
		e := layerError("a layer is not a tar file, or is damaged")
		var known *carrel.Error
		if errors.As(e, &known) {
			known.Cause = err
		}
		return e
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return layerError("a layer ends in the middle of a file")
	}
	return fmt.Errorf("reading a layer: %w", err)
}

// record turns a header into a record; nil for one that has no meaning here.
func (l *layerReader) record(reader *tar.Reader, header *tar.Header) (*record, error) {
	parts, err := split(header.Name)
	if err != nil {
		return nil, err
	}
	if err := l.meter.addEntry(len(header.Name) + len(header.Linkname)); err != nil {
		return nil, err
	}
	if len(parts) > 0 {
		last := parts[len(parts)-1]
		if last == opaqueName {
			return &record{kind: recordOpaque, parts: parts[:len(parts)-1]}, nil
		}
		if strings.HasPrefix(last, whiteoutPrefix+whiteoutPrefix) {
			return nil, nil // notes that another storage driver wrote for itself
		}
		if hidden, ok := strings.CutPrefix(last, whiteoutPrefix); ok {
			if hidden == "" || hidden == "." || hidden == ".." {
				return nil, layerError("it has the whiteout %q, which hides nothing that can be there", clip(header.Name))
			}
			return &record{kind: recordWhiteout, parts: append(parts[:len(parts)-1:len(parts)-1], hidden)}, nil
		}
	}
	e, err := entryOf(header)
	if err != nil {
		return nil, err
	}
	// Extended attributes are left out: gVisor's EROFS does not open a file that has any ("operation not
	// supported"), so a ping with a file capability would be worse than one without. In a box sudo does what it did.
	switch header.Typeflag {
	case tar.TypeLink:
		target, err := split(header.Linkname)
		if err != nil {
			return nil, err
		}
		return &record{kind: recordLink, parts: parts, target: target}, nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, 0:
		if e.content, err = l.contentOf(reader, header); err != nil {
			return nil, err
		}
	}
	return &record{kind: recordAdd, parts: parts, entry: e}, nil
}

func entryOf(header *tar.Header) (*entry, error) {
	name := clip(header.Name)
	if header.Uid < 0 || header.Uid > math.MaxUint32 || header.Gid < 0 || header.Gid > math.MaxUint32 {
		return nil, layerError("the owner of %q is %d:%d, which is not possible", name, header.Uid, header.Gid)
	}
	e := &entry{uid: uint32(header.Uid), gid: uint32(header.Gid), mtime: header.ModTime}
	if e.mtime.Before(time.Unix(0, 0)) || e.mtime.After(time.Unix(1<<40, 0)) {
		e.mtime = time.Unix(0, 0)
	}
	permissions := fs.FileMode(header.Mode & 0o777)
	for bit, mode := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if header.Mode&bit != 0 {
			permissions |= mode
		}
	}
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeLink, 0:
		e.mode = permissions
	case tar.TypeDir:
		e.mode = permissions | fs.ModeDir
	case tar.TypeSymlink:
		e.mode, e.target = fs.ModeSymlink|0o777, header.Linkname
		if e.target == "" || len(e.target) > 4095 || strings.IndexByte(e.target, 0) >= 0 {
			return nil, layerError("the symbolic link %q leads nowhere that is possible", name)
		}
	case tar.TypeFifo:
		e.mode = permissions | fs.ModeNamedPipe
	case tar.TypeChar, tar.TypeBlock:
		e.mode = permissions | fs.ModeDevice
		if header.Typeflag == tar.TypeChar {
			e.mode |= fs.ModeCharDevice
		}
		major, minor := header.Devmajor, header.Devminor
		if major < 0 || major > 0xfff || minor < 0 || minor > 0xfffff {
			return nil, layerError("the device %q has the number %d:%d, which is not possible", name, major, minor)
		}
		// As new_encode_dev in the kernel's include/linux/kdev_t.h.
		e.device = uint32(minor)&0xff | uint32(major)<<8 | (uint32(minor)&^0xff)<<12
	default:
		return nil, layerError("%q is of the unknown kind %q", name, header.Typeflag)
	}
	return e, nil
}

// contentOf says where the bytes of a regular file lie.
func (l *layerReader) contentOf(reader *tar.Reader, header *tar.Header) (content, error) {
	if header.Size == 0 {
		return content{}, nil
	}
	if err := l.meter.addBytes(header.Size); err != nil {
		return content{}, err
	}
	sparse := header.Typeflag == tar.TypeGNUSparse
	for key := range header.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	if !sparse {
		offset, err := l.offset()
		if err != nil {
			return content{}, fmt.Errorf("reading a layer: %w", err)
		}
		return content{from: l.data, offset: offset, size: header.Size}, nil
	}
	start := *l.spillEnd
	n, err := copySparse(l.spill, start, reader)
	if err != nil {
		return content{}, l.readError(err)
	}
	if n != header.Size {
		return content{}, layerError("the sparse file %q is not as long as it says", clip(header.Name))
	}
	*l.spillEnd = start + n
	return content{from: l.spill, offset: start, size: n}, nil
}

// copySparse writes r into file from offset on, leaving holes where there are only zeros.
func copySparse(file *os.File, offset int64, r io.Reader) (int64, error) {
	buffer, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	var total int64
	for {
		n, err := io.ReadFull(r, buffer)
		if n > 0 {
			if string(buffer[:n]) != string(zero[:n]) {
				if _, err := file.WriteAt(buffer[:n], offset+total); err != nil {
					return total, err
				}
			}
			total += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			// The end of a tar entry that is cut off is an unexpected end too: the caller compares sizes.
			return total, file.Truncate(offset + total)
		}
		if err != nil {
			return total, err
		}
	}
}

// apply puts a layer over the tree: first everything that it hides below, then what it adds, so that
// the order of the two in the layer does not matter.
func (t *tree) apply(records []record) error {
	for _, r := range records {
		switch r.kind {
		case recordWhiteout:
			if err := t.remove(r.parts); err != nil {
				return err
			}
		case recordOpaque:
			dir, err := t.dir(r.parts, false)
			if err != nil {
				return err
			}
			if dir != nil {
				clear(dir.children)
			}
		}
	}
	for _, r := range records {
		var err error
		switch r.kind {
		case recordAdd:
			err = t.put(r.parts, r.entry)
		case recordLink:
			err = t.link(r.parts, r.target)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
