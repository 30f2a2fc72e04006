package archive

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// TempPrefix begins the name of a file that is not complete yet.
const TempPrefix = ".carrel-upload-"

// Options of Unpack.
type Options struct {
	// Mode has the permission bits that are taken from the archive; others are not set.
	Mode fs.FileMode
	// Root: the root entry's mode and time are for the directory itself, because it was made for this.
	Root bool
}

// Stats is what was unpacked.
type Stats struct{ Files, Bytes int64 }

// ErrRefused is in the chain of errors about an archive, or a directory, that is not as it must be; the others are of the file
// system and of the stream.
var ErrRefused = errors.New("refused")

func refuse(name, format string, args ...any) error {
	if len(name) > 256 {
		name = name[:256] + "…"
	}
	return fmt.Errorf("entry %q of the archive is %w: %s", name, ErrRefused, fmt.Sprintf(format, args...))
}

// Unpack reads a tar stream to its end into dir. When it fails, what was unpacked before stays, and the file under way is removed.
func Unpack(r io.Reader, dir *os.Root, options Options) (Stats, error) {
	u := &unpacker{options: options, buf: make([]byte, packBuffer), stack: []level{{root: dir}}}
	err := u.all(tar.NewReader(r))
	if endErr := u.leave(0); err == nil {
		err = endErr
	}
	if err == nil && u.rootEntry != nil && options.Root {
		err = u.finish(level{root: dir, header: u.rootEntry})
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r) // so that its checksum is looked at
	}
	return u.stats, err
}

// level is an open directory on the way to the entry under way. Its mode and time are set when it is left: making files in it
// needs one and changes the other.
type level struct {
	root   *os.Root
	name   string
	header *tar.Header // nil: it was there, or nothing was said of it
}

type unpacker struct {
	options   Options
	buf       []byte
	stats     Stats
	stack     []level // from dir itself down
	rootEntry *tar.Header
}

func (u *unpacker) all(archive *tar.Reader) error {
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := u.entry(archive, header); err != nil {
			return err
		}
	}
}

// split takes a name apart and refuses what leads elsewhere.
func split(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, refuse(name, "its name is longer than %d bytes", maxPath)
	}
	if strings.HasPrefix(name, "/") {
		return nil, refuse(name, "its name is absolute")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, refuse(name, "its name leads out of the directory")
		case strings.ContainsRune(part, 0):
			return nil, refuse(name, "its name has a zero byte")
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return nil, refuse(name, "it lies more than %d levels deep", maxDepth)
	}
	return parts, nil
}

func (u *unpacker) entry(archive io.Reader, header *tar.Header) error {
	parts, err := split(header.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if header.Typeflag != tar.TypeDir {
			return refuse(header.Name, "the root of an archive is a directory")
		}
		u.rootEntry = header
		return nil
	}
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := parts[len(parts)-1]
	parent, err := u.enter(parts[:len(parts)-1], header.Name)
	if err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(parent, name, header)
	case tar.TypeReg, tar.TypeGNUSparse:
		err = u.file(archive, parent, name, header)
	case tar.TypeSymlink:
		err = u.symlink(parent, name, header)
	case tar.TypeLink:
		err = u.hardLink(parent, name, header)
	case tar.TypeChar, tar.TypeBlock:
		return refuse(header.Name, "devices are not made")
	case tar.TypeFifo:
		return refuse(header.Name, "pipes are not made")
	default:
		return refuse(header.Name, "its type %q is unknown", header.Typeflag)
	}
	if err == nil {
		u.stats.Files++
	}
	return err
}

// enter gives the directory of parts, which is made if need be, and leaves those that are not on the way.
func (u *unpacker) enter(parts []string, full string) (*os.Root, error) {
	same := 0
	for same < len(parts) && same+1 < len(u.stack) && u.stack[same+1].name == parts[same] {
		same++
	}
	if err := u.leave(same); err != nil {
		return nil, err
	}
	for _, part := range parts[same:] {
		at := u.stack[len(u.stack)-1].root
		if _, err := u.makeDirectory(at, part, full, 0o755); err != nil {
			return nil, err
		}
		if err := u.push(at, part, full, nil); err != nil {
			return nil, err
		}
	}
	return u.stack[len(u.stack)-1].root, nil
}

func (u *unpacker) push(at *os.Root, name, full string, header *tar.Header) error {
	sub, err := at.OpenRoot(name)
	if err != nil {
		return atEntry(full, err)
	}
	u.stack = append(u.stack, level{sub, name, header})
	return nil
}

// leave closes the levels below depth, the deepest first.
func (u *unpacker) leave(depth int) error {
	var first error
	for len(u.stack) > depth+1 {
		last := u.stack[len(u.stack)-1]
		u.stack = u.stack[:len(u.stack)-1]
		if last.header != nil {
			if err := u.finish(last); err != nil && first == nil {
				first = err
			}
		}
		last.root.Close()
	}
	return first
}

func (u *unpacker) finish(l level) error {
	if err := l.root.Chmod(".", u.mode(l.header)); err != nil {
		return atEntry(l.header.Name, err)
	}
	if err := l.root.Chtimes(".", time.Time{}, modTime(l.header)); err != nil {
		return atEntry(l.header.Name, err)
	}
	return nil
}

func (u *unpacker) mode(header *tar.Header) fs.FileMode {
	return header.FileInfo().Mode() & u.options.Mode
}

// modTime is an entry's; one that says none gets now.
func modTime(header *tar.Header) time.Time {
	if header.ModTime.Unix() <= 0 {
		return time.Now()
	}
	return header.ModTime
}

// makeDirectory makes a directory unless it is there; what else is there stays, links to directories too.
func (u *unpacker) makeDirectory(at *os.Root, name, full string, mode fs.FileMode) (made bool, err error) {
	err = at.Mkdir(name, mode)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return false, atEntry(full, err)
	}
	info, err := at.Lstat(name)
	if err != nil {
		return false, atEntry(full, err)
	}
	if !info.IsDir() {
		return false, refuse(full, "%q is there already and is no directory; remove it first", name)
	}
	return false, nil
}

func (u *unpacker) directory(at *os.Root, name string, header *tar.Header) error {
	made, err := u.makeDirectory(at, name, header.Name, 0o700)
	if err != nil {
		return err
	}
	if made {
		u.stats.Files++
	}
	return u.push(at, name, header.Name, header)
}

func (u *unpacker) file(archive io.Reader, at *os.Root, name string, header *tar.Header) (err error) {
	temp := TempPrefix + rand.Text()
	file, err := at.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return atEntry(header.Name, err)
	}
	defer func() {
		if err != nil {
			file.Close()
			_ = at.Remove(temp)
		}
	}()
	n, err := io.CopyBuffer(struct{ io.Writer }{file}, struct{ io.Reader }{archive}, u.buf)
	u.stats.Bytes += n
	if err != nil {
		return atEntry(header.Name, err)
	}
	if err := file.Chmod(u.mode(header)); err != nil {
		return atEntry(header.Name, err)
	}
	if err := file.Close(); err != nil {
		return atEntry(header.Name, err)
	}
	if err := at.Chtimes(temp, time.Time{}, modTime(header)); err != nil {
		return atEntry(header.Name, err)
	}
	return u.place(at, temp, name, header.Name)
}

// place gives a complete file or link its name. A directory is not replaced.
func (u *unpacker) place(at *os.Root, temp, name, full string) error {
	if info, err := at.Lstat(name); err == nil && info.IsDir() {
		return refuse(full, "there is a directory of that name; remove it first")
	}
	if err := at.Rename(temp, name); err != nil {
		return atEntry(full, err)
	}
	return nil
}

func (u *unpacker) symlink(at *os.Root, name string, header *tar.Header) error {
	if header.Linkname == "" || len(header.Linkname) > maxPath || strings.ContainsRune(header.Linkname, 0) {
		return refuse(header.Name, "its link leads nowhere")
	}
	temp := TempPrefix + rand.Text()
	if err := at.Symlink(header.Linkname, temp); err != nil {
		return atEntry(header.Name, err)
	}
	if err := u.place(at, temp, name, header.Name); err != nil {
		_ = at.Remove(temp)
		return err
	}
	return nil
}

// hardLink makes another name of a file below dir. Both names are looked up without following links.
func (u *unpacker) hardLink(at *os.Root, name string, header *tar.Header) error {
	parts, err := split(header.Linkname)
	if err != nil || len(parts) == 0 {
		return refuse(header.Name, "it is a link to something that is not in the archive")
	}
	dir := u.stack[0].root
	for i := range parts {
		info, err := dir.Lstat(path.Join(parts[:i+1]...))
		if err != nil {
			return atEntry(header.Name, err)
		}
		if last := i == len(parts)-1; last && !info.Mode().IsRegular() || !last && !info.IsDir() {
			return refuse(header.Name, "what it is a link to is no file")
		}
	}
	var below []string
	for _, l := range u.stack[1:] {
		below = append(below, l.name)
	}
	full := path.Join(append(below, name)...)
	if full == path.Join(parts...) {
		return nil
	}
	temp := TempPrefix + rand.Text()
	if err := dir.Link(path.Join(parts...), path.Join(append(below, temp)...)); err != nil {
		return atEntry(header.Name, err)
	}
	if err := u.place(at, temp, name, header.Name); err != nil {
		_ = at.Remove(temp)
		return err
	}
	_ = at.Remove(temp) // two names of one file stay both when one is renamed to the other
	return nil
}

// atEntry says at which entry an error was.
func atEntry(name string, err error) error {
	var at *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &at):
		err = at.Err
	case errors.As(err, &link):
		err = link.Err
	}
	return &fs.PathError{Op: "unpack", Path: name, Err: err}
}
