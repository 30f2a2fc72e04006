package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxListeners that one box listens on for others, and maxPending connections of each that nobody has fetched yet; more wait
	// in the kernel.
	maxListeners = 64
	maxPending   = 64
	// pendingTime is how long an accepted connection waits to be fetched.
	pendingTime = 10 * time.Second
	// backlog of a listener, before connections are accepted.
	backlog = 128
	// authDirectory is where the private directories of agent sockets are made.
	authDirectory = "/tmp"
)

// forwards has what the box listens on for others. The zero value is ready; it is safe for concurrent use.
type forwards struct {
	mu        sync.Mutex
	listeners map[string]*forward // by name
	pending   map[string]*pendingConn
}

// forward is one Listen.
type forward struct {
	name      string
	path      string // of a Unix socket
	port      int
	listeners []net.Listener
	slots     chan struct{} // one for each connection that waits to be fetched
	accepted  chan *pendingConn
	remove    func() // takes the socket away; nil: nothing to take away
}

// pendingConn is an accepted connection that waits to be fetched.
type pendingConn struct {
	id     string
	conn   halfCloser
	from   *forward
	expiry *time.Timer
}

// path is where the socket of a listener is.
func (f *forwards) path(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.listeners[name]; l != nil && l.path != "" {
		return l.path, nil
	}
	return "", carrel.Errorf(carrel.CodeInvalid, "listener_not_found", "there is no listener %q with a socket in the box; its stream may have ended", printable(name))
}

func (f *forwards) add(l *forward) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.listeners) >= maxListeners {
		return carrel.Errorf(carrel.CodeExhausted, "too_many_listeners", "the box listens on %d addresses for forwards; no more are possible", maxListeners)
	}
	if f.listeners == nil {
		f.listeners, f.pending = map[string]*forward{}, map[string]*pendingConn{}
	}
	f.listeners[l.name] = l
	return nil
}

// end closes a listener and what it accepted and nobody fetched.
func (f *forwards) end(l *forward) {
	for _, listener := range l.listeners {
		listener.Close()
	}
	f.mu.Lock()
	delete(f.listeners, l.name)
	var left []string
	for id, p := range f.pending {
		if p.from == l {
			left = append(left, id)
		}
	}
	f.mu.Unlock()
	for _, id := range left {
		f.expire(id)
	}
	if l.remove != nil {
		l.remove()
	}
}

// hold keeps an accepted connection until it is fetched or its time is over.
func (f *forwards) hold(l *forward, conn halfCloser) *pendingConn {
	p := &pendingConn{id: "c" + strings.ToLower(rand.Text()), conn: conn, from: l}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending[p.id] = p
	p.expiry = time.AfterFunc(pendingTime, func() { f.expire(p.id) })
	return p
}

func (f *forwards) expire(id string) {
	if conn, err := f.fetch(id); err == nil {
		conn.Close()
	}
}

// fetch gives an accepted connection, once.
func (f *forwards) fetch(id string) (halfCloser, error) {
	f.mu.Lock()
	p := f.pending[id]
	delete(f.pending, id)
	f.mu.Unlock()
	if p == nil {
		return nil, errors.New("no connection of that name waits; it was fetched, given up after 10 seconds, or its listener has ended")
	}
	p.expiry.Stop()
	<-p.from.slots
	return p.conn, nil
}

type forwardService struct{ a *Agent }

// Listen listens as the box's user until its stream ends.
func (s forwardService) Listen(ctx context.Context, request *connect.Request[agentv1.ListenRequest], stream *connect.ServerStream[agentv1.ListenEvent]) error {
	l, err := s.a.listen(ctx, request.Msg)
	if err != nil {
		return err
	}
	var accepting sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer accepting.Wait()
	defer s.a.forwards.end(l)
	defer cancel()
	for _, listener := range l.listeners {
		accepting.Go(func() { s.a.acceptForward(ctx, l, listener) })
	}
	listening := &agentv1.Listening{Name: l.name, Port: uint32(l.port), Path: l.path}
	if err := stream.Send(&agentv1.ListenEvent{Event: &agentv1.ListenEvent_Listening{Listening: listening}}); err != nil {
		return err
	}
	for {
		select {
		case p := <-l.accepted:
			accepted := &agentv1.Accepted{Id: p.id}
			if origin, ok := p.conn.RemoteAddr().(*net.TCPAddr); ok {
				accepted.OriginHost, accepted.OriginPort = origin.AddrPort().Addr().Unmap().String(), uint32(origin.Port)
			}
			if err := stream.Send(&agentv1.ListenEvent{Event: &agentv1.ListenEvent_Accepted{Accepted: accepted}}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// acceptForward accepts until its listener is closed. It waits when maxPending connections wait to be fetched.
func (a *Agent) acceptForward(ctx context.Context, l *forward, listener net.Listener) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := listener.Accept()
		if err != nil {
			<-l.slots
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			a.log.Warn("a forwarded connection could not be accepted", "error", err)
			select {
			case <-time.After(10 * time.Millisecond):
				continue
			case <-ctx.Done():
				return
			}
		}
		p := a.forwards.hold(l, conn.(halfCloser))
		select {
		case l.accepted <- p:
		case <-ctx.Done():
			a.forwards.expire(p.id)
			return
		}
	}
}

// listen opens what a request asks for.
func (a *Agent) listen(ctx context.Context, request *agentv1.ListenRequest) (*forward, error) {
	if err := a.gate.enter(); err != nil {
		return nil, err
	}
	defer a.gate.leave()
	l := &forward{name: "l" + strings.ToLower(rand.Text())[:11], slots: make(chan struct{}, maxPending), accepted: make(chan *pendingConn)}
	if err := a.forwards.add(l); err != nil {
		return nil, err
	}
	var err error
	switch {
	case request.GetAuthSocket() && request.GetTcp() == "" && request.GetUnix() == "":
		err = l.openAuthSocket()
	case request.GetUnix() != "" && request.GetTcp() == "" && !request.GetAuthSocket():
		err = l.openUnix(request.GetUnix())
	case request.GetTcp() != "" && request.GetUnix() == "" && !request.GetAuthSocket():
		err = l.openTCP(ctx, request.GetTcp(), a.port)
	default:
		err = carrel.Errorf(carrel.CodeInvalid, "bad_listen", "a listener is one of tcp, unix and auth_socket")
	}
	if err != nil {
		a.forwards.end(l)
		return nil, err
	}
	return l, nil
}

// openTCP listens on HOST:PORT. "localhost" is both loopback addresses where there are two.
func (l *forward) openTCP(ctx context.Context, address string, own int) error {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return carrel.Errorf(carrel.CodeInvalid, "bad_listen", "%q is not HOST:PORT", printable(address))
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return carrel.Errorf(carrel.CodeInvalid, "bad_listen", "the port of %q is not a number from 0 to 65535", printable(address))
	}
	if int(port) == own {
		return carrel.Errorf(carrel.CodeDenied, "bad_listen", "port %d is the agent's own", own)
	}
	hosts := []string{host}
	switch host {
	case "localhost":
		hosts = []string{"127.0.0.1", "::1"}
	case "", "*":
		hosts = []string{""}
	default:
		if _, err := netip.ParseAddr(host); err != nil {
			return carrel.Errorf(carrel.CodeInvalid, "bad_listen", "%q is no address to listen on: use localhost, * or an IP address of the box", printable(host))
		}
	}
	l.port = int(port)
	for i, host := range hosts {
		var listener net.Listener
		err := asUser(func() (err error) {
			listener, err = new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(l.port)))
			return err
		})
		if err != nil && i > 0 { // one of the two is enough
			break
		}
		if err != nil {
			return explainListen(net.JoinHostPort(host, portText), err)
		}
		l.port = listener.Addr().(*net.TCPAddr).Port
		l.listeners = append(l.listeners, listener)
	}
	return nil
}

func explainListen(what string, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return carrel.Errorf(carrel.CodeExists, "address_in_use", "something in the box listens on %s already", what)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return carrel.Errorf(carrel.CodeDenied, "listen_denied", "user %s may not listen on %s", boxUser, what)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return carrel.Errorf(carrel.CodeInvalid, "bad_listen", "%s is no address of the box", what)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return carrel.Errorf(carrel.CodeInvalid, "bad_listen", "there is no directory for %s", what)
	}
	return fmt.Errorf("listen on %s: %w", what, err)
}

// openUnix listens on a socket that only the box's user can connect to.
func (l *forward) openUnix(path string) error {
	if len(path) > 107 || !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return carrel.Errorf(carrel.CodeInvalid, "bad_listen", "the path of a socket is absolute, clean and at most 107 bytes long")
	}
	err := asUser(func() error { return l.bindUnix(path) })
	if err != nil {
		return explainListen(path, err)
	}
	l.path = path
	l.remove = func() { _ = asUser(func() error { return unix.Unlink(path) }) }
	return nil
}

// bindUnix changes the mode between bind and listen: nobody can connect before.
func (l *forward) bindUnix(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close() // the listener has a copy
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	err = unix.Chmod(path, 0o600)
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	var listener net.Listener
	if err == nil {
		listener, err = net.FileListener(file)
	}
	if err != nil {
		return errors.Join(err, unix.Unlink(path))
	}
	l.listeners = append(l.listeners, listener)
	return nil
}

// openAuthSocket listens on a socket in a directory that is private to the box's user.
func (l *forward) openAuthSocket() error {
	dir := filepath.Join(authDirectory, "carrel-auth-"+strings.ToLower(rand.Text())[:12])
	if err := asUser(func() error { return unix.Mkdir(dir, 0o700) }); err != nil {
		return fmt.Errorf("make a directory for an agent socket: %w", err)
	}
	removeDir := func() { _ = asUser(func() error { return unix.Rmdir(dir) }) }
	if err := l.openUnix(filepath.Join(dir, "agent.sock")); err != nil {
		removeDir()
		return err
	}
	removeSocket := l.remove
	l.remove = func() { removeSocket(); removeDir() }
	return nil
}
