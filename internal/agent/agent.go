package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/agent/jupyter"
)

// Config of an Agent. The zero value of every field but Log is useful.
type Config struct {
	// Version is told in Ready.
	Version string
	// IdentityDir has the identity file; empty: identity.Directory.
	IdentityDir string
	// Listen is the TCP address to listen on, empty: ":1"; it is not used when Listener is given.
	Listen   string
	Listener net.Listener
	// Root is where etc/passwd and the like are, empty: "/". Commands do not see it as their root.
	Root string
	// Home of the box's user, empty: /home/carrel.
	Home string
	// Init takes the duties of PID 1: reap every child, prepare users, names and limits, guard the memory, notice
	// restores. Without it the agent touches nothing but its own processes and can live in any program.
	Init bool
	// Env is the environment of the box, as NAME=VALUE.
	Env []string
	// Grace is how long processes have to end when Run's context ends; 0: 10 seconds.
	Grace time.Duration
	// StdoutBytes and StderrBytes are the most output that is kept of each stream of a process; 0: 1 MiB and 256 KiB.
	StdoutBytes, StderrBytes int
	// OutputBytes is the most output that is kept of all processes; 0: a sixteenth of the box's memory, from 8 to 64 MiB.
	OutputBytes int64
	// KeepAlive is how long a stream of events may be silent; 0: 10 seconds.
	KeepAlive time.Duration
	// Owners is a command that does what WriteOwners does with the arguments it is given. It is run as the users whose sockets
	// those are; nil: where the kernel shows them to no other user, nobody's are found.
	Owners []string
	// Warmer keeps warm kernels; nil: there are none, and preparing one fails.
	Warmer Warmer
	Log    *slog.Logger

	// For tests; nil and 0: the real thing.
	memory       *memorySource
	awayPatience time.Duration
	// checkpoints waits for the next checkpoint or restore and gives its name, an error when there is none to wait for.
	checkpoints func() (string, error)
}

// Agent is PID 1 of a box, or plays it. Run may be called once.
type Agent struct {
	config    Config
	log       *slog.Logger
	now       func() time.Time
	listener  net.Listener
	port      int
	reaper    *reaper
	processes *table
	budget    budget
	gate      gate
	forwards  forwards
	sockets   ownerCache
	jupyter   *jupyter.Server
	wg        sync.WaitGroup // everything that ends with its process or connection

	refreshing sync.Mutex // one refresh at a time
	prepared   preparation
	notebooks  *notebooks

	mu        sync.Mutex // guards what follows
	identity  identity.Identity
	base      map[string]string // environment of the box
	restores  int64
	stopping  bool
	conns     map[*boxConn]struct{}
	waiting   map[bool]int // connections without a preface yet, by whether they come from the box itself
	abandoned []*os.File
	// processorMillis is the most processor time that was told.
	processorMillis int64
	// lastForeground is when a command in the foreground was last seen; zero: never.
	lastForeground time.Time
}

// New reads the identity and opens the listener. The caller calls Run, which closes it.
func New(config Config) (*Agent, error) {
	setDefault(&config.IdentityDir, identity.Directory)
	setDefault(&config.Listen, ":1")
	setDefault(&config.Root, "/")
	setDefault(&config.Home, boxHome)
	setDefault(&config.Grace, 10*time.Second)
	setDefault(&config.StdoutBytes, 1<<20)
	setDefault(&config.StderrBytes, 256<<10)
	setDefault(&config.KeepAlive, 10*time.Second)
	setDefault(&config.awayPatience, awayPatience)
	if config.Log == nil {
		return nil, errors.New("agent: no log was given")
	}
	id, err := identity.Read(config.IdentityDir)
	if err != nil {
		return nil, err
	}
	if config.OutputBytes == 0 {
		config.OutputBytes = 64 << 20
		if id.MemoryBytes > 0 {
			config.OutputBytes = max(8<<20, min(64<<20, id.MemoryBytes/16))
		}
	}
	listener := config.Listener
	if listener == nil {
		if listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", config.Listen); err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	a := &Agent{
		config: config, log: config.Log, now: time.Now, listener: listener, reaper: newReaper(config.Init), processes: newTable(),
		identity: id, base: environment(config.Env), conns: map[*boxConn]struct{}{}, waiting: map[bool]int{},
	}
	a.prepared.done = make(chan struct{})
	a.sockets.looking = make(chan struct{}, 1)
	a.budget.left = config.OutputBytes
	if address, ok := listener.Addr().(*net.TCPAddr); ok {
		a.port = address.Port
	}
	if a.notebooks, err = a.newNotebooks(); err != nil {
		return nil, err
	}
	if a.jupyter, err = a.newJupyter(); err != nil {
		return nil, err
	}
	return a, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Addr is where the agent listens.
func (a *Agent) Addr() net.Addr { return a.listener.Addr() }

// Run serves until ctx ends; then it ends every process, with TERM first, and gives everything back. As PID 1 its
// return is the end of the box.
func (a *Agent) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var parts sync.WaitGroup
	reaping, stopReaping := context.WithCancel(work)
	defer stopReaping()
	parts.Go(func() { _ = a.reaper.run(reaping) })
	if a.config.Init {
		if err := a.setUp(); err != nil {
			a.log.Error("the box could not be prepared completely", "error", err)
		}
		parts.Go(func() { a.guardMemory(work) })
	}
	if a.config.Init || a.config.checkpoints != nil {
		// Not waited for: nothing ends a read of the checkpoint file but a checkpoint.
		go a.watchRestores(work)
	}
	id, _ := a.current()
	a.log.Info("the agent is ready", "version", a.config.Version, "run", id.RunID, "box", id.BoxID, "address", a.listener.Addr().String())
	parts.Go(func() { a.serve(work) })
	parts.Go(a.notebooks.service.Recover)
	a.startUp()
	parts.Go(func() { a.prepare(work) })

	<-ctx.Done()
	grace, cancel := context.WithTimeout(work, a.config.Grace)
	a.shutDown(grace)
	a.notebooks.close(grace)
	cancel()
	a.mu.Lock()
	a.stopping = true
	abandoned := a.abandoned
	a.abandoned = nil
	a.mu.Unlock()
	for _, file := range abandoned {
		file.Close()
	}
	stop()
	a.gate.open() // ends its timer
	parts.Wait()
	a.wg.Wait()
	return nil
}

// startUp starts the startup commands as processes like any other; how they end harms nobody.
func (a *Agent) startUp() {
	id, _ := a.current()
	for i, line := range id.Startup {
		p, _, err := a.startProcess(context.Background(), &carrelv1.StartProcessRequest{Args: []string{"/bin/sh", "-c", line}, Kind: "startup"}, "", false)
		if err != nil {
			a.log.Warn("a startup command could not be started", "number", i+1, "run", id.RunID, "error", err)
			continue
		}
		a.wg.Go(func() {
			v, err := p.view([streams]int64{-1, -1})
			if err != nil {
				return
			}
			defer v.leave()
			for done := false; !done; {
				_, done, _ = v.event(context.Background(), nil)
			}
			if code := p.show().GetExitCode(); code != 0 {
				a.log.Warn("a startup command failed", "number", i+1, "process", p.id, "exit_code", code, "run", id.RunID)
			}
		})
	}
}

// current gives the identity and the box's environment.
func (a *Agent) current() (identity.Identity, map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.identity, a.base
}

// refresh takes the identity that is there now. When it is that of another run, the box was restored: what
// belonged to the run before ends here. When it is another one of the same run, a prepared box became a user's.
func (a *Agent) refresh() error {
	a.refreshing.Lock()
	defer a.refreshing.Unlock()
	id, err := identity.Read(a.config.IdentityDir)
	if err != nil {
		return err
	}
	before, _ := a.current()
	if id.RunID == before.RunID && id.Key == before.Key {
		return a.renamed(id, before)
	}
	base := a.base
	if a.config.Init {
		if data, err := os.ReadFile(filepath.Join(procDir, "gvisor/spec_environ")); err == nil {
			base = environment(strings.Split(string(data), "\x00"))
		}
	}
	a.mu.Lock()
	a.identity, a.base = id, base
	a.restores++
	var stale []*boxConn
	for conn := range a.conns {
		if conn.run != "" && conn.run != id.RunID {
			stale = append(stale, conn)
		}
	}
	a.mu.Unlock()
	for _, conn := range stale {
		conn.Close()
	}
	a.notebooks.service.Restored()
	a.gate.open()
	for _, p := range a.processes.list() {
		p.resumed(a.now())
	}
	if a.config.Init {
		if err := a.applyIdentity(id, before); err != nil {
			a.log.Error("the identity could not be applied completely", "error", err, "run", id.RunID)
		}
	}
	a.log.Info("took the identity of another run", "run", id.RunID, "before", before.RunID, "connections_closed", len(stale))
	if id.BoxID != before.BoxID {
		if err := a.adopt(); err != nil {
			a.log.Error("a warm kernel could not be made this box's", "error", err, "run", id.RunID)
		}
	}
	return nil
}

// renamed takes another name and environment for the same run.
func (a *Agent) renamed(id, before identity.Identity) error {
	if id.BoxName == before.BoxName && maps.Equal(id.Env, before.Env) {
		return nil
	}
	a.mu.Lock()
	a.identity = id
	a.mu.Unlock()
	if a.config.Init {
		if err := errors.Join(setHostname(id.BoxName), a.applyIdentity(id, before)); err != nil {
			a.log.Error("the identity could not be applied completely", "error", err, "run", id.RunID)
		}
	}
	if err := a.adopt(); err != nil {
		return fmt.Errorf("make a warm kernel this box's: %w", err)
	}
	a.log.Info("took another name", "run", id.RunID, "name", id.BoxName, "before", before.BoxName)
	return nil
}

// watchRestores waits for checkpoints. After each one the identity is looked at: in the restored copy it is another.
// Go's random numbers come from the kernel, which is not a part of a copy, so that there is nothing to reseed here.
func (a *Agent) watchRestores(ctx context.Context) {
	wait := a.config.checkpoints
	if wait == nil {
		wait = func() (string, error) {
			data, err := os.ReadFile(filepath.Join(procDir, "gvisor/checkpoint"))
			return strings.TrimSpace(string(data)), err
		}
	}
	for ctx.Err() == nil {
		what, err := wait()
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, context.Canceled) {
				a.log.Error("checkpoints cannot be noticed; the identity is still looked at whenever it matters", "error", err)
			}
			return
		}
		if what != "restore" {
			continue
		}
		if err := a.refresh(); err != nil {
			a.log.Error("the identity could not be taken after a restore", "error", err)
		}
	}
}

// quiesce keeps new processes out for the lease and writes everything to the disks.
func (a *Agent) quiesce(ctx context.Context, lease time.Duration) error {
	if err := a.gate.close(ctx, lease); err != nil {
		return fmt.Errorf("wait for starts of processes: %w", err)
	}
	if err := a.notebooks.service.Flush(ctx); err != nil {
		a.log.Warn("not everything of notebooks is on the disk before a snapshot; what is in memory alone is in a snapshot with memory", "error", err)
	}
	return a.sync(ctx)
}

func (a *Agent) sync(ctx context.Context) error {
	if !a.config.Init {
		return nil
	}
	synced := make(chan struct{})
	a.wg.Go(func() {
		unix.Sync()
		close(synced)
	})
	select {
	case <-synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sync file systems: %w", ctx.Err())
	}
}

// shutDown ends every process: TERM, and HUP for those on a terminal (shells there take no notice of TERM); KILL for
// those that are left when ctx ends. No new ones are started for a minute, or until Unquiesce.
func (a *Agent) shutDown(ctx context.Context) {
	_ = a.gate.close(ctx, time.Minute)
	a.signalAll(unix.SIGTERM)
	for _, p := range a.processes.list() {
		if p.command.pty != nil {
			_ = a.reaper.signal(p.pid, unix.SIGHUP)
		}
	}
	a.signalAll(unix.SIGCONT)
	if a.alone(ctx) == nil {
		return
	}
	a.signalAll(unix.SIGKILL)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := a.alone(last); err != nil {
		a.log.Error("processes are left after KILL", "error", err)
	}
}

// signalAll signals every process of the box as PID 1, else every process group that was started here.
func (a *Agent) signalAll(number unix.Signal) {
	if a.config.Init {
		if err := unix.Kill(-1, number); err != nil && !errors.Is(err, unix.ESRCH) {
			a.log.Error("the processes of the box could not be signalled", "signal", number.String(), "error", err)
		}
		return
	}
	for _, p := range a.processes.list() {
		_ = a.reaper.signal(p.pid, number)
	}
}

// alone waits until no process is left.
func (a *Agent) alone(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !a.reaper.alone() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// environment takes NAME=VALUE apart. What belongs to PID 1 alone is left out.
func environment(entries []string) map[string]string {
	env := map[string]string{}
	for _, entry := range entries {
		if name, value, ok := strings.Cut(entry, "="); ok && name != "" {
			env[name] = value
		}
	}
	maps.DeleteFunc(env, func(name, _ string) bool {
		return strings.HasPrefix(name, "CARREL_AGENT_") || name == "GODEBUG" || name == "GOTRACEBACK"
	})
	return env
}
