package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"carrel.dev/carrel/internal/archive"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// resumable is the size from which an upload goes on where another program was killed, in bytes.
	resumable = 8 << 20
	// downloadPrefix begins the name of a file that is not complete yet, on this side.
	downloadPrefix = ".carrel-download-"
)

// Place is one end of a copy: a path of this machine, or with Box one of a box (by id or name).
type Place struct{ Box, Path string }

// IsStream reports whether a place is standard input or output.
func (p Place) IsStream() bool { return p.Box == "" && p.Path == "-" }

func (p Place) String() string {
	if p.Box != "" {
		return p.Box + ":" + p.Path
	}
	return p.Path
}

// contents reports whether a place means what is in a directory, and not the directory.
func (p Place) contents() bool {
	slashed := filepath.ToSlash(p.Path)
	return slashed == "." || strings.HasSuffix(slashed, "/.") || path.Clean(slashed) == "/"
}

// CopyOptions of Copy.
type CopyOptions struct {
	From, To Place
	// Stdin and Stdout are what a Place of "-" means.
	Stdin  io.Reader
	Stdout io.Writer
	// Progress, if set, is called with what was copied of total bytes; total is 0 when nobody knows. Both may begin again when a
	// connection broke.
	Progress func(name string, done, total int64)
}

// entry is what is known of a place.
type entry struct {
	exists, dir bool
	size        int64
	mode        fs.FileMode
	modified    time.Time
}

// Copy copies a file, a directory or a stream, as cp -a and docker cp do: to a directory that is there something is copied into it
// under its own name; a directory copied to a path where nothing is becomes that; a source that ends with "/." is what is in it. A single
// link is followed, links in directories stay links. Modes and times are kept, owners not: they are the user's who copies. A file
// appears when it is complete.
func (c *Client) Copy(ctx context.Context, o CopyOptions) error {
	if o.From.IsStream() {
		return c.copyFromStream(ctx, o)
	}
	from, err := c.lookAt(ctx, o.From)
	if err != nil {
		return err
	}
	if !from.exists {
		return carrel.Errorf(carrel.CodeNotFound, "file_not_found", "there is no %s to copy", o.From)
	}
	if o.To.IsStream() {
		return c.copyToStream(ctx, o, from)
	}
	to, err := c.lookAt(ctx, o.To)
	if err != nil {
		return err
	}
	switch {
	case to.exists && !to.dir && from.dir:
		return carrel.Errorf(carrel.CodePrecondition, "not_a_directory", "%s is a file, and %s a directory, which cannot be put in its place", o.To, o.From)
	case !to.exists && !from.dir && endsWithSlash(o.To.Path):
		return carrel.Errorf(carrel.CodeNotFound, "file_not_found", "there is no directory %s to copy to; make it first, or leave the / at the end away", o.To)
	case to.dir && (!from.dir || !o.From.contents()):
		name, err := baseOf(o.From)
		if err != nil {
			return err
		}
		o.To = o.To.join(name)
		to.exists = false
	}
	if from.dir {
		return c.copyDirectory(ctx, o, !to.exists)
	}
	return c.copyFile(ctx, o, from)
}

func endsWithSlash(p string) bool { return strings.HasSuffix(filepath.ToSlash(p), "/") }

// baseOf is the name that a place's last part has.
func baseOf(p Place) (string, error) {
	if p.Box != "" {
		return path.Base(path.Clean(p.Path)), nil
	}
	full, err := filepath.Abs(p.Path)
	if err != nil {
		return "", fmt.Errorf("find the name of %s: %w", p.Path, err)
	}
	return filepath.Base(full), nil
}

func (p Place) join(name string) Place {
	if p.Box != "" {
		return Place{p.Box, path.Join(p.Path, name)}
	}
	return Place{Path: filepath.Join(p.Path, name)}
}

// remote is the path as a box takes it.
func (p Place) remote() string {
	if p.Path == "" {
		return "."
	}
	return carrel.EncodeFileName(p.Path)
}

// lookAt finds out what a place is, through links.
func (c *Client) lookAt(ctx context.Context, p Place) (entry, error) {
	if p.Box == "" {
		info, err := os.Stat(p.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return entry{}, nil
		}
		if err != nil {
			return entry{}, localFailure(err)
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return entry{}, carrel.Errorf(carrel.CodePrecondition, "not_a_file", "%s is neither a file nor a directory", p)
		}
		return entry{true, info.IsDir(), info.Size(), info.Mode(), info.ModTime()}, nil
	}
	info, err := c.StatFile(ctx, p.Box, strings.TrimSuffix(p.remote(), "/")+"/")
	if carrel.ReasonOf(err) == "not_a_directory" { // it is no link to a directory either
		info, err = c.StatFile(ctx, p.Box, strings.TrimRight(p.remote(), "/"))
	}
	if carrel.ReasonOf(err) == "file_not_found" {
		return entry{}, nil
	}
	if err != nil {
		return entry{}, err
	}
	return entry{true, info.GetType() == "directory", info.GetSize(), fs.FileMode(info.GetMode() & 0o777), info.GetModifyTime().AsTime()}, nil
}

// localFailure is an error of this machine's files for a person.
func localFailure(err error) error {
	code, reason := carrel.CodePrecondition, "local_file"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = carrel.CodeNotFound
	case errors.Is(err, fs.ErrPermission):
		code = carrel.CodeDenied
	}
	return &carrel.Error{Code: code, Reason: reason, Message: "on this machine: " + err.Error(), Cause: err}
}

func (o CopyOptions) progress(p Place, total int64) func(int64) {
	if o.Progress == nil {
		return func(int64) {}
	}
	name, _ := baseOf(p)
	return func(done int64) { o.Progress(name, done, total) }
}

// counted tells how much went through.
type counted struct {
	io.Reader
	done int64
	tell func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.done += int64(n)
	c.tell(c.done)
	return n, err
}

func (c *Client) copyFromStream(ctx context.Context, o CopyOptions) error {
	if o.To.IsStream() || o.To.Box == "" {
		return carrel.Errorf(carrel.CodeInvalid, "no_box", "neither %s nor %s is in a box; one of them is NAME:PATH", o.From, o.To)
	}
	to, err := c.lookAt(ctx, o.To)
	if err != nil {
		return err
	}
	if to.dir || endsWithSlash(o.To.Path) {
		return carrel.Errorf(carrel.CodePrecondition, "is_directory", "%s is a directory; a stream needs a file's name", o.To)
	}
	_, err = c.Upload(ctx, Upload{Box: o.To.Box, Path: o.To.remote(), Content: struct{ io.Reader }{o.Stdin}, Progress: o.progress(o.To, 0)})
	return err
}

func (c *Client) copyToStream(ctx context.Context, o CopyOptions, from entry) error {
	if o.From.Box == "" {
		return carrel.Errorf(carrel.CodeInvalid, "no_box", "neither %s nor %s is in a box; one of them is NAME:PATH", o.From, o.To)
	}
	if !from.dir {
		return c.download(ctx, o, o.Stdout, nil)
	}
	written := false
	return c.DownloadArchive(ctx, o.From.Box, directoryPath(o.From), func(r io.Reader) error {
		if written {
			return carrel.Errorf(carrel.CodeUnavailable, "download_broken", "the connection broke in the middle of the archive; what was written is not all of it")
		}
		_, err := io.Copy(o.Stdout, &counted{Reader: writes{r, &written}, tell: o.progress(o.From, 0)})
		return err
	})
}

// writes notes that something was read.
type writes struct {
	io.Reader
	any *bool
}

func (w writes) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	*w.any = *w.any || n > 0
	return n, err
}

// directoryPath is that of a directory, which may be a link to it.
func directoryPath(p Place) string { return strings.TrimRight(p.remote(), "/") + "/" }

// download copies a file's content to w. restart, if set, is called when the file changed meanwhile and all begins again.
func (c *Client) download(ctx context.Context, o CopyOptions, w io.Writer, restart func() error) error {
	for tries := 1; ; tries++ {
		file, err := c.OpenFile(ctx, o.From.Box, o.From.remote())
		if err != nil {
			return err
		}
		_, err = io.Copy(struct{ io.Writer }{w}, &counted{Reader: file, tell: o.progress(o.From, file.Info().GetSize())})
		file.Close()
		if carrel.ReasonOf(err) != "file_changed" || restart == nil || tries >= archiveTries {
			return err
		}
		if err := restart(); err != nil {
			return err
		}
	}
}

func (c *Client) copyFile(ctx context.Context, o CopyOptions, from entry) error {
	if o.To.Box == "" {
		if o.From.Box == "" {
			return carrel.Errorf(carrel.CodeInvalid, "no_box", "neither %s nor %s is in a box; one of them is NAME:PATH", o.From, o.To)
		}
		return c.copyFileHere(ctx, o, from)
	}
	u := Upload{Box: o.To.Box, Path: o.To.remote(), Mode: uint32(from.mode.Perm()), ModifyTime: from.modified, Progress: o.progress(o.From, from.size)}
	if o.From.Box != "" {
		file, err := c.OpenFile(ctx, o.From.Box, o.From.remote())
		if err != nil {
			return err
		}
		defer file.Close()
		u.Content = file
		_, err = c.Upload(ctx, u)
		return err
	}
	file, err := os.Open(o.From.Path)
	if err != nil {
		return localFailure(err)
	}
	defer file.Close()
	u.Content = file
	if full, err := filepath.Abs(o.From.Path); err == nil && from.size >= resumable {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d\x00%d", full, from.size, from.modified.UnixNano()))
		u.ID = "cp-" + hex.EncodeToString(sum[:16])
	}
	_, err = c.Upload(ctx, u)
	return err
}

// copyFileHere writes a file of this machine, beside its place until it is complete.
func (c *Client) copyFileHere(ctx context.Context, o CopyOptions, from entry) (err error) {
	target := o.To.Path
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real
	}
	file, err := os.CreateTemp(filepath.Dir(target), downloadPrefix+"*")
	if err != nil {
		return localFailure(err)
	}
	defer func() {
		if err != nil {
			file.Close()
			os.Remove(file.Name())
		}
	}()
	if err := c.download(ctx, o, localWriter{file}, func() error {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return localFailure(err)
		}
		return file.Truncate(0)
	}); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return file.Chmod(from.mode.Perm()) },
		file.Sync,
		file.Close,
		func() error { return os.Chtimes(file.Name(), time.Time{}, from.modified) },
		func() error { return os.Rename(file.Name(), target) },
	} {
		if err := step(); err != nil {
			return localFailure(err)
		}
	}
	return nil
}

// localWriter says of a file's errors where they are.
type localWriter struct{ file *os.File }

func (w localWriter) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	if err != nil {
		err = localFailure(err)
	}
	return n, err
}

func (c *Client) copyDirectory(ctx context.Context, o CopyOptions, isNew bool) error {
	switch {
	case o.From.Box == "" && o.To.Box == "":
		return carrel.Errorf(carrel.CodeInvalid, "no_box", "neither %s nor %s is in a box; one of them is NAME:PATH", o.From, o.To)
	case o.To.Box == "":
		return c.copyDirectoryHere(ctx, o, isNew)
	}
	tell := o.progress(o.From, 0)
	_, err := c.UploadArchive(ctx, o.To.Box, o.To.remote(), func(ctx context.Context) (io.ReadCloser, error) {
		if o.From.Box != "" {
			return c.relay(ctx, o.From, tell), nil
		}
		return pack(o.From.Path, tell)
	})
	return err
}

// piped makes a reader of what write writes, in a goroutine that ends when the reader is closed.
func piped(tell func(int64), write func(io.Writer) error) io.ReadCloser {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(write(w))
	}()
	return pipeReader{&counted{Reader: r, tell: tell}, func() error {
		err := r.Close()
		<-done
		return err
	}}
}

type pipeReader struct {
	io.Reader
	close func() error
}

func (p pipeReader) Close() error { return p.close() }

// relay reads the archive of one box for another, once.
func (c *Client) relay(ctx context.Context, from Place, tell func(int64)) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	begun := false
	in := piped(tell, func(w io.Writer) error {
		return c.DownloadArchive(ctx, from.Box, directoryPath(from), func(r io.Reader) error {
			if begun {
				return carrel.Errorf(carrel.CodeUnavailable, "download_broken", "the connection to %s broke", from)
			}
			begun = true
			_, err := io.Copy(w, r)
			return err
		})
	})
	return pipeReader{in, func() error {
		cancel()
		return in.Close()
	}}
}

// pack makes the archive of a directory of this machine.
func pack(dir string, tell func(int64)) (io.ReadCloser, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, localFailure(err)
	}
	return piped(tell, func(w io.Writer) error {
		defer root.Close()
		compressed, err := archive.NewWriter(w)
		if err != nil {
			return err
		}
		packer := archive.NewPacker(compressed)
		if err := packer.Directory(root); err != nil {
			return packFailure(err)
		}
		return errors.Join(packer.Close(), compressed.Close())
	}), nil
}

func packFailure(err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	return localFailure(err)
}

// copyDirectoryHere unpacks an archive of a box. The box may be hostile: nothing is written outside of the directory, and no
// special permission bits are set.
func (c *Client) copyDirectoryHere(ctx context.Context, o CopyOptions, isNew bool) error {
	if err := os.Mkdir(o.To.Path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return localFailure(err)
	}
	root, err := os.OpenRoot(o.To.Path)
	if err != nil {
		return localFailure(err)
	}
	defer root.Close()
	return c.DownloadArchive(ctx, o.From.Box, directoryPath(o.From), func(r io.Reader) error {
		plain, err := archive.NewReader(&counted{Reader: r, tell: o.progress(o.From, 0)})
		if err != nil {
			return err
		}
		defer plain.Close()
		if _, err := archive.Unpack(plain, root, archive.Options{Mode: fs.ModePerm, Root: isNew}); err != nil {
			return localFailure(err)
		}
		return nil
	})
}
