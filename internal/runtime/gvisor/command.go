package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/runtime"
)

// globalArgs come before every command of runsc. Those of the sandbox itself are fixed at its start.
func (r *Runtime) globalArgs(run string) []string {
	return []string{
		"--root=" + r.stateRoot(),
		"--log=" + r.path(run, logRunsc),
		"--panic-log=" + r.path(run, logPanic),
		"--host-settings=ignore",
		"--ignore-cgroups",
	}
}

// lockRun takes the lock of a run's directory. Every runsc that is started has a copy of the open file, so
// the lock is free only when no command of this or of a dead process acts on the sandbox any more.
func (r *Runtime) lockRun(ctx context.Context, run string, patience time.Duration) (*os.File, error) {
	f, err := os.OpenFile(r.path(run, fileLock), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, patience, func() (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("waiting for an earlier command on the same sandbox to end: %w", err)
	}
	return f, nil
}

// busyPatience is how long a method waits for an earlier command on the same sandbox.
const busyPatience = time.Minute

// command prepares a runsc that holds the lock of the run on which it acts.
func command(lock *os.File, runsc string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), runsc, args...) // who calls decides when it is killed, if ever
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{nil, lock} // file descriptor 3 is the tar of a start, 4 the lock
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// actLocked runs a command of the runsc that began a sandbox on it, and returns an error with what it said.
//
// A command that was begun is never cut off: runsc would leave the sandbox paused and its state file
// saying that it runs. If ctx ends first, actLocked answers, and the next call waits for the lock.
func (r *Runtime) actLocked(ctx context.Context, lock *os.File, run string, args ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	program, err := r.programOf(run)
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(r.runDir(run), "output-")
	if err != nil {
		return fmt.Errorf("making a file for the output of runsc: %w", err)
	}
	defer out.Close()
	if err := os.Remove(out.Name()); err != nil {
		return fmt.Errorf("unlinking the output of runsc: %w", err)
	}
	cmd := command(lock, program.Path, append(r.globalArgs(run), args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting runsc: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("runsc %s goes on: %w", args[0], ctx.Err())
	}
	if err == nil {
		return nil
	}
	data := make([]byte, maxLogRead)
	n, readErr := out.ReadAt(data, 0)
	if readErr != nil && !errors.Is(readErr, io.EOF) {
		return errors.Join(err, readErr)
	}
	return r.explain(run, "runsc "+args[0], lastLine(data[:n]), err)
}

// maxLogRead is how much of a log is looked at for its last line, in bytes.
const maxLogRead = 64 << 10

// explain makes the error of a runsc that failed: of the kind that message shows, if it shows one.
func (r *Runtime) explain(run, what, message string, cause error) error {
	kind := classify(message)
	if kind == nil {
		if st, err := r.state(run); err == nil && st.started && !st.alive {
			kind = runtime.ErrDied
		}
	}
	if message == "" {
		message = "it said nothing"
	}
	if kind != nil {
		return fmt.Errorf("%s: %w: %s (%w)", what, kind, message, cause)
	}
	return fmt.Errorf("%s: %s (%w)", what, message, cause)
}

// classify recognises what runsc says. The texts are those of the pinned version; the conformance suite
// provokes each of them. Texts of former versions, which sandboxes still run on, are to be kept when they change.
func classify(message string) error {
	for _, c := range []struct {
		kind  error
		texts []string
	}{
		{runtime.ErrNoSpace, []string{"no space left on device", "disk quota exceeded"}},
		{runtime.ErrIncompatible, []string{
			"does not match across checkpoint restore", "failed to validate restore spec", "feature set", "CPU feature",
		}},
		{runtime.ErrCorrupt, []string{
			"failed to load kernel", "statefile cannot be empty", "creating statefile reader", "not present in state file",
			"error decoding", "unexpected EOF",
		}},
	} {
		for _, text := range c.texts {
			if strings.Contains(message, text) {
				return c.kind
			}
		}
	}
	return nil
}

// lastMessage is the last meaningful thing that runsc logged for run, or "".
func (r *Runtime) lastMessage(run string) string {
	return lastLine(readTail(r.path(run, logRunsc)))
}

// readTail returns the end of a file, or nothing.
func readTail(path string) []byte {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	data := make([]byte, min(info.Size(), maxLogRead))
	n, _ := f.ReadAt(data, max(0, info.Size()-maxLogRead))
	return data[:n]
}

// lastLine returns the last message in what runsc wrote: JSON objects with a "msg", or plain lines. Stack
// traces are left out.
func lastLine(data []byte) string {
	last := ""
	decoder := json.NewDecoder(bytes.NewReader(data))
	for {
		var entry struct {
			Msg string `json:"msg"`
		}
		if decoder.Decode(&entry) != nil {
			break
		}
		if entry.Msg != "" {
			last = entry.Msg
		}
	}
	if last == "" {
		last = string(data)
		if i := strings.Index(last, "\ngoroutine "); i >= 0 {
			last = last[:i]
		}
		lines := strings.Split(strings.TrimSpace(last), "\n")
		last = lines[len(lines)-1]
	}
	last, _, _ = strings.Cut(last, "\ngorout")
	last = strings.ToValidUTF8(strings.TrimSpace(strings.ReplaceAll(last, "\n", " ")), "?")
	if len(last) > 1000 {
		last = last[:1000] + "…"
	}
	return last
}

// commands lists the processes of runsc (commands, sandboxes, gofers) that act on run, however they came to be. It
// looks at every process of the machine.
func (r *Runtime) commands(run string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		pid := 0
		if _, err := fmt.Sscanf(e.Name(), "%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		if r.isOurs(pid, run) {
			out = append(out, pid)
		}
	}
	return out
}

// isOurs says whether pid is a live process of runsc that was started for run under our state root. A zombie has no
// command line, and so is not.
func (r *Runtime) isOurs(pid int, run string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
	return args[len(args)-1] == run && hasArg(args, "--root="+r.stateRoot())
}

func hasArg(args []string, want string) bool {
	for _, a := range args {
		if a == want {
			return true
		}
	}
	return false
}

// removeFile removes a file or an empty directory that need not be there.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
