package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/runtime"
)

// Freeze implements runtime.Runtime.
func (r *Runtime) Freeze(ctx context.Context, run string) error {
	if err := r.freeze(ctx, run); err != nil {
		return fmt.Errorf("freezing the sandbox: %w", err)
	}
	return nil
}

func (r *Runtime) freeze(ctx context.Context, run string) error {
	if _, err := r.needLive(run); err != nil {
		return err
	}
	lock, err := r.lockRun(ctx, run, busyPatience)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Only now: a command of a process that died may have frozen it meanwhile.
	st, err := r.needLive(run)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor/freeze/begin"); err != nil {
		return err
	}
	if !st.frozen {
		if err := r.actLocked(ctx, lock, run, "pause", run); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("gvisor/freeze/paused"); err != nil {
		return err
	}
	return r.syncHome(run, st.gofer)
}

// Thaw implements runtime.Runtime.
func (r *Runtime) Thaw(ctx context.Context, run string) error {
	if err := r.thaw(ctx, run); err != nil {
		return fmt.Errorf("thawing the sandbox: %w", err)
	}
	return nil
}

func (r *Runtime) thaw(ctx context.Context, run string) error {
	if _, err := r.needLive(run); err != nil {
		return err
	}
	lock, err := r.lockRun(ctx, run, busyPatience)
	if err != nil {
		return err
	}
	defer lock.Close()
	st, err := r.needLive(run)
	if err != nil || !st.frozen {
		return err
	}
	if err := failpoint.Hit("gvisor/thaw/begin"); err != nil {
		return err
	}
	return r.actLocked(ctx, lock, run, "resume", run)
}

// Save implements runtime.Runtime. With memory it also syncs the home once more, since runsc writes back what it
// had cached of it.
func (r *Runtime) Save(ctx context.Context, run string, dir string, opts runtime.SaveOptions) error {
	if err := r.save(ctx, run, dir, opts); err != nil {
		return fmt.Errorf("saving the sandbox: %w", err)
	}
	return nil
}

func (r *Runtime) save(ctx context.Context, run string, dir string, opts runtime.SaveOptions) (err error) {
	if _, err := r.needLive(run); err != nil {
		return err
	}
	lock, err := r.lockRun(ctx, run, busyPatience)
	if err != nil {
		return err
	}
	defer lock.Close()
	st, err := r.needLive(run)
	if err != nil {
		return err
	}
	if !st.frozen {
		return fmt.Errorf("it is not frozen: %w", runtime.ErrState)
	}
	runsc, err := r.programOf(run)
	if err != nil {
		return err
	}
	if opts.Memory && runsc.foreign {
		return fmt.Errorf("%w: the runsc %s that began it is not on this machine any more, and no other can save its memory", runtime.ErrIncompatible, runsc.Version)
	}
	if err := checkEmpty(dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, empty(dir)) // so that the caller can try again
		}
	}()
	if err := failpoint.Hit("gvisor/save/begin"); err != nil {
		return err
	}
	// Both only read the frozen sandbox; together they take as long as the longer.
	var group errgroup.Group
	group.Go(func() error {
		return r.actLocked(ctx, lock, run, "tar", "rootfs-upper", "-file="+filepath.Join(dir, captureUpper), run)
	})
	if opts.Memory {
		group.Go(func() error {
			return r.actLocked(ctx, lock, run, "checkpoint", "-leave-running", "-image-path="+filepath.Join(dir, captureMemory), run)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor/save/written"); err != nil {
		return err
	}
	if opts.Memory {
		if err := r.syncHome(run, st.gofer); err != nil {
			return err
		}
	}
	if st, err := r.needLive(run); err != nil {
		return err
	} else if !st.frozen {
		return fmt.Errorf("it did not stay frozen: %w", runtime.ErrState)
	}
	if err := describe(dir, opts.Memory, runsc); err != nil {
		return err
	}
	return failpoint.Hit("gvisor/save/described")
}

func checkEmpty(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("the directory %q is not an absolute path", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("the directory %s is not empty", dir)
	}
	return nil
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
