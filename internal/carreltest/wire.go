package carreltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// dialTime bounds how long a wire tries one of its targets.
const dialTime = 2 * time.Second

// replicas are the addresses behind a wire, of those that are up. It is safe for concurrent use.
type replicas struct {
	network string // tcp or unix

	mu        sync.Mutex // guards what follows
	addresses []string
	next      int
}

func newReplicas(network string, addresses ...string) *replicas {
	return &replicas{network: network, addresses: addresses}
}

func (r *replicas) add(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addresses = append(r.addresses, address)
}

func (r *replicas) remove(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addresses = slices.DeleteFunc(slices.Clone(r.addresses), func(a string) bool { return a == address })
}

// dial connects to the next replica that answers.
func (r *replicas) dial(ctx context.Context) (net.Conn, error) {
	r.mu.Lock()
	list, first := r.addresses, r.next
	r.next++
	r.mu.Unlock()
	err := errors.New("nobody is behind the wire")
	for i := range list {
		var conn net.Conn
		if conn, err = (&net.Dialer{Timeout: dialTime}).DialContext(ctx, r.network, list[(first+i)%len(list)]); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// Wire passes connections on. It is safe for concurrent use.
type Wire struct {
	listener net.Listener
	to       *replicas
	ctx      context.Context
	cancel   context.CancelFunc
	work     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	down  bool
	conns map[net.Conn]struct{}
}

// newWire listens on address, for unix the path of a socket to be made.
func newWire(network, address string, to *replicas) (*Wire, error) {
	if network == "unix" {
		if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
			return nil, fmt.Errorf("make wire: %w", err)
		}
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("make wire: %w", err)
	}
	w := &Wire{listener: listener, to: to, conns: map[net.Conn]struct{}{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.work.Go(w.accept)
	return w, nil
}

// Addr is where the wire begins.
func (w *Wire) Addr() string { return w.listener.Addr().String() }

// Cut breaks every connection; new ones can be made.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn := range w.conns {
		_ = conn.Close()
	}
}

// Down breaks every connection and refuses new ones until Up.
func (w *Wire) Down() {
	w.mu.Lock()
	w.down = true
	w.mu.Unlock()
	w.Cut()
}

// Up ends Down.
func (w *Wire) Up() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}

func (w *Wire) close() {
	w.cancel()
	w.Down()
	_ = w.listener.Close()
	w.work.Wait()
}

func (w *Wire) accept() {
	for {
		conn, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.work.Go(func() { w.pass(conn) })
	}
}

// hold notes an open connection; false: the wire is down and the connection closed.
func (w *Wire) hold(conn net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		_ = conn.Close()
		return false
	}
	w.conns[conn] = struct{}{}
	return true
}

func (w *Wire) release(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, conn)
	_ = conn.Close()
}

func (w *Wire) pass(near net.Conn) {
	if !w.hold(near) {
		return
	}
	defer w.release(near)
	far, err := w.to.dial(w.ctx)
	if err != nil || !w.hold(far) {
		return
	}
	defer w.release(far)
	var both sync.WaitGroup
	both.Go(func() { carry(near, far) })
	both.Go(func() { carry(far, near) })
	both.Wait()
}

// carry copies one direction. Its end is passed on; a broken one breaks the other direction too.
func carry(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil && half.CloseWrite() == nil {
		return
	}
	_ = to.Close()
	_ = from.Close()
}
