package kernel

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

// Phase is where a kernel is in its life.
type Phase string

const (
	Starting     Phase = "starting"
	Idle         Phase = "idle"
	Busy         Phase = "busy"
	Unresponsive Phase = "unresponsive"
	Restarting   Phase = "restarting"
	Dead         Phase = "dead"
	// Gone is a kernel that was shut down.
	Gone Phase = "gone"
)

// Info is how a kernel is at a moment.
type Info struct {
	ID, Spec, DisplayName, Language string
	Path                            string
	Phase                           Phase
	// Message says why a kernel is dead or unresponsive, for people.
	Message  string
	Started  time.Time // of its process
	Activity time.Time // when it last said anything
	Since    time.Time // of the phase
	Restarts int
	// Run counts the processes that the kernel has had, from 1 on; 0: none yet.
	Run      int
	Pid      int
	Prepared bool
	Shared   bool

	hidden bool
}

// Kernel is one kernel. It is safe for concurrent use.
type Kernel struct {
	m       *Manager
	id      string
	session string

	life sync.Mutex // held while a process is started or ended

	mu       sync.Mutex // guards what follows
	created  time.Time
	shared   bool
	spec     Spec
	options  Options
	phase    Phase // never Unresponsive: see silent
	silent   bool
	message  string
	started  time.Time
	activity time.Time
	since    time.Time // of phase
	restarts int
	prepared bool
	run      *run // the newest; nil: none yet
	runs     int  // that there were
	ready    chan struct{}
	clients  map[*Client]struct{}
	routes   routes
}

func newKernel(m *Manager, spec Spec, options Options) *Kernel {
	now := time.Now()
	return &Kernel{
		m: m, id: NewID(), created: now, session: NewID(), spec: spec, options: options, phase: Starting, shared: options.Shared,
		started: now, activity: now, since: now, ready: make(chan struct{}), clients: map[*Client]struct{}{},
	}
}

// ID of the kernel, a UUID.
func (k *Kernel) ID() string { return k.id }

func (k *Kernel) begun() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.created
}

// Path of the notebook that the kernel belongs to; empty: none.
func (k *Kernel) Path() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.options.Path
}

// SetPath makes the kernel that of another notebook, or of none.
func (k *Kernel) SetPath(path string) {
	k.mu.Lock()
	k.options.Path = path
	k.mu.Unlock()
	k.m.tell(k)
}

// Spec gives the kernel's spec as it was when it was started.
func (k *Kernel) Spec() Spec {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.spec
}

// Info tells how the kernel is.
func (k *Kernel) Info() Info {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.info()
}

// info is Info. k.mu is held.
func (k *Kernel) info() Info {
	info := Info{
		ID: k.id, Spec: k.spec.Name, DisplayName: k.spec.DisplayName, Language: k.spec.Language, Path: k.options.Path, Phase: k.phase, Message: k.message,
		Started: k.started, Activity: k.activity, Since: k.since, Restarts: k.restarts, Run: k.runs, Prepared: k.prepared, Shared: k.shared, hidden: k.options.hidden,
	}
	if k.silent && (k.phase == Idle || k.phase == Busy) {
		info.Phase, info.Message = Unresponsive, "the kernel's process runs and does not answer; interrupt it, and restart it if that does not help"
	}
	if k.run != nil && k.phase != Dead && k.phase != Gone {
		info.Pid = k.run.process.Pid()
	}
	return info
}

// Connect makes a client, which is told the kernel's state at once. The caller calls Client.Close.
func (k *Kernel) Connect(config ClientConfig) (*Client, error) {
	c := newClient(k, config)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.phase == Gone {
		return nil, carrel.NotFound("kernel", k.id)
	}
	k.clients[c] = struct{}{}
	c.put(Received{Channel: State, Info: k.info()})
	return c, nil
}

func (k *Kernel) leave(c *Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.clients, c)
	k.routes.drop(c)
}

// Ready waits until the kernel can be used. A kernel that died meanwhile is an error.
func (k *Kernel) Ready(ctx context.Context) error {
	for {
		k.mu.Lock()
		ready, info := k.ready, k.info()
		k.mu.Unlock()
		switch info.Phase {
		case Idle, Busy, Unresponsive:
			return nil
		case Dead:
			return carrel.Errorf(carrel.CodePrecondition, "kernel_dead", "the kernel is dead: %s", info.Message)
		case Gone:
			return carrel.NotFound("kernel", k.id)
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change changes the kernel's state and tells everyone.
func (k *Kernel) change(f func()) {
	k.mu.Lock()
	before := k.info()
	f()
	after := k.info()
	if after.Phase != before.Phase {
		k.since = time.Now()
		after.Since = k.since
	}
	if after.Phase != before.Phase && after.Phase != Starting && after.Phase != Restarting {
		close(k.ready)
		k.ready = make(chan struct{})
	}
	if after.Phase == before.Phase && after.Message == before.Message && after.Pid == before.Pid {
		k.mu.Unlock()
		return
	}
	for c := range k.clients {
		c.put(Received{Channel: State, Info: after})
	}
	k.mu.Unlock()
	k.m.tell(k)
}

// first starts the kernel's first process.
func (k *Kernel) first(ctx context.Context) error {
	k.life.Lock()
	defer k.life.Unlock()
	return k.begin(ctx)
}

// Interrupt interrupts what the kernel executes, as its spec says.
func (k *Kernel) Interrupt(ctx context.Context) error {
	k.mu.Lock()
	phase, run, mode := k.phase, k.run, k.spec.InterruptMode
	k.mu.Unlock()
	if phase != Idle && phase != Busy {
		return carrel.Errorf(carrel.CodePrecondition, "kernel_not_running", "the kernel is %s; there is nothing to interrupt", phase)
	}
	if mode != "message" {
		if err := run.process.Signal(unix.SIGINT); err != nil {
			return fmt.Errorf("interrupt a kernel: %w", err)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := k.ask(ctx, Control, "interrupt_request", map[string]any{})
	return err
}

// Ask makes a request that executes nothing, such as complete_request, and gives the reply. A kernel that is executing replies only when it is
// done; the caller bounds ctx. While the kernel is not connected it is an error with the reason "kernel_not_ready".
func (k *Kernel) Ask(ctx context.Context, kind string, content any) (*Message, error) {
	return k.ask(ctx, Shell, kind, content)
}

// ask makes a request on a channel and waits for its reply.
func (k *Kernel) ask(ctx context.Context, channel Channel, kind string, content any) (*Message, error) {
	c, err := k.Connect(ClientConfig{Session: k.session})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	message, err := NewMessage(kind, k.session, content)
	if err != nil {
		return nil, err
	}
	if err := c.Send(channel, message); err != nil {
		return nil, err
	}
	for {
		got, err := c.Receive(ctx)
		if err != nil {
			return nil, fmt.Errorf("wait for the reply to %s: %w", kind, err)
		}
		if got.Channel == State && (got.Info.Phase == Dead || got.Info.Phase == Restarting) {
			return nil, carrel.Errorf(carrel.CodePrecondition, "kernel_ended", "the kernel's process ended before it answered")
		}
		if got.Channel == channel && got.Message.ParentHead().ID == message.Head().ID {
			return got.Message, nil
		}
	}
}

// Restart ends the kernel's process, if it runs, and starts another.
func (k *Kernel) Restart(ctx context.Context) error {
	k.life.Lock()
	defer k.life.Unlock()
	return k.again(ctx)
}

// Revive is Restart for a kernel that is dead; it does nothing to others, such as one that somebody else has started again just now.
func (k *Kernel) Revive(ctx context.Context) error {
	k.life.Lock()
	defer k.life.Unlock()
	if k.Info().Phase != Dead {
		return nil
	}
	return k.again(ctx)
}

// again is Restart. k.life is held.
func (k *Kernel) again(ctx context.Context) error {
	k.mu.Lock()
	gone := k.phase == Gone
	k.mu.Unlock()
	if gone {
		return carrel.NotFound("kernel", k.id)
	}
	k.change(func() { k.phase, k.message, k.silent = Restarting, "", false })
	k.end(ctx, true)
	if spec, err := k.m.spec(k.spec.Name); err == nil { // it may have been installed anew
		k.mu.Lock()
		k.spec = spec
		k.mu.Unlock()
	}
	err := k.begin(ctx)
	if err != nil {
		k.change(func() { k.phase, k.message = Dead, "it could not be started again: "+err.Error() })
		return err
	}
	k.mu.Lock()
	k.restarts++
	k.prepared = false
	k.mu.Unlock()
	k.m.tell(k)
	return nil
}

// Shutdown ends the kernel for good. Its clients are cut off.
func (k *Kernel) Shutdown(ctx context.Context) error {
	k.life.Lock()
	defer k.life.Unlock()
	k.mu.Lock()
	gone := k.phase == Gone
	k.mu.Unlock()
	if gone {
		return nil
	}
	k.end(ctx, false)
	k.m.forget(k)
	k.change(func() { k.phase, k.message = Gone, "" })
	k.mu.Lock()
	var clients []*Client
	for c := range k.clients {
		clients = append(clients, c)
	}
	k.mu.Unlock()
	for _, c := range clients {
		c.cut(carrel.Errorf(carrel.CodeNotFound, "kernel_gone", "the kernel was shut down"))
	}
	return nil
}

// end ends the process of the newest run and waits until it is over: it is asked, then told, then killed. k.life is held.
func (k *Kernel) end(ctx context.Context, restart bool) {
	k.mu.Lock()
	r := k.run
	if r != nil {
		r.expected = true
	}
	connected := r != nil && r.connected
	k.mu.Unlock()
	if r == nil {
		return
	}
	if connected {
		message, err := NewMessage("shutdown_request", k.session, map[string]bool{"restart": restart})
		if err == nil {
			_ = k.sendTo(r, Control, message)
		}
		if wait(ctx, r.process.Done(), k.m.config.Grace) {
			<-r.over
			return
		}
	}
	_ = r.process.Signal(unix.SIGTERM)
	if !wait(ctx, r.process.Done(), k.m.config.Grace/3) {
		_ = r.process.Signal(unix.SIGKILL)
	}
	<-r.over
}

// wait reports whether done was closed in time.
func wait(ctx context.Context, done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
