package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"carrel.dev/carrel/internal/carrel"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// maxDocument bounds manifests, indexes and configurations, in bytes.
const maxDocument = 8 << 20

// imageSource is where an image comes from: a registry, a directory or a tar file.
type imageSource interface {
	// root returns the index or manifest that the reference names.
	root(ctx context.Context) ([]byte, error)
	// manifest returns the index or manifest with a digest; whoever asks checks it.
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// blob opens a layer or a configuration; whoever asks checks what it reads.
	blob(ctx context.Context, l layerSource) (io.ReadCloser, error)
	// local reports that trying again is of no use.
	local() bool
	close()
}

// layerSource is one layer of an image.
type layerSource struct {
	digest string // as it is kept; empty if that is not known
	size   int64  // as it is kept; negative if that is not known
	diffID string // unpacked
	file   string // in a docker-save archive
}

// foundImage is an image of one platform.
type foundImage struct {
	manifestDigest string
	platform       string
	config         v1.Config
	layers         []layerSource
}

func (b *Builder) openSource(ctx context.Context, r ImportRequest, work string) (imageSource, error) {
	if rest, ok := strings.CutPrefix(r.Reference, "oci:"); ok {
		dir, tag := splitTag(rest)
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, badLocal(r.Reference, "it is not a directory that can be read", err)
		}
		return &layout{files: dirFiles{root}, tag: tag, reference: r.Reference}, nil
	}
	if rest, ok := strings.CutPrefix(r.Reference, "tar:"); ok {
		file, tag := splitTag(rest)
		files, err := openArchive(ctx, file, work, b.cfg.Limits)
		if err != nil {
			var known *carrel.Error
			if errors.As(err, &known) || ctx.Err() != nil || errors.As(explainIO(err), &known) {
				return nil, err
			}
			return nil, badLocal(r.Reference, "it is not a tar file that can be read", err)
		}
		if _, ok := files.entries["index.json"]; ok {
			return &layout{files: files, tag: tag, reference: r.Reference}, nil
		}
		return &savedImage{files: files, tag: tag, reference: r.Reference}, nil
	}
	options := []name.Option{name.WeakValidation}
	if r.Insecure {
		options = append(options, name.Insecure)
	}
	reference, err := name.ParseReference(r.Reference, options...)
	if err != nil || len(r.Reference) > 1024 {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_reference", "%q is no reference to an image; write HOST/NAME:TAG, HOST/NAME@sha256:…, oci:DIR or tar:FILE", clip(r.Reference))
	}
	keychain := b.cfg.Keychain
	if keychain == nil {
		keychain = authn.NewMultiKeychain() // nobody
	}
	source := &registrySource{reference: reference, options: []remote.Option{remote.WithAuthFromKeychain(keychain), remote.WithUserAgent("carrel")}}
	if !r.Trusted {
		source.guard = newGuardedTransport(b.reachable)
		source.options = append(source.options, remote.WithTransport(source.guard))
	}
	return source, nil
}

// splitTag takes ":NAME" from the end of a path that does not exist with it.
func splitTag(p string) (file, tag string) {
	if _, err := os.Lstat(p); err == nil {
		return p, ""
	}
	// The name may itself have a colon, as HOST/NAME:TAG does: the shortest path that exists wins.
	for i, r := range p {
		if r == ':' && i > 0 {
			if _, err := os.Lstat(p[:i]); err == nil {
				return p[:i], p[i+1:]
			}
		}
	}
	return p, ""
}

func badLocal(reference, what string, cause error) error {
	e := carrel.Errorf(carrel.CodeInvalid, "bad_reference", "%q cannot be imported: %s", clip(reference), what)
	e.Cause = cause
	return e
}

func parsePlatform(s string) (v1.Platform, error) {
	p, err := v1.ParsePlatform(s)
	if err != nil || p.OS != "linux" || p.Architecture == "" {
		return v1.Platform{}, carrel.Errorf(carrel.CodeInvalid, "bad_platform", "%q is no platform that boxes have; write linux/amd64 or linux/arm64", clip(s))
	}
	return *p, nil
}

// document is what an index and a manifest have in common.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Manifests     []v1.Descriptor `json:"manifests"`
	Config        v1.Descriptor   `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
}

const maxIndexDepth = 3

// resolve finds the image for a platform, through indexes if need be.
func resolve(ctx context.Context, source imageSource, want v1.Platform, limits Limits) (*foundImage, error) {
	if saved, ok := source.(*savedImage); ok {
		return saved.resolve(want, limits)
	}
	data, err := source.root(ctx)
	if err != nil {
		return nil, err
	}
	var seen []string // platforms that are there
	found, err := search(ctx, source, data, want, limits, &seen, 0)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, platformMissing(want, seen)
	}
	return found, nil
}

func platformMissing(want v1.Platform, seen []string) error {
	slices.Sort(seen)
	there := strings.Join(slices.Compact(seen), ", ")
	if there == "" {
		there = "none at all"
	}
	return carrel.Errorf(carrel.CodeInvalid, "image_platform_missing", "the image does not exist for %s; it is there for %s", want, there)
}

// search looks for the platform in an index or manifest. It answers nil if it is not there, and adds to seen.
func search(ctx context.Context, source imageSource, data []byte, want v1.Platform, limits Limits, seen *[]string, depth int) (*foundImage, error) {
	var doc document
	if json.Unmarshal(data, &doc) != nil {
		return nil, unsupported("its manifest is not JSON that can be read")
	}
	if doc.SchemaVersion == 1 {
		return nil, unsupported("its manifest is of the old schema 1; push it again with a newer tool")
	}
	if doc.Manifests == nil {
		return manifestOf(ctx, source, data, doc, want, limits, seen)
	}
	if depth >= maxIndexDepth {
		return nil, unsupported("its indexes lie more than %d deep in each other", maxIndexDepth)
	}
	if len(doc.Manifests) > 1000 {
		return nil, unsupported("its index has %d entries", len(doc.Manifests))
	}
	for _, d := range doc.Manifests {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		if d.Platform != nil && !d.Platform.Satisfies(want) {
			if d.Platform.OS != "unknown" {
				*seen = append(*seen, platformName(*d.Platform))
			}
			continue
		}
		child, err := fetchManifest(ctx, source, d)
		if err != nil {
			return nil, err
		}
		found, err := search(ctx, source, child, want, limits, seen, depth+1)
		if err != nil || found != nil {
			return found, err
		}
	}
	return nil, nil
}

func platformName(p v1.Platform) string {
	if p.Variant != "" {
		return clip(p.OS + "/" + p.Architecture + "/" + p.Variant)
	}
	return clip(p.OS + "/" + p.Architecture)
}

func fetchManifest(ctx context.Context, source imageSource, d v1.Descriptor) ([]byte, error) {
	if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 64 {
		return nil, unsupported("it names a part by %q; only sha256 is known", clip(d.Digest.String()))
	}
	data, err := source.manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != d.Digest.String() {
		return nil, digestMismatch("a manifest", d.Digest.String(), got)
	}
	return data, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func manifestOf(ctx context.Context, source imageSource, data []byte, doc document, want v1.Platform, limits Limits, seen *[]string) (*foundImage, error) {
	if doc.Config.Digest.Algorithm != "sha256" {
		return nil, unsupported("its manifest has no configuration")
	}
	if len(doc.Layers) > limits.Layers {
		return nil, tooLarge("it has %d layers; at most %d are possible", len(doc.Layers), limits.Layers)
	}
	if doc.Config.Size < 0 || doc.Config.Size > maxDocument {
		return nil, tooLarge("its configuration is %d bytes; at most %d are read", doc.Config.Size, maxDocument)
	}
	blob, err := source.blob(ctx, layerSource{digest: doc.Config.Digest.String(), size: doc.Config.Size})
	if err != nil {
		return nil, err
	}
	raw, err := readDocument(blob)
	if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != doc.Config.Digest.String() {
		return nil, digestMismatch("the configuration", doc.Config.Digest.String(), got)
	}
	config, err := parseConfig(raw, len(doc.Layers))
	if err != nil {
		return nil, err
	}
	if p := configPlatform(config); !p.Satisfies(want) {
		*seen = append(*seen, platformName(p))
		return nil, nil
	}
	found := &foundImage{manifestDigest: digestOf(data), platform: platformName(configPlatform(config)), config: config.Config}
	for i, l := range doc.Layers {
		if l.Digest.Algorithm != "sha256" || len(l.Digest.Hex) != 64 {
			return nil, unsupported("it names a layer by %q; only sha256 is known", clip(l.Digest.String()))
		}
		if l.Size < 0 || l.Size > limits.Bytes {
			return nil, tooLarge("a layer is %d bytes; at most %d are possible", l.Size, limits.Bytes)
		}
		found.layers = append(found.layers, layerSource{digest: l.Digest.String(), size: l.Size, diffID: config.RootFS.DiffIDs[i].String()})
	}
	return found, nil
}

func parseConfig(raw []byte, layers int) (*v1.ConfigFile, error) {
	var config v1.ConfigFile
	if json.Unmarshal(raw, &config) != nil {
		return nil, unsupported("its configuration is not JSON that can be read; is it an image, and not another artifact?")
	}
	if len(config.RootFS.DiffIDs) != layers {
		return nil, unsupported("its configuration knows of %d layers and its manifest of %d; is it an image, and not another artifact?", len(config.RootFS.DiffIDs), layers)
	}
	return &config, nil
}

func configPlatform(c *v1.ConfigFile) v1.Platform {
	p := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if p.OS == "" {
		p.OS = "linux"
	}
	return p
}

func unsupported(format string, args ...any) error {
	return carrel.Errorf(carrel.CodeInvalid, "image_unsupported", "the image cannot be imported: %s", fmt.Sprintf(format, args...))
}

// readDocument reads a small blob and closes it.
func readDocument(r io.ReadCloser) ([]byte, error) {
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("reading a manifest: %w", err)
	}
	if len(data) > maxDocument {
		return nil, tooLarge("its manifest or configuration is more than %d bytes", maxDocument)
	}
	return data, nil
}

// registrySource is an image in a registry.
type registrySource struct {
	reference name.Reference
	options   []remote.Option
	guard     *guardedTransport // nil: any address may be reached
}

func (s *registrySource) get(ctx context.Context, reference name.Reference) ([]byte, error) {
	d, err := remote.Get(reference, append(slices.Clone(s.options), remote.WithContext(ctx))...)
	if err != nil {
		if errors.Is(err, remote.ErrSchema1) {
			return nil, unsupported("its manifest is of the old schema 1; push it again with a newer tool")
		}
		return nil, fmt.Errorf("fetching a manifest: %w", err)
	}
	if len(d.Manifest) > maxDocument {
		return nil, tooLarge("its manifest is more than %d bytes", maxDocument)
	}
	return d.Manifest, nil
}

func (s *registrySource) root(ctx context.Context) ([]byte, error) {
	data, err := s.get(ctx, s.reference)
	if err != nil {
		return nil, err
	}
	if digest, ok := s.reference.(name.Digest); ok && digestOf(data) != digest.DigestStr() {
		return nil, digestMismatch("the manifest", digest.DigestStr(), digestOf(data))
	}
	return data, nil
}

func (s *registrySource) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	return s.get(ctx, s.reference.Context().Digest(d.Digest.String()))
}

func (s *registrySource) blob(ctx context.Context, l layerSource) (io.ReadCloser, error) {
	layer, err := remote.Layer(s.reference.Context().Digest(l.digest), append(slices.Clone(s.options), remote.WithContext(ctx))...)
	if err != nil {
		return nil, fmt.Errorf("fetching a part of the image: %w", err)
	}
	r, err := layer.Compressed()
	if err != nil {
		return nil, fmt.Errorf("fetching a part of the image: %w", err)
	}
	return r, nil
}

func (s *registrySource) local() bool { return false }

func (s *registrySource) close() {
	if s.guard != nil {
		s.guard.close()
	}
}

// files are those of an OCI layout or of what docker save wrote.
type files interface {
	open(name string) (io.ReadCloser, error)
	close()
}

// dirFiles never leaves its directory, whatever links lie in it.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, error) {
	file, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", name)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func (d dirFiles) close() { d.root.Close() }

// archiveFiles are in a tar file, found by an index of it.
type archiveFiles struct {
	file    *os.File
	entries map[string]archiveEntry
}

type archiveEntry struct {
	offset, size int64
	link         string
}

// maxArchiveEntries bounds the index of a tar file with an image in it: a few per layer.
const maxArchiveEntries = 100_000

func openArchive(ctx context.Context, name, work string, limits Limits) (*archiveFiles, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &archiveFiles{file: file, entries: map[string]archiveEntry{}}
	if err := a.prepare(ctx, work, limits); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *archiveFiles) prepare(ctx context.Context, work string, limits Limits) error {
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", info.Name())
	}
	if err := a.unpack(ctx, work, limits); err != nil {
		return err
	}
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	reader := tar.NewReader(a.file)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(a.entries) >= maxArchiveEntries {
			return tooLarge("its archive has more than %d files", maxArchiveEntries)
		}
		clean := path.Clean(header.Name)
		switch header.Typeflag {
		case tar.TypeReg, 0:
			offset, err := a.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			a.entries[clean] = archiveEntry{offset: offset, size: header.Size}
		case tar.TypeSymlink:
			a.entries[clean] = archiveEntry{link: path.Join(path.Dir(clean), header.Linkname)}
		case tar.TypeLink:
			a.entries[clean] = archiveEntry{link: path.Clean(header.Linkname)}
		}
	}
}

// unpack replaces the file by an unpacked copy in work, if it is compressed.
func (a *archiveFiles) unpack(ctx context.Context, work string, limits Limits) error {
	plain, done, err := decompress(contextReader{ctx, a.file})
	if err != nil {
		return err
	}
	defer done()
	if _, isPlain := plain.(interface{ Peek(int) ([]byte, error) }); isPlain {
		return nil
	}
	copied, err := os.Create(filepath.Join(work, "archive.tar"))
	if err != nil {
		return err
	}
	if _, err := io.Copy(copied, newCounter(plain, -1, limits.Bytes)); err != nil {
		copied.Close()
		return err
	}
	a.file.Close()
	a.file = copied
	return nil
}

func (a *archiveFiles) open(name string) (io.ReadCloser, error) {
	name = path.Clean(name)
	for range maxLinks {
		e, ok := a.entries[name]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if e.link == "" {
			return io.NopCloser(io.NewSectionReader(a.file, e.offset, e.size)), nil
		}
		name = e.link
	}
	return nil, fmt.Errorf("too many links lead to %s", clip(name))
}

func (a *archiveFiles) close() { a.file.Close() }

// layout is an image in an OCI layout.
type layout struct {
	files     files
	tag       string
	reference string
}

func (l *layout) read(name string) ([]byte, error) {
	file, err := l.files.open(name)
	if err != nil {
		return nil, badLocal(l.reference, "it has no "+name, err)
	}
	return readDocument(file)
}

func (l *layout) root(context.Context) ([]byte, error) {
	data, err := l.read("index.json")
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if json.Unmarshal(data, &index) != nil {
		return nil, badLocal(l.reference, "its index.json cannot be read", nil)
	}
	var names []string
	var chosen []v1.Descriptor
	for _, d := range index.Manifests {
		title := d.Annotations["io.containerd.image.name"]
		short := d.Annotations["org.opencontainers.image.ref.name"]
		if title == "" {
			title = short
		}
		if title != "" {
			names = append(names, clip(title))
		}
		if l.tag == "" || l.tag == title || l.tag == short {
			chosen = append(chosen, d)
		}
	}
	if len(chosen) == 0 {
		return nil, badLocal(l.reference, fmt.Sprintf("it has no image %q; it has: %s", clip(l.tag), strings.Join(names, ", ")), nil)
	}
	slices.Sort(names)
	if names = slices.Compact(names); l.tag == "" && len(names) > 1 {
		return nil, badLocal(l.reference, "it holds several images; put a colon and one of these names behind the path: "+strings.Join(names, ", "), nil)
	}
	return json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: chosen})
}

func (l *layout) manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	return l.read("blobs/sha256/" + d.Digest.Hex)
}

func (l *layout) blob(_ context.Context, s layerSource) (io.ReadCloser, error) {
	name := "blobs/sha256/" + strings.TrimPrefix(s.digest, "sha256:")
	file, err := l.files.open(name)
	if err != nil {
		return nil, badLocal(l.reference, "it has no "+name, err)
	}
	return file, nil
}

func (l *layout) local() bool { return true }
func (l *layout) close()      { l.files.close() }

// savedImage is an image as docker save wrote it before it wrote OCI layouts.
type savedImage struct {
	files     *archiveFiles
	tag       string
	reference string
}

func (s *savedImage) resolve(want v1.Platform, limits Limits) (*foundImage, error) {
	file, err := s.files.open("manifest.json")
	if err != nil {
		return nil, badLocal(s.reference, "it has neither an index.json nor a manifest.json", err)
	}
	data, err := readDocument(file)
	if err != nil {
		return nil, err
	}
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if json.Unmarshal(data, &images) != nil || len(images) == 0 {
		return nil, badLocal(s.reference, "its manifest.json cannot be read", nil)
	}
	chosen, names := -1, []string{}
	for i, image := range images {
		names = append(names, image.RepoTags...)
		if s.tag == "" && len(images) == 1 || slices.Contains(image.RepoTags, s.tag) {
			chosen = i
		}
	}
	if chosen < 0 {
		return nil, badLocal(s.reference, "put a colon and one of these names behind the path: "+clip(strings.Join(names, ", ")), nil)
	}
	image := images[chosen]
	if len(image.Layers) > limits.Layers {
		return nil, tooLarge("it has %d layers; at most %d are possible", len(image.Layers), limits.Layers)
	}
	file, err = s.files.open(image.Config)
	if err != nil {
		return nil, badLocal(s.reference, "its configuration is missing", err)
	}
	raw, err := readDocument(file)
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(raw, len(image.Layers))
	if err != nil {
		return nil, err
	}
	if p := configPlatform(config); !p.Satisfies(want) {
		return nil, platformMissing(want, []string{platformName(p)})
	}
	// The configuration names every layer by digest, so that its own names the image.
	found := &foundImage{manifestDigest: digestOf(raw), platform: platformName(configPlatform(config)), config: config.Config}
	for i, name := range image.Layers {
		found.layers = append(found.layers, layerSource{size: -1, diffID: config.RootFS.DiffIDs[i].String(), file: name})
	}
	return found, nil
}

func (s *savedImage) root(context.Context) ([]byte, error) { return nil, errors.ErrUnsupported }
func (s *savedImage) manifest(context.Context, v1.Descriptor) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

func (s *savedImage) blob(_ context.Context, l layerSource) (io.ReadCloser, error) {
	file, err := s.files.open(l.file)
	if err != nil {
		return nil, badLocal(s.reference, "it has no layer "+clip(l.file), err)
	}
	return file, nil
}

func (s *savedImage) local() bool { return true }
func (s *savedImage) close()      { s.files.close() }
