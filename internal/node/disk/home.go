package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
)

// boxUID owns the home of every box.
const boxUID = 1000

// HomePath is where the live home image of a run lies.
func (p *Pool) HomePath(run string) string { return filepath.Join(p.root, "homes", run+".img") }

// NewHome makes the live home of a new box, size bytes large. A home that a killed attempt left is replaced.
func (p *Pool) NewHome(ctx context.Context, run string, size int64) (string, error) {
	golden, err := p.Golden(ctx, size)
	if err != nil {
		return "", err
	}
	return p.CloneHome(run, golden)
}

// CloneHome makes the live home of a run a clone of image, replacing one that is there.
func (p *Pool) CloneHome(run, image string) (string, error) {
	path := p.HomePath(run)
	if err := p.RemoveHome(run); err != nil {
		return "", err
	}
	if err := Clone(image, path); err != nil {
		return "", err
	}
	return path, nil
}

// RemoveHome removes the live home of a run; it may be missing.
func (p *Pool) RemoveHome(run string) error {
	if err := os.Remove(p.HomePath(run)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove home: %w", err)
	}
	return nil
}

// HasHome reports whether a run has a live home.
func (p *Pool) HasHome(run string) bool {
	_, err := os.Stat(p.HomePath(run))
	return err == nil
}

// Golden makes the golden home of a size if there is none, and answers its path. Making one costs some 50 ms,
// once per size and pool; a clone of it 1 ms (measured on XFS), so none are kept ready.
func (p *Pool) Golden(ctx context.Context, size int64) (string, error) {
	if size < carrel.MinResources.HomeBytes || size > carrel.MaxResources.HomeBytes {
		return "", fmt.Errorf("make home: %d bytes are out of range", size)
	}
	path := filepath.Join(p.root, "golden", fmt.Sprintf("home-1-%d.img", size))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	p.goldenMu.Lock()
	defer p.goldenMu.Unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := p.makeGolden(ctx, path, size); err != nil {
		return "", fmt.Errorf("make home: %w", err)
	}
	return path, nil
}

func (p *Pool) makeGolden(ctx context.Context, path string, size int64) (err error) {
	skeleton := path + ".tmp.d"
	tmp := path + ".tmp"
	defer os.RemoveAll(skeleton)
	defer os.Remove(tmp)
	if err := os.RemoveAll(skeleton); err != nil {
		return err
	}
	home := filepath.Join(skeleton, "home")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	if err := os.Chown(home, boxUID, boxUID); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	// The file reads as zeros, so neither mkfs nor the kernel needs to write empty inode tables: a new home takes
	// a few MB. -m 0: there is no root who would need reserved blocks.
	if err := run(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-L", "carrel-home",
		"-E", "assume_storage_prezeroed=1,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", "-d", skeleton, tmp); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := failpoint.Hit("node/golden/formatted"); err != nil {
		return err
	}
	return Publish(tmp, path)
}

// Grow enlarges a home image that no box uses, file system included. A smaller size is ignored: files
// cannot be made to fit.
func (p *Pool) Grow(ctx context.Context, image string, size int64) error {
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	if info.Size() >= size {
		return nil
	}
	// Exit code 1 of e2fsck: errors were corrected. resize2fs insists on a check.
	if err := run(ctx, "sh", "-c", `e2fsck -f -p "$0" || test $? -eq 1`, image); err != nil {
		return fmt.Errorf("check home before it grows: %w", err)
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	if err := run(ctx, "resize2fs", image); err != nil {
		return fmt.Errorf("grow home: %w", err)
	}
	return nil
}

// AllocatedBytes is what the files below a directory, or one file, take on the disk.
func AllocatedBytes(path string) (int64, error) {
	var total int64
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(p, &s); err != nil {
			return err
		}
		total += s.Blocks * 512
		return nil
	})
	return total, err
}
