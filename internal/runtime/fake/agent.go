package fake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"carrel.dev/carrel/internal/runtime"
)

// gate is the way to the agent of one live sandbox: while it is frozen, nothing passes.
type gate struct {
	listener net.Listener // nil: the agent is reached by Dial alone

	mu    sync.Mutex
	open  chan struct{} // closed while things may pass
	conns map[net.Conn]struct{}
	dead  bool
}

func (g *gate) set(frozen bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if frozen {
			g.open = make(chan struct{})
		}
	default:
		if !frozen {
			close(g.open)
		}
	}
}

// pass waits until the sandbox is not frozen.
func (g *gate) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dead = true
	select {
	case <-g.open:
	default:
		close(g.open)
	}
	if g.listener != nil {
		_ = g.listener.Close()
	}
	for c := range g.conns {
		_ = c.Close()
	}
}

// gatedConn is the agent's end of a connection.
type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.gate.pass()
	return n, err
}

func (c *gatedConn) Write(p []byte) (int, error) {
	c.gate.pass()
	return c.Conn.Write(p)
}

// open makes the gate of a sandbox, and listens where its specification says that the agent answers; r.mu is held,
// or r is not shared yet.
func (r *Runtime) open(run string, frozen bool) error {
	rec, err := r.load(run)
	if err != nil {
		return err
	}
	g := &gate{open: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	if !frozen {
		close(g.open)
	}
	if network := rec.Spec.Network.AgentNetwork; network != "" {
		if network == "unix" {
			if err := os.Remove(rec.Spec.Network.AgentAddress); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		var config net.ListenConfig
		if g.listener, err = config.Listen(context.Background(), network, rec.Spec.Network.AgentAddress); err != nil {
			return fmt.Errorf("listening as the agent: %w", err)
		}
		r.handlers.Add(1)
		go func() {
			defer r.handlers.Done()
			for {
				conn, err := g.listener.Accept()
				if err != nil {
					return
				}
				r.serve(run, g, conn)
			}
		}()
	}
	r.gates[run] = g
	return nil
}

// shut breaks the connections of a sandbox; r.mu is held. It need not have any.
func (r *Runtime) shut(run string) {
	if g := r.gates[run]; g != nil {
		g.close()
		delete(r.gates, run)
	}
}

// serve hands conn to the agent.
func (r *Runtime) serve(run string, g *gate, conn net.Conn) {
	g.mu.Lock()
	if g.dead || r.agent == nil {
		g.mu.Unlock()
		_ = conn.Close()
		return
	}
	g.conns[conn] = struct{}{}
	r.handlers.Add(1)
	g.mu.Unlock()
	go func() {
		defer r.handlers.Done()
		defer func() {
			_ = conn.Close()
			g.mu.Lock()
			delete(g.conns, conn)
			g.mu.Unlock()
		}()
		r.agent(run, &gatedConn{Conn: conn, gate: g})
	}()
}

// Dial implements runtime.Runtime.
func (r *Runtime) Dial(ctx context.Context, run string) (net.Conn, error) {
	if err := r.hit("dial", run); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	r.mu.Lock()
	_, err := r.live(run)
	g := r.gates[run]
	r.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	if g == nil {
		return nil, fmt.Errorf("dial: %w", runtime.ErrState)
	}
	client, agent := net.Pipe()
	r.serve(run, g, agent)
	return client, ctx.Err()
}
