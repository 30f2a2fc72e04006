package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/failpoint"
)

// Child is one process that a Supervisor keeps running.
type Child struct {
	Name string
	// Args are the program and its arguments.
	Args []string
	Env  []string
	// UID and GID to run as; 0: as the supervisor.
	UID, GID int
	// Output gets what the process writes to standard output and error. It is a file, so that nobody has
	// to copy and what a child leaves behind holds up nobody.
	Output *os.File
}

// Supervisor starts children, starts them again when they end, and ends them with itself. It is the
// subreaper of everything below it, so that sandboxes whose starter died do not stay as zombies.
// Use one per process: it reaps every orphan there is.
type Supervisor struct {
	log    *slog.Logger
	forks  chan func()
	forked sync.WaitGroup

	mu    sync.Mutex // guards known
	known map[int]bool
}

const (
	restartMin = 200 * time.Millisecond
	restartMax = 2 * time.Second
	// steady is how long a child must have lived for its next restart to be quick again.
	steady = 30 * time.Second
	// endTime is how long a child has after SIGTERM.
	endTime = 15 * time.Second
)

// NewSupervisor makes the process a subreaper. Children get SIGTERM when the supervisor is killed.
func NewSupervisor(log *slog.Logger) (*Supervisor, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	return &Supervisor{log: log, forks: make(chan func()), known: map[int]bool{}}, nil
}

// Run serves forks and reaps orphans until ctx ends. It must run for as long as any Keep does: a child's
// parent-death signal comes when the thread that forked it ends, so one thread makes all of them.
func (s *Supervisor) Run(ctx context.Context) error {
	done := make(chan struct{})
	s.forked.Add(1)
	go func() {
		defer s.forked.Done()
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for {
			select {
			case fork := <-s.forks:
				fork()
			case <-done:
				return
			}
		}
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	defer signal.Stop(signals)
	// A known child's end can hide an orphan's until it was waited for, so look again now and then.
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case <-signals:
		case <-again.C:
		case <-ctx.Done():
			close(done)
			s.forked.Wait()
			return nil
		}
		s.reap()
	}
}

// reap waits for orphans and leaves the known children to os/exec.
func (s *Supervisor) reap() {
	for {
		// unix.Siginfo names only the first fields; on 64-bit Linux the pid follows at offset 16.
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
			return
		}
		pid := int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
		s.mu.Lock()
		known := s.known[pid]
		s.mu.Unlock()
		if pid == 0 || known {
			return
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err != nil {
			return
		}
	}
}

// Keep runs the child until ctx ends, again and again with growing pauses, then ends it with SIGTERM and, when
// it does not listen, SIGKILL. It returns when the process is gone.
func (s *Supervisor) Keep(ctx context.Context, child Child) {
	pause := restartMin
	for ctx.Err() == nil {
		began := time.Now()
		said := endOf(child.Output)
		err := s.once(ctx, child)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady || failpoint.Enabled() { // then a test asked for its end
			pause = restartMin
		}
		s.log.Warn("a role ended and is started again", "child", child.Name, "error", err, "after", pause, "last_words", lastWords(child.Output, said))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, restartMax)
	}
}

// endOf is how long the file is that a child writes into; 0 if it writes elsewhere.
func endOf(output io.Writer) int64 {
	if file, ok := output.(*os.File); ok {
		if info, err := file.Stat(); err == nil {
			return info.Size()
		}
	}
	return 0
}

const maxLastWords = 512 // bytes

// lastWords is the last line that a child wrote into its file after an offset, so that whoever looks at the supervisor learns why it ended.
func lastWords(output io.Writer, from int64) string {
	file, ok := output.(*os.File)
	if !ok {
		return ""
	}
	log, err := os.Open(file.Name()) // its own descriptor may be for writing alone
	if err != nil {
		return ""
	}
	defer log.Close()
	end := endOf(output)
	begin := max(from, end-maxLastWords)
	text := make([]byte, max(0, end-begin))
	n, err := log.ReadAt(text, begin)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text[:n])), "\n")
	return strings.ToValidUTF8(lines[len(lines)-1], "?")
}

func (s *Supervisor) once(ctx context.Context, child Child) error {
	command := exec.Command(child.Args[0], child.Args[1:]...)
	command.Env = child.Env
	command.Stdout, command.Stderr = child.Output, child.Output
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if child.UID != 0 {
		command.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(child.UID), Gid: uint32(child.GID)}
	}
	started := make(chan error, 1)
	fork := func() {
		s.mu.Lock() // a child that ends at once must not look like an orphan
		defer s.mu.Unlock()
		err := command.Start()
		if err == nil {
			s.known[command.Process.Pid] = true
		}
		started <- err
	}
	select {
	case s.forks <- fork:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", child.Name, err)
	}
	ended := make(chan struct{})
	var waited error // set before ended is closed
	go func() {
		waited = command.Wait()
		close(ended)
	}()
	forget := func(err error) error {
		s.mu.Lock()
		delete(s.known, command.Process.Pid)
		s.mu.Unlock()
		return err
	}
	select {
	case <-ended:
		if waited == nil {
			waited = errors.New("it ended by itself")
		}
		return forget(waited)
	case <-ctx.Done():
	}
	_ = command.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(endTime):
		_ = command.Process.Kill()
		<-ended
	}
	return forget(nil)
}
