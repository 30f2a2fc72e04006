// Package kerneltest has what tests need in place of a box: it starts kernels' processes, and it plays a kernel that
// does what a test wants, with a ZeroMQ that is not ours. The product must not import it.
package kerneltest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/kernel"
)

// Process is one that os/exec started.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu     sync.Mutex
	output bytes.Buffer
}

// Starter starts programs in a group of their own, as an unprivileged user when the test is root.
func Starter(t testing.TB) func(context.Context, kernel.Command) (kernel.Process, error) {
	t.Helper()
	notes := Dir(t)
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	return func(_ context.Context, command kernel.Command) (kernel.Process, error) {
		if len(command.Args) == 0 {
			return nil, errors.New("no program")
		}
		program := command.Args[0]
		if program == "python3" || program == "python" {
			program = "/usr/bin/python3" // Debian's, whatever else is in PATH
		}
		p := &Process{cmd: exec.Command(program, command.Args[1:]...), done: make(chan struct{})}
		p.cmd.Dir = command.Cwd
		// What IPython notes of its own accord, at any moment, is not in the home, which tests copy and fill.
		p.cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + command.Cwd, "IPYTHONDIR=" + notes}
		for name, value := range command.Env {
			p.cmd.Env = append(p.cmd.Env, name+"="+value)
		}
		p.cmd.Stdout, p.cmd.Stderr = p, p
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if uid, gid, ok := Nobody(); ok {
			p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
		}
		if err := p.cmd.Start(); err != nil {
			return nil, err
		}
		all.Go(func() {
			_ = p.cmd.Wait()
			close(p.done)
		})
		t.Cleanup(func() { _ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL) })
		return p, nil
	}
}

// Nobody gives the ids that kernels run with; false: the test is not root.
func Nobody() (uid, gid uint32, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	who, err := user.Lookup("nobody")
	if err != nil {
		return 65534, 65534, true
	}
	u, _ := strconv.ParseUint(who.Uid, 10, 32)
	g, _ := strconv.ParseUint(who.Gid, 10, 32)
	return uint32(u), uint32(g), true
}

// Dir makes a directory with a short name that the kernels' user owns.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "k")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if uid, gid, ok := Nobody(); ok {
		require.NoError(t, os.Chown(dir, int(uid), int(gid)))
	}
	return dir
}

// RuntimeDir makes the directory that kernels' sockets are in.
func RuntimeDir(t testing.TB) func() (string, error) {
	t.Helper()
	dir := Dir(t)
	return func() (string, error) { return dir, nil }
}

// Spec puts a kernelspec into a home.
func Spec(t testing.TB, home, name, text string) {
	t.Helper()
	dir := filepath.Join(home, ".local/share/jupyter/kernels", name)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel.json"), []byte(text), 0o644))
}

// Write takes what the process writes.
func (p *Process) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output.Write(data)
	return len(data), nil
}

func (p *Process) Pid() int                        { return p.cmd.Process.Pid }
func (p *Process) Signal(number unix.Signal) error { return unix.Kill(-p.cmd.Process.Pid, number) }
func (p *Process) Done() <-chan struct{}           { return p.done }
func (p *Process) Ended() string                   { return p.cmd.ProcessState.String() }

func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}
