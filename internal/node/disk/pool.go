package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
)

const (
	// MinPool is the smallest pool that mkfs.xfs makes, in bytes.
	MinPool = 320 * carrel.MiB
	// spare is what the pool file leaves free on the file system below it, in bytes.
	spare = 512 * carrel.MiB
)

// Config of a pool.
type Config struct {
	// Dir is the node's data directory. The pool is mounted at, or is, Dir/pool.
	Dir string
	// RunDir has the fixed paths that a memory snapshot remembers. It lies on a file system that may be
	// empty after a reboot.
	RunDir string
	// SizeBytes is the size of the pool file, if one is needed; at least MinPool. A larger value than last
	// time grows the pool; a smaller one is ignored.
	SizeBytes int64
	Logger    *slog.Logger
}

// Pool is an open pool. It is safe for concurrent use.
type Pool struct {
	dir    string
	root   string // of the file system with reflinks
	runDir string
	log    *slog.Logger
	low    int64 // new work is refused below it, in bytes
	floor  int64 // work that goes on is undone below it, in bytes

	goldenMu sync.Mutex // held while a golden home is made
}

// Open makes what is missing and mounts the pool; after a crash or a reboot the same call repairs what
// was half done.
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	p := &Pool{dir: cfg.Dir, root: filepath.Join(cfg.Dir, "pool"), runDir: cfg.RunDir, log: cfg.Logger}
	if cfg.Dir == "" || cfg.RunDir == "" || cfg.Logger == nil {
		return nil, errors.New("open pool: Dir, RunDir and Logger are needed")
	}
	if err := os.MkdirAll(p.root, 0o700); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if err := p.mount(ctx, cfg.SizeBytes); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	for _, d := range []string{"homes", "golden", "snapshots", "images", "overlay"} {
		if err := os.MkdirAll(filepath.Join(p.root, d), 0o700); err != nil {
			return nil, fmt.Errorf("open pool: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(p.dir, "bin"), 0o755); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if err := p.link(); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if err := p.sweep(); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	space, err := p.Space()
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	p.low = max(space.Total/10, 64*carrel.MiB)
	p.floor = max(space.Total/50, 16*carrel.MiB)
	return p, nil
}

// mount brings up a file system with reflinks at p.root.
func (p *Pool) mount(ctx context.Context, size int64) error {
	file := filepath.Join(p.dir, "pool.xfs")
	mounted, err := isMountPoint(p.root)
	if err != nil {
		return err
	}
	if !mounted {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			if reflinks(p.root) == nil {
				return nil // the data directory can do it itself
			}
			if err := p.format(ctx, file, size); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		if err := p.growFile(file, size); err != nil {
			return err
		}
		if err := mountLoop(file, p.root); err != nil {
			return err
		}
	} else if _, err := os.Stat(file); err == nil {
		if err := p.growFile(file, size); err != nil {
			return err
		}
		if err := growLoop(p.root); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("node/pool/mounted"); err != nil {
		return err
	}
	if _, err := os.Stat(file); err == nil {
		// Always: a process may have been killed after it made the file larger. It does nothing when there is nothing to do.
		if err := run(ctx, "xfs_growfs", "-d", p.root); err != nil {
			return err
		}
	}
	return reflinks(p.root)
}

// format makes the pool file. It is allocated as a whole, so that nothing else on the machine's disk
// can take what was promised to boxes.
func (p *Pool) format(ctx context.Context, file string, size int64) error {
	if size < MinPool {
		return fmt.Errorf("the pool is to have %d bytes; it needs at least %d", size, MinPool)
	}
	if err := p.fits(size, size); err != nil {
		return err
	}
	tmp := file + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(tmp)
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fmt.Errorf("reserve %d bytes for the pool: %w", size, err)
	}
	if err := run(ctx, "mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1", tmp); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync the pool file: %w", err)
	}
	if err := failpoint.Hit("node/pool/formatted"); err != nil {
		return err
	}
	return Publish(tmp, file)
}

// fits reports an error unless the disk has room for so many more bytes of a pool of size.
func (p *Pool) fits(size, more int64) error {
	var below unix.Statfs_t
	if err := unix.Statfs(p.dir, &below); err != nil {
		return fmt.Errorf("look at the space in %s: %w", p.dir, err)
	}
	if free := int64(below.Bavail) * below.Bsize; free < more+spare {
		return carrel.Errorf(carrel.CodeExhausted, "disk_full",
			"the pool of %d MiB does not fit: %s has %d MiB free, %d MiB more are needed, and %d MiB stay free; make room or configure a smaller pool",
			size/carrel.MiB, p.dir, free/carrel.MiB, more/carrel.MiB, spare/carrel.MiB)
	}
	return nil
}

// growFile reserves more for the pool file when it is smaller than it should be.
func (p *Pool) growFile(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() >= size {
		return err
	}
	if err := p.fits(size, size-info.Size()); err != nil {
		return err
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fmt.Errorf("grow the pool to %d bytes: %w", size, err)
	}
	return f.Sync()
}

// link makes the fixed paths of RunDir lead into the pool.
func (p *Pool) link() error {
	if err := os.MkdirAll(p.runDir, 0o755); err != nil {
		return err
	}
	for name, target := range map[string]string{"images": p.root + "/images", "overlay": p.root + "/overlay"} {
		path := filepath.Join(p.runDir, name)
		if name == "images" {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := symlink(target, path); err != nil {
			return err
		}
	}
	digests, err := p.Images()
	if err != nil {
		return err
	}
	for _, d := range digests {
		if err := p.linkImage(d); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what a killed process left half made.
func (p *Pool) sweep() error {
	for _, pattern := range []string{"golden/*.tmp*"} {
		paths, err := filepath.Glob(filepath.Join(p.root, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// Root is the directory of the file system with reflinks.
func (p *Pool) Root() string { return p.root }

// OverlayDir is the fixed path of the directory for writes over images.
func (p *Pool) OverlayDir() string { return filepath.Join(p.runDir, "overlay") }

// Space of the pool, in bytes.
type Space struct {
	Total, Free int64
}

// Space looks at the file system.
func (p *Pool) Space() (Space, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(p.root, &s); err != nil {
		return Space{}, fmt.Errorf("look at the pool's space: %w", err)
	}
	return Space{Total: int64(s.Blocks) * s.Bsize, Free: int64(s.Bavail) * s.Bsize}, nil
}

// Admit refuses new work when less than a tenth of the pool is free: a pool that is full would make
// the writes of every box on it fail. The error is CodeExhausted with reason disk_full.
func (p *Pool) Admit() error { return p.above(p.low, "refuses new work") }

// Continue refuses to go on with work that fills the pool when less than a fiftieth of it is free.
func (p *Pool) Continue() error { return p.above(p.floor, "cannot take more") }

func (p *Pool) above(mark int64, what string) error {
	space, err := p.Space()
	if err != nil {
		return err
	}
	if space.Free >= mark {
		return nil
	}
	return carrel.Errorf(carrel.CodeExhausted, "disk_full",
		"the node's disk pool %s: %d MiB of %d MiB are free and %d MiB stay free for the boxes that run; delete boxes or enlarge the pool",
		what, space.Free/carrel.MiB, space.Total/carrel.MiB, mark/carrel.MiB)
}

// Reserve is what is not given to new work, in bytes.
func (p *Pool) Reserve() int64 { return p.low }

// Unmount takes the pool away. Only a test or an operator who removes the node wants that.
func (p *Pool) Unmount() error {
	mounted, err := isMountPoint(p.root)
	if err != nil || !mounted {
		return err
	}
	if err := unix.Unmount(p.root, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", p.root, err)
	}
	return nil
}

// run runs one of the system's programs and says what it said when it fails.
func run(ctx context.Context, name string, args ...string) error {
	var out bytes.Buffer
	command := exec.CommandContext(ctx, name, args...)
	command.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C")
	command.Stdout, command.Stderr = &out, &out
	if err := command.Run(); err != nil {
		text := bytes.TrimSpace(out.Bytes())
		return fmt.Errorf("%s: %w: %s", name, err, text[:min(len(text), 500)])
	}
	return nil
}
