package carreltest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"carrel.dev/carrel/internal/agent"
	"carrel.dev/carrel/internal/agent/identity"
)

// agents are the agents of all live sandboxes. Each begins with the first connection to it and ends with its
// sandbox. It is safe for concurrent use.
type agents struct {
	homes string // a directory for each box, what its processes see as their home
	log   *slog.Logger

	mu   sync.Mutex // guards runs
	runs map[string]*residence
}

// residence is one agent.
type residence struct {
	node   *Node
	door   *door
	cancel context.CancelFunc
	done   chan struct{}
}

func newAgents(homes string, log *slog.Logger) *agents {
	return &agents{homes: homes, log: log, runs: map[string]*residence{}}
}

// agentOf reads who the agent of a run is.
func (n *Node) agentOf(run string) (identity.Identity, error) {
	return identity.Read(n.identityDir(run))
}

func (n *Node) identityDir(run string) string { return filepath.Join(n.runDir(), "identities", run) }

// serveAgent is the fake.AgentHandler of the node.
func (n *Node) serveAgent(run string, conn net.Conn) {
	r, err := n.s.agents.of(n, run)
	if err != nil {
		n.s.log.Warn("a sandbox has no agent", "run", run, "error", err)
		return
	}
	shared := &doorConn{Conn: conn, closed: make(chan struct{})}
	if !r.door.pass(shared) {
		return
	}
	select {
	case <-shared.closed:
	case <-r.done: // its server may end without a look at what still waited at the door
	}
}

// of gives the agent of a run, and starts it if need be.
func (a *agents) of(n *Node, run string) (*residence, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.runs[run]; r != nil {
		return r, nil
	}
	id, err := n.agentOf(run)
	if err != nil {
		return nil, err
	}
	home := filepath.Join(a.homes, id.BoxID)
	for _, dir := range []string{a.homes, home} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(home, 0o777); err != nil {
		return nil, err
	}
	r := &residence{node: n, door: newDoor(), done: make(chan struct{})}
	one, err := agent.New(agent.Config{
		IdentityDir: n.identityDir(run), Listener: r.door, Root: home, Home: home, Env: []string{"PATH=" + os.Getenv("PATH")},
		Grace: time.Nanosecond, Log: a.log.With("agent", run),
	})
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(r.done)
		if err := one.Run(ctx); err != nil {
			a.log.Error("an agent ended", "run", run, "error", err)
		}
	}()
	a.runs[run] = r
	return r, nil
}

// end ends the agent of a run with its processes.
func (a *agents) end(run string) {
	a.mu.Lock()
	r := a.runs[run]
	delete(a.runs, run)
	a.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
}

// close ends every agent of a node.
func (a *agents) close(n *Node) {
	a.mu.Lock()
	var all []string
	for run, r := range a.runs {
		if r.node == n {
			all = append(all, run)
		}
	}
	a.mu.Unlock()
	for _, run := range all {
		a.end(run)
	}
}

// door is the listener of an agent: its connections come from the runtime.
type door struct {
	conns chan net.Conn
	once  sync.Once
	shut  chan struct{}
}

func newDoor() *door { return &door{conns: make(chan net.Conn), shut: make(chan struct{})} }

// pass hands a connection to the agent; false: it has ended.
func (d *door) pass(conn net.Conn) bool {
	select {
	case d.conns <- conn:
		return true
	case <-d.shut:
		return false
	}
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case conn := <-d.conns:
		return conn, nil
	case <-d.shut:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error {
	d.once.Do(func() { close(d.shut) })
	return nil
}

// Addr is no address that can be dialled.
func (d *door) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// doorConn says when it is closed.
type doorConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *doorConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
