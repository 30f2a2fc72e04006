package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ImportRequest says which image to import.
type ImportRequest struct {
	// Reference is that of a registry, such as HOST/NAME:TAG or HOST/NAME@sha256:…; or a path on this
	// machine: "oci:DIR", the directory of an OCI layout, or "tar:FILE", what docker save or skopeo
	// wrote. Where these hold several images, ":NAME" after the path chooses one.
	Reference string
	// Platform is such as linux/arm64; that of this machine if empty.
	Platform string
	// Insecure talks plain HTTP to the registry.
	Insecure bool
	// Trusted: an operator asks. Only then paths on this machine, and registries at addresses that are not
	// public, are read.
	Trusted bool
}

// IsLocal reports whether a reference is a path on the machine that imports: only an operator may say those.
func IsLocal(reference string) bool {
	return strings.HasPrefix(reference, "oci:") || strings.HasPrefix(reference, "tar:")
}

// Import converts an OCI or Docker image. Every byte is checked against the digest that names it. Nothing
// is unpacked onto the file system. progress is as in Build. Errors for a person are *carrel.Error:
// bad_reference, operator_needed, registry_not_public, image_not_found, image_denied, registry_unreachable, image_platform_missing,
// image_digest_mismatch, image_layer_invalid, image_too_large, image_unsupported, disk_full.
func (b *Builder) Import(ctx context.Context, r ImportRequest, progress func(string)) (Result, error) {
	if r.Platform == "" {
		r.Platform = "linux/" + runtime.GOARCH
	}
	if IsLocal(r.Reference) && !r.Trusted {
		return Result{}, carrel.Errorf(carrel.CodeDenied, "operator_needed", "only an operator may import from a path on a node; use a registry")
	}
	key := fmt.Sprintf("import %s %s %t %t", r.Reference, r.Platform, r.Insecure, r.Trusted)
	return b.flights.do(ctx, key, progress, func(ctx context.Context, progress func(string)) (Result, error) {
		begun := time.Now()
		result, err := b.importImage(ctx, r, progress)
		if err != nil {
			return Result{}, explainImport(r.Reference, explainIO(err))
		}
		b.cfg.Log.Info("imported an image", "digest", result.Digest, "bytes", result.Size, "cached", result.Cached, "took", time.Since(begun))
		return result, nil
	})
}

func (b *Builder) importImage(ctx context.Context, r ImportRequest, progress func(string)) (result Result, err error) {
	want, err := parsePlatform(r.Platform)
	if err != nil {
		return Result{}, err
	}
	work, err := b.store.newWork()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, work.close()) }()
	progress("looking for the image")
	source, err := b.openSource(ctx, r, work.path)
	if err != nil {
		return Result{}, err
	}
	defer source.close()
	image, err := resolve(ctx, source, want, b.cfg.Limits)
	if err != nil {
		return Result{}, err
	}
	sum := sha256.Sum256([]byte(keyVersion + "\noci 2\n" + image.manifestDigest))
	key := hex.EncodeToString(sum[:])
	if cached, ok, err := b.store.findKey(ctx, key); err != nil || ok {
		return cached, err
	}
	a := &assembly{builder: b, work: work.path, tree: newTree(), meter: &meter{limits: b.cfg.Limits}}
	defer a.close()
	for i, layer := range image.layers {
		say := func(percent int64) {
			progress(fmt.Sprintf("fetching layer %d of %d: %d%%", i+1, len(image.layers), percent))
		}
		if err := a.addLayer(ctx, source, i, layer, say); err != nil {
			return Result{}, err
		}
		if err := failpoint.Hit("image/import/layer"); err != nil {
			return Result{}, err
		}
	}
	description := &Description{
		Source: r.Reference, Manifest: image.manifestDigest, Platform: image.platform,
		Config: ProcessConfig{Env: image.config.Env, User: image.config.User, WorkingDir: image.config.WorkingDir, Entrypoint: image.config.Entrypoint, Cmd: image.config.Cmd},
	}
	result, err = a.write(ctx, description, progress)
	if err != nil {
		return Result{}, err
	}
	if err := b.store.putKey(key, result.Digest); err != nil {
		return Result{}, err
	}
	if err := failpoint.Hit("image/import/indexed"); err != nil {
		return Result{}, err
	}
	return result, nil
}

// fetchAttempts is how often a layer is fetched before the import ends with what went wrong.
const fetchAttempts = 3

// addLayer fetches a layer into a file and puts it over the tree.
func (a *assembly) addLayer(ctx context.Context, source imageSource, number int, layer layerSource, progress func(int64)) error {
	file, err := os.Create(filepath.Join(a.work, fmt.Sprintf("layer-%d.tar", number)))
	if err != nil {
		return fmt.Errorf("making a scratch file: %w", err)
	}
	a.files = append(a.files, file)
	before, spillBefore := *a.meter, a.spillEnd
	for attempt := 1; ; attempt++ {
		*a.meter, a.spillEnd = before, spillBefore
		if err := file.Truncate(0); err != nil {
			return fmt.Errorf("fetching a layer: %w", err)
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("fetching a layer: %w", err)
		}
		records, err := a.fetchLayer(ctx, source, layer, file, progress)
		if err == nil {
			return a.tree.apply(records)
		}
		var transfer *transferError
		if !errors.As(err, &transfer) || ctx.Err() != nil {
			return err
		}
		if attempt == fetchAttempts || source.local() {
			return transfer.cause
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * time.Second):
		}
	}
}

// fetchLayer streams a layer: it is hashed as it comes, unpacked, hashed again, written to file and indexed.
func (a *assembly) fetchLayer(ctx context.Context, source imageSource, layer layerSource, file *os.File, progress func(int64)) ([]record, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	raw, err := source.blob(ctx, layer)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	spill, err := a.spillFile()
	if err != nil {
		return nil, err
	}
	compressed := newCounter(&stallReader{r: raw, stop: stop, limit: a.builder.cfg.Stall}, layer.size, a.meter.limits.Bytes)
	last := int64(-1)
	compressed.onRead = func(n int64) {
		if percent := min(100, 100*n/max(layer.size, 1)); percent > last {
			last = percent
			progress(percent)
		}
	}
	plain, closePlain, err := decompress(compressed)
	if err != nil {
		return nil, layerFailure(ctx, compressed, damagedLayer(err))
	}
	defer closePlain()
	unpacked := newCounter(damageReader{plain, compressed}, -1, a.meter.limits.Bytes)
	buffer := bufio.NewWriterSize(file, 1<<20)
	tee := io.TeeReader(unpacked, buffer)
	reader := &layerReader{
		source: tee, data: file, spill: spill, spillEnd: &a.spillEnd, meter: a.meter,
		offset: func() (int64, error) { return unpacked.n, nil },
	}
	records, err := reader.index(ctx)
	if err != nil {
		return nil, layerFailure(ctx, compressed, err)
	}
	// What follows the end of the tar file counts for the digests.
	for _, rest := range []io.Reader{unpacked, compressed} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return nil, layerFailure(ctx, compressed, err)
		}
	}
	if err := buffer.Flush(); err != nil {
		return nil, fmt.Errorf("writing a layer: %w", err)
	}
	if layer.digest != "" && compressed.digest() != layer.digest {
		return nil, digestMismatch("a layer", layer.digest, compressed.digest())
	}
	if layer.diffID != "" && unpacked.digest() != layer.diffID {
		return nil, digestMismatch("an unpacked layer", layer.diffID, unpacked.digest())
	}
	return records, nil
}

// transferError is a layer that did not come through whole: fetching it again may help.
type transferError struct{ cause error }

func (t *transferError) Error() string { return "fetching a layer: " + t.cause.Error() }
func (t *transferError) Unwrap() error { return t.cause }

// layerFailure finds out what was first: the context, the transfer, or the layer itself.
func layerFailure(ctx context.Context, compressed *counter, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if compressed.err != nil {
		return compressed.err
	}
	var known *carrel.Error
	if errors.As(err, &known) {
		return err
	}
	return fmt.Errorf("fetching a layer: %w", err)
}

// damageReader tells what is wrong with compressed data from what is wrong with getting it.
type damageReader struct {
	plain      io.Reader
	compressed *counter
}

func (d damageReader) Read(p []byte) (int, error) {
	n, err := d.plain.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && d.compressed.err == nil {
		return n, damagedLayer(err)
	}
	return n, err
}

func damagedLayer(cause error) error {
	e := carrel.Errorf(carrel.CodeInvalid, "image_layer_invalid", "the image cannot be used: a layer is damaged where it is compressed")
	e.Cause = cause
	return e
}

func digestMismatch(what, want, got string) error {
	return carrel.Errorf(carrel.CodeInvalid, "image_digest_mismatch", "the image is damaged or was tampered with: %s should be %s and is %s", what, want, got)
}

// counter hashes and counts what is read through it, up to a limit.
type counter struct {
	r      io.Reader
	hash   hash.Hash
	n      int64
	size   int64 // expected; negative if not known
	limit  int64
	err    error // what Read ended with, other than the end
	onRead func(int64)
}

func newCounter(r io.Reader, size, limit int64) *counter {
	return &counter{r: r, hash: sha256.New(), size: size, limit: limit}
}

func (c *counter) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	_, _ = c.hash.Write(p[:n]) // a hash never fails
	if c.onRead != nil {
		c.onRead(c.n)
	}
	if wrong := c.check(err); wrong != nil {
		c.err = wrong
		return n, wrong
	}
	return n, err
}

// check says what is wrong after a read that ended with err; nil if nothing is.
func (c *counter) check(err error) error {
	tampered := func(how string) error {
		return carrel.Errorf(carrel.CodeInvalid, "image_digest_mismatch", "the image is damaged or was tampered with: a part of it is %s %d bytes that it should have", how, c.size)
	}
	end := errors.Is(err, io.EOF)
	switch {
	case c.n > c.limit:
		return tooLarge("a layer is more than %d bytes", c.limit)
	case c.size < 0:
		return nil
	case c.n > c.size:
		return tampered("longer than the")
	case end && c.n < c.size:
		return &transferError{tampered("shorter than the")}
	case err != nil && !end && refusedByClient(err):
		return tampered("not what its name says, in the")
	case err != nil && !end:
		return &transferError{err}
	}
	return nil
}

// refusedByClient reports that the registry's client found a wrong digest: it has words for that, and no type.
func refusedByClient(err error) bool {
	return strings.Contains(err.Error(), "error verifying ") || strings.Contains(err.Error(), "does not match requested digest")
}

func (c *counter) digest() string { return "sha256:" + hex.EncodeToString(c.hash.Sum(nil)) }

// decompress looks at the first bytes, whatever the media type says: gzip, zstd, or a plain tar file.
func decompress(r io.Reader) (io.Reader, func(), error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return buffered, func() {}, nil
}

// stallReader ends the context when nothing has come for a while: a registry that says nothing more would
// hold the import for ever.
type stallReader struct {
	r     io.Reader
	stop  context.CancelCauseFunc
	limit time.Duration
	once  sync.Once
	timer *time.Timer
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.once.Do(func() {
		s.timer = time.AfterFunc(s.limit, func() {
			s.stop(carrel.Errorf(carrel.CodeUnavailable, "registry_unreachable", "the registry sent nothing for %s; try again later", s.limit))
		})
	})
	s.timer.Reset(s.limit)
	n, err := s.r.Read(p)
	// Only the time of a read counts: between two of them it is this machine that is slow.
	s.timer.Stop()
	return n, err
}

// explainImport turns what a registry or the network said into words.
func explainImport(reference string, err error) error {
	var known *carrel.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	wrap := func(code carrel.Code, reason, format string, args ...any) error {
		e := carrel.Errorf(code, reason, format, args...)
		e.Cause = err
		return e
	}
	if refusedByClient(err) {
		return wrap(carrel.CodeInvalid, "image_digest_mismatch", "the image %q is damaged or was tampered with: a part of it is not what its digest says", clip(reference))
	}
	var answered *transport.Error
	if errors.As(err, &answered) {
		switch answered.StatusCode {
		case http.StatusNotFound:
			return wrap(carrel.CodeNotFound, "image_not_found", "the registry has no image %q; check its name and tag", clip(reference))
		case http.StatusUnauthorized, http.StatusForbidden:
			return wrap(carrel.CodeDenied, "image_denied", "the registry does not give out %q: it does not exist, or needs a login", clip(reference))
		}
		return wrap(carrel.CodeUnavailable, "registry_unreachable", "the registry answered %d for %q; try again later", answered.StatusCode, clip(reference))
	}
	var dialed net.Error
	var requested *url.Error
	if errors.As(err, &dialed) || errors.As(err, &requested) || errors.Is(err, io.ErrUnexpectedEOF) {
		return wrap(carrel.CodeUnavailable, "registry_unreachable", "the registry of %q cannot be reached from this machine; check the name and the network", clip(reference))
	}
	return err
}
