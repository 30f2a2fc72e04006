package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/runtime"
)

// logBytes is the size of the file system for a run's logs: what runsc and process 1 say beyond it is lost.
const logBytes = 1 << 20

// cleanupTime is what undoing a failed Start may take.
const cleanupTime = time.Minute

// Start implements runtime.Runtime. A start that a killed process left half made is taken away first.
func (r *Runtime) Start(ctx context.Context, spec runtime.Spec) error {
	if err := r.start(ctx, spec); err != nil {
		return fmt.Errorf("starting the sandbox: %w", err)
	}
	return nil
}

func (r *Runtime) start(ctx context.Context, spec runtime.Spec) error {
	p, err := r.Prepare(ctx, spec)
	if err != nil {
		return err
	}
	err = p.Run(ctx)
	p.Close()
	if err == nil {
		err = r.markStarted(spec.Run)
	}
	if err != nil {
		return r.undo(ctx, spec.Run, err)
	}
	return nil
}

func (r *Runtime) markStarted(run string) error {
	if err := failpoint.Hit("gvisor/start/running"); err != nil {
		return err
	}
	if err := os.WriteFile(r.path(run, fileStarted), nil, 0o600); err != nil {
		return fmt.Errorf("marking the sandbox as started: %w", err)
	}
	return failpoint.Hit("gvisor/start/marked")
}

// undo takes away what a failed start made, and returns its error.
func (r *Runtime) undo(ctx context.Context, run string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := r.destroy(ctx, run); err != nil {
		return errors.Join(cause, fmt.Errorf("and taking away what it left: %w", err))
	}
	return cause
}

// Prepared is everything of a sandbox but its processes: what Start does before it calls runsc. A benchmark
// uses it to run the raw command on the identical bundle; Destroy of its run takes it away.
type Prepared struct {
	Bundle string   // directory of the OCI bundle
	Args   []string // the command, with the binary first
	Tar    string   // the file that the command gets as file descriptor 3
	// Cgroups are the directories of the cgroups in which the command begins.
	Cgroups []string

	r    *Runtime
	spec runtime.Spec
	lock *os.File
	loop *os.File // keeps the home's loop device until it is mounted
}

// Prepare makes everything that a sandbox needs before runsc is called. If it fails nothing is left; else the
// caller closes what it returns.
func (r *Runtime) Prepare(ctx context.Context, spec runtime.Spec) (*Prepared, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	st, err := r.state(spec.Run)
	if err != nil {
		return nil, err
	}
	if st.exists && st.started {
		return nil, runtime.ErrExists
	}
	program := r.programs.newest()
	if spec.From != "" {
		if program, err = r.checkCapture(spec.From, spec.WithMemory); err != nil {
			return nil, err
		}
	}
	if st.exists {
		r.log.Info("taking away a sandbox that was left half made", "run", spec.Run)
		if err := r.destroy(ctx, spec.Run); err != nil {
			return nil, err
		}
	}
	p, err := r.prepare(ctx, spec, program)
	if err != nil {
		return nil, r.undo(ctx, spec.Run, err)
	}
	return p, nil
}

func (r *Runtime) prepare(ctx context.Context, spec runtime.Spec, runsc program) (_ *Prepared, err error) {
	run := spec.Run
	p := &Prepared{Bundle: r.path(run, dirBundle), Args: append([]string{runsc.Path}, r.sandboxArgs(spec)...), Tar: os.DevNull, r: r, spec: spec}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := os.Mkdir(r.runDir(run), 0o711); err != nil {
		return nil, fmt.Errorf("making the run directory: %w", err)
	}
	if p.lock, err = r.lockRun(ctx, run, busyPatience); err != nil {
		return nil, err
	}
	data, err := json.Marshal(runFile{Home: resolve(spec.Home), AgentNetwork: spec.Network.AgentNetwork, AgentAddress: spec.Network.AgentAddress, Runsc: runsc})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(r.path(run, fileRun), data, 0o600); err != nil {
		return nil, fmt.Errorf("writing %s: %w", fileRun, err)
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"the cgroups", func() error {
			if err := failpoint.Hit("gvisor/start/directory"); err != nil {
				return err
			}
			return r.cgroups.create(run, spec.Limits)
		}},
		{"the logs", func() error {
			if err := failpoint.Hit("gvisor/start/cgroups"); err != nil {
				return err
			}
			return r.mountLogs(run)
		}},
		{"the home", func() error {
			if err := failpoint.Hit("gvisor/start/logs"); err != nil {
				return err
			}
			if err := os.Mkdir(r.path(run, dirHome), 0o700); err != nil {
				return err
			}
			loop, err := openHome(spec.Home)
			if err != nil {
				return err
			}
			p.loop = loop
			return os.WriteFile(r.path(run, fileLoop), []byte(loop.Name()), 0o600)
		}},
		{"the bundle", func() error {
			if err := failpoint.Hit("gvisor/start/home"); err != nil {
				return err
			}
			return r.writeBundle(spec)
		}},
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("preparing %s: %w", step.name, noSpace(err))
		}
	}
	for _, h := range r.cgroups {
		p.Cgroups = append(p.Cgroups, filepath.Join(h.parent, run))
	}
	if spec.From != "" && !spec.WithMemory {
		p.Tar = filepath.Join(spec.From, captureUpper)
	}
	return p, failpoint.Hit("gvisor/start/bundle")
}

// noSpace gives a full disk its kind.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", runtime.ErrNoSpace, err)
	}
	return err
}

// mountLogs mounts a small file system of its own for the logs, so that neither runsc nor process 1 can fill
// the machine's memory or disk with them, and they can still be read when the sandbox is dead.
func (r *Runtime) mountLogs(run string) error {
	dir := r.path(run, dirLog)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	if err := unix.Mount("carrel-log", dir, "tmpfs", flags, fmt.Sprintf("size=%d,mode=0700,nr_inodes=64", logBytes)); err != nil {
		return fmt.Errorf("mounting a file system for the logs: %w", err)
	}
	return nil
}

// Close gives up the lock and the home of the sandbox. It may be called again.
func (p *Prepared) Close() {
	for _, f := range []**os.File{&p.lock, &p.loop} {
		if *f != nil {
			_ = (*f).Close()
			*f = nil
		}
	}
}

// Run mounts the home, runs the command in the cgroups and waits for it. When ctx ends it is killed.
func (p *Prepared) Run(ctx context.Context) error {
	r, run := p.r, p.spec.Run
	tar, err := os.OpenFile(p.Tar, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("opening the root file system's changes: %w", err)
	}
	defer tar.Close()
	console, err := os.OpenFile(r.path(run, logConsole), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the console: %w", err)
	}
	defer console.Close()
	cmd := command(p.lock, p.Args[0], p.Args[1:]...)
	cmd.ExtraFiles[0] = tar
	cmd.Stdout, cmd.Stderr = console, console
	err = r.cgroups.spawn(run, func(cgroupFD int) error {
		if err := mountHomePrivately(p.loop.Name(), r.path(run, dirHome)); err != nil {
			return err
		}
		if cgroupFD >= 0 {
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, cgroupFD
		}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("starting runsc: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = errors.Join(ctx.Err(), cmd.Process.Kill(), ignoreExit(<-done))
		return fmt.Errorf("runsc was stopped: %w", err)
	}
	if err == nil {
		return nil
	}
	message := r.lastMessage(run)
	if message == "" {
		message = lastLine(readTail(r.path(run, logConsole)))
	}
	if n := r.cgroups.oomKills(run); n > 0 {
		message += "; the host ended it for want of memory: it needs more than its limit even to begin"
	}
	if line := lastLine(firstLines(readTail(r.path(run, logPanic)))); line != "" {
		message += "; " + line
	}
	return r.explain(run, "runsc", message, err)
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// String is what Run does, for a shell in a mount namespace of its own (unshare --mount).
func (p *Prepared) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "mount -t ext4 -o nodev,nosuid,%s %s %s; ", homeOptions, p.loop.Name(), p.r.path(p.spec.Run, dirHome))
	for _, dir := range p.Cgroups {
		fmt.Fprintf(&b, "echo $$ > %s/cgroup.procs; ", dir)
	}
	b.WriteString(strings.Join(p.Args, " "))
	b.WriteString(" 3< " + p.Tar)
	return b.String()
}

// checkSpec refuses what could never work, or would be read as something else by runsc.
func checkSpec(spec runtime.Spec) error {
	if err := checkRun(spec.Run); err != nil {
		return err
	}
	paths := map[string]string{"image": spec.Image, "home": spec.Home, "agent": spec.Agent, "identity": spec.Identity}
	if spec.From != "" {
		paths["capture"] = spec.From
	}
	if spec.Network.Namespace != "" {
		paths["network namespace"] = spec.Network.Namespace
	}
	for name, path := range paths {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("the path of the %s is %q; it must be absolute", name, path)
		}
	}
	if spec.WithMemory && spec.From == "" {
		return errors.New("memory can only come from a capture, and none is given")
	}
	l := spec.Limits
	for name, n := range map[string]int64{"cpu": l.CPUMillis, "memory": l.Memory, "processes": l.Processes, "root": l.Root, "tmp": l.Tmp, "shm": l.Shm} {
		if n <= 0 {
			return fmt.Errorf("the limit on %s is %d; it must be positive", name, n)
		}
	}
	if l.Headroom < 0 {
		return fmt.Errorf("the headroom is %d; it must not be negative", l.Headroom)
	}
	return nil
}
