package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"carrel.dev/carrel/internal/failpoint"
	"github.com/google/go-containerregistry/pkg/authn"
)

// Config of a Builder.
type Config struct {
	// Dir holds the images. It is made if it is not there; several processes may share it.
	Dir string
	// Mmdebstrap is the program; "mmdebstrap" if empty.
	Mmdebstrap string
	// AptDir has the apt sources of which Debian's are used; /etc/apt if empty.
	AptDir string
	Limits Limits
	// Keychain logs in to registries; nil: nobody is logged in.
	Keychain authn.Keychain
	// Stall is how long a registry may send nothing; a minute if zero.
	Stall time.Duration
	// Log gets what an operator wants to know; slog.Default() if nil.
	Log *slog.Logger
}

// Builder makes images and keeps them in a directory. All methods may be called concurrently.
type Builder struct {
	cfg     Config
	store   *store
	flights flights
	// reachable says which addresses an import for a tenant may connect to.
	reachable func(netip.Addr) bool
}

// New opens a Builder's directory and removes what a killed process left in it.
func New(cfg Config) (*Builder, error) {
	if cfg.Dir == "" {
		return nil, errors.New("image: Config.Dir is empty")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	cfg.Dir = dir
	if cfg.Mmdebstrap == "" {
		cfg.Mmdebstrap = "mmdebstrap"
	}
	if cfg.AptDir == "" {
		cfg.AptDir = aptDir
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Stall == 0 {
		cfg.Stall = time.Minute
	}
	cfg.Limits = cfg.Limits.withDefaults()
	s, err := openStore(dir)
	if err != nil {
		return nil, explainIO(err)
	}
	return &Builder{cfg: cfg, store: s, reachable: public}, nil
}

// Option of Build.
type Option func(*options)

type options struct{ refresh bool }

// Refresh builds again although the definition was built before, to take newer packages.
func Refresh() Option { return func(o *options) { o.refresh = true } }

// Build makes the image of a definition, or finds the one that was made of it before, which needs no
// network. progress, which may be nil, is called with a line of words now and then, by the calling goroutine.
// Builds of the same definition at the same time are one build; it ends when the last caller's context
// does, and nothing is left of it. Errors for a person are *carrel.Error: disk_full, package_not_found,
// packages_unreachable, packages_conflict, image_command_failed, image_build_failed and others.
func (b *Builder) Build(ctx context.Context, d *Definition, progress func(string), opts ...Option) (Result, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	key := d.Key()
	if !o.refresh {
		result, ok, err := b.store.findKey(ctx, key)
		if err != nil {
			return Result{}, explainIO(err)
		}
		if ok {
			return result, nil
		}
	}
	return b.flights.do(ctx, "build "+key, progress, func(ctx context.Context, progress func(string)) (Result, error) {
		begun := time.Now()
		result, err := b.build(ctx, d, key, progress)
		if err != nil {
			return Result{}, explainIO(err)
		}
		b.cfg.Log.Info("built an image", "image", d.Name, "digest", result.Digest, "bytes", result.Size, "took", time.Since(begun))
		return result, nil
	})
}

func (b *Builder) build(ctx context.Context, d *Definition, key string, progress func(string)) (result Result, err error) {
	work, err := b.store.newWork()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, work.close()) }()
	begun := time.Now().Add(-time.Minute)
	progress("starting the build")
	archive, err := b.bootstrap(ctx, d, work.path, progress)
	if err != nil {
		return Result{}, err
	}
	if err := failpoint.Hit("image/build/bootstrapped"); err != nil {
		return Result{}, err
	}
	file, err := os.Open(archive)
	if err != nil {
		return Result{}, fmt.Errorf("reading the new system: %w", err)
	}
	defer file.Close()
	a := &assembly{builder: b, work: work.path, tree: newTree(), meter: &meter{limits: b.cfg.Limits}}
	defer a.close()
	if err := a.addFile(ctx, file); err != nil {
		return Result{}, err
	}
	packages, err := a.tree.normalize(begun)
	if err != nil {
		return Result{}, err
	}
	a.tree.exclude(d.Exclude)
	if len(d.Environment) > 0 {
		a.tree.realDir("etc", a.tree.root.mtime).setFile("environment", environmentFile(d.Environment), 0o644, a.tree.root.mtime)
	}
	description := &Description{Source: "build", Name: d.Name, Key: key, Platform: "linux/" + runtime.GOARCH, Packages: packages}
	for _, k := range sortedKeys(d.Environment) {
		description.Config.Env = append(description.Config.Env, k+"="+d.Environment[k])
	}
	result, err = a.write(ctx, description, progress)
	if err != nil {
		return Result{}, err
	}
	if err := b.store.putKey(key, result.Digest); err != nil {
		return Result{}, err
	}
	if err := failpoint.Hit("image/build/indexed"); err != nil {
		return Result{}, err
	}
	return result, nil
}

// Find returns the image with a digest. Its file is hashed the first time that this process uses it. Errors: image_missing,
// image_corrupt, bad_digest.
func (b *Builder) Find(ctx context.Context, digest string) (Result, error) {
	result, err := b.store.find(ctx, digest)
	return result, explainIO(err)
}

// List returns the images that are there, by digest, without hashing them.
func (b *Builder) List() ([]Description, error) { return b.store.list() }

// Remove removes an image. It is not an error if it is not there. Whoever has the file open or mounted keeps it.
func (b *Builder) Remove(digest string) error { return b.store.remove(digest) }

// assembly is an image on its way from layers to a file.
type assembly struct {
	builder  *Builder
	work     string
	tree     *tree
	meter    *meter
	spill    *os.File
	spillEnd int64
	files    []io.Closer
}

func (a *assembly) close() {
	for _, f := range a.files {
		_ = f.Close() // they were only read
	}
}

// spillFile is where the contents of sparse files go.
func (a *assembly) spillFile() (*os.File, error) {
	if a.spill == nil {
		file, err := os.Create(filepath.Join(a.work, "sparse"))
		if err != nil {
			return nil, fmt.Errorf("making a scratch file: %w", err)
		}
		a.spill, a.files = file, append(a.files, file)
	}
	return a.spill, nil
}

// addFile puts a tar file over the tree. The file stays open until the image is written.
func (a *assembly) addFile(ctx context.Context, file *os.File) error {
	spill, err := a.spillFile()
	if err != nil {
		return err
	}
	// The tar reader reads headers only and seeks over contents.
	reader := &layerReader{
		source: file, data: file, spill: spill, spillEnd: &a.spillEnd, meter: a.meter,
		offset: func() (int64, error) { return file.Seek(0, io.SeekCurrent) },
	}
	records, err := reader.index(ctx)
	if err != nil {
		return err
	}
	return a.tree.apply(records)
}

// write finishes the tree, writes it as an EROFS file and gives that its name.
func (a *assembly) write(ctx context.Context, d *Description, progress func(string)) (Result, error) {
	if err := a.tree.finish(); err != nil {
		return Result{}, err
	}
	files, bytes := a.tree.count()
	// Hard links become copies, so that the sum can be more than that of the layers.
	if limit := a.meter.limits.Bytes; bytes > limit {
		return Result{}, tooLarge("its files are %d bytes, hard links written out; at most %d are possible", bytes, limit)
	}
	path := filepath.Join(a.work, "image.erofs")
	out, err := os.Create(path)
	if err != nil {
		return Result{}, fmt.Errorf("writing the image: %w", err)
	}
	last := int64(-1)
	err = writeErofs(ctx, a.tree, out, a.work, func(n int64) {
		if percent := min(99, 100*n/max(bytes, 1)); percent > last {
			last = percent
			progress(fmt.Sprintf("writing the image: %d%%", percent))
		}
	})
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return Result{}, err
	}
	if err := failpoint.Hit("image/build/written"); err != nil {
		return Result{}, err
	}
	progress("checking the image")
	d.Files, d.Created = files, time.Now().UTC().Truncate(time.Second)
	return a.builder.store.put(ctx, path, d)
}
