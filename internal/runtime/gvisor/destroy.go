package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/failpoint"
)

// Destroy implements runtime.Runtime. It does not ask runsc: that knows a sandbox only from the moment when its
// state file is written, and what a killed start left has none.
func (r *Runtime) Destroy(ctx context.Context, run string) error {
	if err := checkRun(run); err != nil {
		return fmt.Errorf("destroying the sandbox: %w", err)
	}
	if err := r.destroy(ctx, run); err != nil {
		return fmt.Errorf("destroying the sandbox: %w", err)
	}
	return nil
}

func (r *Runtime) destroy(ctx context.Context, run string) error {
	// Without this mark it counts as half made: from here on only Destroy is left.
	whole := os.Remove(r.path(run, fileStarted)) == nil
	if err := failpoint.Hit("gvisor/destroy/begin"); err != nil {
		return err
	}
	lock, err := r.takeLock(ctx, run)
	if err != nil {
		return err
	}
	if lock != nil {
		defer lock.Close()
	}
	if err := r.kill(ctx, run, whole && lock != nil); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor/destroy/killed"); err != nil {
		return err
	}
	file, err := r.readRunFile(run)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("a run's file cannot be read", "run", run, "error", err)
	}
	if err := r.releaseHome(ctx, run, file.Home); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor/destroy/home"); err != nil {
		return err
	}
	if err := unmount(ctx, r.path(run, dirLog)); err != nil {
		return fmt.Errorf("unmounting the logs: %w", err)
	}
	for _, path := range []string{
		r.stateFile(run, "state"), filepath.Join(r.stateRoot(), "runsc-"+run+".sock"), r.stateFile(run, "lock"),
	} {
		if err := removeFile(path); err != nil {
			return fmt.Errorf("removing a file of runsc: %w", err)
		}
	}
	if err := failpoint.Hit("gvisor/destroy/files"); err != nil {
		return err
	}
	if err := r.cgroups.remove(ctx, run); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor/destroy/cgroups"); err != nil {
		return err
	}
	r.sweepOverlays()
	// Each mount point by itself first: if something were mounted there still, nothing in it may be removed.
	for _, dir := range []string{dirHome, dirLog} {
		if err := removeFile(r.path(run, dir)); err != nil {
			return fmt.Errorf("removing a mount point: %w", err)
		}
	}
	if err := os.RemoveAll(r.runDir(run)); err != nil {
		return fmt.Errorf("removing the run directory: %w", err)
	}
	return failpoint.Hit("gvisor/destroy/done")
}

// takeLock returns the lock of the run directory, and nil if there is none. Commands that still act on the
// sandbox are killed: it is to be destroyed.
func (r *Runtime) takeLock(ctx context.Context, run string) (*os.File, error) {
	lock, err := r.lockRun(ctx, run, time.Millisecond)
	switch {
	case err == nil:
		return lock, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	err = poll(ctx, 10*time.Second, func() (bool, error) {
		for _, pid := range r.commands(run) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		lock, err = r.lockRun(ctx, run, time.Millisecond)
		return err == nil, ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("ending commands that act on the sandbox: %w", err)
	}
	return lock, nil
}

// kill ends every process of the sandbox, and answers when they are gone. The sandbox's own process comes first, so that it
// never sees one of those that it made end. If whole, it is known that no process exists which neither the cgroup nor the state
// file names.
func (r *Runtime) kill(ctx context.Context, run string, whole bool) error {
	state, err := r.readStateFile(run)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("the state file of runsc cannot be read", "run", run, "error", err)
	}
	var known []int
	if err == nil && len(r.cgroups) > 0 && whole {
		known = []int{state.Sandbox.Pid, state.GoferPid}
	} else {
		known = append(r.commands(run), state.Sandbox.Pid, state.GoferPid)
	}
	known = slices.DeleteFunc(known, func(pid int) bool { return pid <= 1 || !r.isOurs(pid, run) })
	all := slices.Clone(known)
	for _, pid := range known {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	// Releasing a process's memory is what takes long. Those that the sandbox made would end with it, but only then begin;
	// so all do it at once.
	made := slices.DeleteFunc(r.cgroups.procs(run), func(pid int) bool { return slices.Contains(known, pid) })
	for _, pid := range made {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	all = append(all, made...)
	for _, pid := range all {
		// A file descriptor wakes us at the right moment.
		mine := func() bool { return r.isOurs(pid, run) || slices.Contains(r.cgroups.procs(run), pid) }
		if _, err := waitPid(ctx, pid, mine); err != nil {
			return err
		}
	}
	err = poll(ctx, 30*time.Second, func() (bool, error) {
		left := r.cgroups.procs(run)
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
			if !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
		for _, pid := range known {
			if r.isOurs(pid, run) {
				left = append(left, pid)
			}
		}
		return len(left) == 0, nil
	})
	for _, pid := range all {
		reap(pid)
	}
	if err != nil {
		return fmt.Errorf("ending the sandbox's processes: %w", err)
	}
	return nil
}

// sweepOverlays removes the names of overlay files that a killed runsc did not come to remove itself, which
// it does at once after making one.
func (r *Runtime) sweepOverlays() {
	entries, err := os.ReadDir(r.overlayDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && strings.HasPrefix(e.Name(), "runsc-filestore-") && time.Since(info.ModTime()) > time.Minute {
			_ = os.Remove(filepath.Join(r.overlayDir, e.Name()))
		}
	}
}

// Purge removes what all sandboxes share, once there is none left: for tests and for uninstalling.
func (r *Runtime) Purge(ctx context.Context) error {
	list, err := r.List(ctx)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("%d sandboxes are left", len(list))
	}
	if err := unmount(ctx, filepath.Join(r.stateRoot(), "null-netns")); err != nil {
		return fmt.Errorf("unmounting the shared namespace: %w", err)
	}
	for _, h := range r.cgroups {
		// Other runtimes may use the same parent.
		if err := removeFile(h.parent); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("removing the parent cgroup: %w", err)
		}
	}
	// Root may hold what others made.
	for _, path := range []string{r.stateRoot(), filepath.Join(r.root, "runs")} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}
