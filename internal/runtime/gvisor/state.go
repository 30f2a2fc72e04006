package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/runtime"
)

// runFile is run.json: what must be known of a sandbox by a process that did not start it.
type runFile struct {
	Home         string `json:"home"` // as the kernel names it, links resolved
	AgentNetwork string `json:"agent_network"`
	AgentAddress string `json:"agent_address"`
	// Runsc began it. Carrel did not always write it down.
	Runsc program `json:"runsc,omitzero"`
}

// sandboxState is what the files and processes of a run say.
type sandboxState struct {
	exists  bool // the run directory is there
	started bool // the sandbox began whole
	alive   bool // its process lives
	frozen  bool
	pid     int // of the sandbox's process; 0: not known
	gofer   int
}

func (s sandboxState) listed() runtime.SandboxState {
	switch {
	case !s.started || !s.alive:
		return runtime.StateExited
	case s.frozen:
		return runtime.StateFrozen
	}
	return runtime.StateRunning
}

// state looks at one run.
func (r *Runtime) state(run string) (sandboxState, error) {
	var st sandboxState
	if _, err := os.Lstat(r.runDir(run)); errors.Is(err, fs.ErrNotExist) {
		return st, nil
	} else if err != nil {
		return st, err
	}
	st.exists = true
	if _, err := os.Lstat(r.path(run, fileStarted)); err == nil {
		st.started = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return st, err
	}
	file, err := r.readStateFile(run)
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	st.pid, st.gofer = file.Sandbox.Pid, file.GoferPid
	st.frozen = file.Status == "paused"
	st.alive = st.pid > 1 && r.isOurs(st.pid, run)
	return st, nil
}

// stateFile of runsc, as far as it is used.
type runscState struct {
	Status   string `json:"status"` // creating, created, running, paused, stopped
	GoferPid int    `json:"goferPid"`
	Sandbox  struct {
		Pid int `json:"pid"`
	} `json:"sandbox"`
}

// readStateFile reads what runsc keeps on run. runsc overwrites the file in place, so a reader may see a part
// of it; asking runsc itself would take a process of 20 ms, and wait for as long as another command runs.
func (r *Runtime) readStateFile(run string) (runscState, error) {
	var state runscState
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := poll(ctx, 2*time.Second, func() (bool, error) {
		data, err := os.ReadFile(r.stateFile(run, "state"))
		if err != nil {
			return true, err
		}
		state = runscState{}
		return json.Unmarshal(data, &state) == nil, nil
	})
	if err != nil {
		return state, fmt.Errorf("reading the state file of runsc: %w", err)
	}
	return state, nil
}

// need returns the state of a sandbox that must exist.
func (r *Runtime) need(run string) (sandboxState, error) {
	if err := checkRun(run); err != nil {
		return sandboxState{}, err
	}
	st, err := r.state(run)
	if err != nil {
		return st, err
	}
	if !st.exists {
		return st, runtime.ErrNotFound
	}
	return st, nil
}

// needLive returns the state of a sandbox that must be running or frozen.
func (r *Runtime) needLive(run string) (sandboxState, error) {
	st, err := r.need(run)
	if err != nil {
		return st, err
	}
	if !st.started {
		return st, fmt.Errorf("it never began whole: %w", runtime.ErrState)
	}
	if !st.alive {
		return st, runtime.ErrDied
	}
	return st, nil
}

// List implements runtime.Runtime. It starts no process, and takes some 0.1 ms for each sandbox.
func (r *Runtime) List(ctx context.Context) ([]runtime.Sandbox, error) {
	entries, err := os.ReadDir(filepath.Join(r.root, "runs"))
	if err != nil {
		return nil, fmt.Errorf("listing sandboxes: %w", err)
	}
	var out []runtime.Sandbox
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if carrel.IDKind(e.Name()) == 0 {
			continue
		}
		st, err := r.state(e.Name())
		if err != nil {
			// What cannot be read is half made, and one such sandbox must not hide the others.
			r.log.Warn("a sandbox's state cannot be read", "run", e.Name(), "error", err)
			st = sandboxState{exists: true}
		}
		if st.exists { // else it was destroyed meanwhile
			out = append(out, runtime.Sandbox{Run: e.Name(), State: st.listed()})
		}
	}
	slices.SortFunc(out, func(a, b runtime.Sandbox) int {
		if a.Run < b.Run {
			return -1
		}
		return 1
	})
	return out, nil
}

// Dial implements runtime.Runtime.
func (r *Runtime) Dial(ctx context.Context, run string) (net.Conn, error) {
	if _, err := r.needLive(run); err != nil {
		return nil, fmt.Errorf("dialling the agent: %w", err)
	}
	file, err := r.readRunFile(run)
	if err != nil {
		return nil, fmt.Errorf("dialling the agent: %w", err)
	}
	if file.AgentNetwork == "" {
		return nil, fmt.Errorf("dialling the agent: the sandbox has no network: %w", runtime.ErrState)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, file.AgentNetwork, file.AgentAddress)
	if err != nil {
		return nil, fmt.Errorf("dialling the agent: %w", err)
	}
	return conn, nil
}

func (r *Runtime) readRunFile(run string) (runFile, error) {
	var file runFile
	data, err := os.ReadFile(r.path(run, fileRun))
	if err != nil {
		return file, err
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return file, fmt.Errorf("reading %s: %w", fileRun, err)
	}
	return file, nil
}

// Wait implements runtime.Runtime. It holds no thread while it waits.
func (r *Runtime) Wait(ctx context.Context, run string) (runtime.Exit, error) {
	st, err := r.need(run)
	if err != nil {
		return runtime.Exit{}, fmt.Errorf("waiting for the sandbox's end: %w", err)
	}
	if st.pid == 0 {
		return runtime.Exit{Reason: "unknown", Message: "the sandbox never began whole", Code: -1, At: time.Now()}, nil
	}
	status := exitStatus{code: -1}
	if st.alive {
		status, err = waitPid(ctx, st.pid, func() bool { return r.isOurs(st.pid, run) })
		if err != nil {
			return runtime.Exit{}, fmt.Errorf("waiting for the sandbox's end: %w", err)
		}
	}
	return r.exit(run, status), nil
}

// exit says why a sandbox ended.
func (r *Runtime) exit(run string, status exitStatus) runtime.Exit {
	e := runtime.Exit{Reason: "unknown", Code: -1, At: time.Now()}
	panicked := lastLine(firstLines(readTail(r.path(run, logPanic))))
	switch {
	case r.cgroups.oomKills(run) > 0:
		e.Reason = "memory"
		e.Message = "the host ended the sandbox because it used more memory than its limit and its own needs allow"
	case status.known && status.signal != 0:
		e.Reason = "killed"
		e.Message = "the sandbox was ended with the signal " + status.signal.String()
	case panicked != "":
		e.Message = "the sandbox ended with a fault of its own: " + panicked
	case status.known:
		e.Reason, e.Code = "exited", status.code
		e.Message = fmt.Sprintf("process 1 ended with exit code %d", status.code)
	default:
		e.Message = "the sandbox ended while nobody watched"
		if m := r.lastMessage(run); m != "" {
			e.Message += "; its last words were: " + m
		}
	}
	return e
}

// firstLines is what a fault says before its stack traces.
func firstLines(data []byte) []byte {
	for i := range data {
		if data[i] == '\n' {
			return data[:i]
		}
	}
	return data
}

// exitStatus of a process that need not be our child.
type exitStatus struct {
	known  bool
	code   int
	signal unix.Signal
}

// waitPid waits until pid has ended; a zombie has. mine is asked once the process is held by a file
// descriptor, so that a number which was used again is never waited for.
func waitPid(ctx context.Context, pid int, mine func() bool) (exitStatus, error) {
	none := exitStatus{code: -1}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("opening the process: %w", err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	defer file.Close()
	if !mine() {
		return none, nil
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return none, err
	}
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var pollErr error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(fds, 0)
		}
		pollErr = err
		return err != nil || n > 0
	})
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	if err := errors.Join(err, pollErr); err != nil {
		return none, fmt.Errorf("watching the process: %w", err)
	}
	return readStatus(fd), nil
}
