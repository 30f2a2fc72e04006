package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxConnections with a preface; maxWaiting without one yet, maxWaitingLocal of them from the box itself, so
	// that a program in the box cannot keep the node out.
	maxConnections  = 1024
	maxWaiting      = 1024
	maxWaitingLocal = 256
	prefaceTimeout  = 5 * time.Second
	dialTimeout     = 10 * time.Second
	copyBuffer      = 32 << 10
	frameBuffer     = 4 << 10
)

// boxConn is a connection to the agent. What came in with the preface is read first.
type boxConn struct {
	net.Conn
	rest  []byte
	run   string // the run whose key it knows; empty: none yet. Guarded by Agent.mu
	agent *Agent
	once  sync.Once

	// framed reads for HTTP/2: a server reads every frame in two parts, clients acknowledge every 4 KiB of a stream with a
	// frame, and a read of the connection costs much in a sandbox. Without it a stream is five times slower.
	framed *bufio.Reader
}

func (c *boxConn) Read(p []byte) (int, error) {
	if c.framed != nil {
		return c.framed.Read(p)
	}
	if len(c.rest) > 0 {
		n := copy(p, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *boxConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.agent.mu.Lock()
		delete(c.agent.conns, c)
		c.agent.mu.Unlock()
	})
	return err
}

func (c *boxConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// handoff is a listener whose connections come from the preface.
type handoff struct {
	conns chan net.Conn
	done  <-chan struct{}
	addr  net.Addr
}

func (h *handoff) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handoff) Close() error   { return nil }
func (h *handoff) Addr() net.Addr { return h.addr }

// serve accepts connections until ctx ends, and gives everything back.
func (a *Agent) serve(ctx context.Context) {
	var parts sync.WaitGroup
	servers := map[targetKind]*handoff{}
	var running []*http.Server
	for kind, handler := range a.handlers() {
		listener := &handoff{conns: make(chan net.Conn), done: ctx.Done(), addr: a.listener.Addr()}
		server := newServer(handler, a.log)
		if kind == targetJupyter { // WebSockets and clients that know nothing else
			server.Protocols.SetUnencryptedHTTP2(false)
			server.Protocols.SetHTTP1(true)
		}
		servers[kind] = listener
		running = append(running, server)
		parts.Go(func() { _ = server.Serve(listener) })
	}
	parts.Go(func() { a.accept(ctx, servers, &parts) })
	<-ctx.Done()
	a.listener.Close()
	parts.Go(a.jupyter.Close)
	a.mu.Lock()
	var open []*boxConn
	for conn := range a.conns {
		open = append(open, conn)
	}
	a.mu.Unlock()
	for _, conn := range open {
		conn.Close()
	}
	for _, server := range running {
		_ = server.Close()
	}
	parts.Wait()
}

func (a *Agent) accept(ctx context.Context, servers map[targetKind]*handoff, parts *sync.WaitGroup) {
	for {
		raw, err := a.listener.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				raw.Close()
			}
			return
		}
		if err != nil { // no files left, or the peer is gone already
			a.log.Warn("a connection could not be accepted", "error", err)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			continue
		}
		conn := &boxConn{Conn: newGather(raw, a.wg.Go), agent: a}
		local := isLocal(raw)
		if !a.admitConn(conn, local) {
			conn.Close()
			continue
		}
		parts.Go(func() {
			kind, err := a.greet(ctx, conn, local)
			if err != nil {
				conn.Close()
				return
			}
			if listener := servers[kind.kind]; listener != nil {
				conn.framed = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(conn.rest), conn.Conn), frameBuffer)
				if out, ok := conn.Conn.(*gather); ok {
					out.begin()
				}
				select {
				case listener.conns <- conn:
				case <-ctx.Done():
					conn.Close()
				}
				return
			}
			if kind.kind == targetSession {
				a.serveSession(ctx, conn)
				return
			}
			a.splice(ctx, conn, kind)
		})
	}
}

// isLocal reports whether a connection comes from the box itself.
func isLocal(conn net.Conn) bool {
	local, ok1 := conn.LocalAddr().(*net.TCPAddr)
	remote, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	return ok1 && ok2 && (local.IP.IsLoopback() || remote.IP.IsLoopback() || local.IP.Equal(remote.IP))
}

func (a *Agent) admitConn(conn *boxConn, local bool) bool {
	limit := maxWaiting
	if local {
		limit = maxWaitingLocal
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting[local] >= limit {
		return false
	}
	a.waiting[local]++
	a.conns[conn] = struct{}{}
	return true
}

// greet reads the preface, answers it and gives the target. For tcp and unix the answer is the dialler's.
func (a *Agent) greet(ctx context.Context, conn *boxConn, local bool) (target, error) {
	line, err := readLine(conn)
	var wanted target
	if err == nil {
		wanted, err = a.check(ctx, conn, line, local)
	} else {
		a.mu.Lock()
		a.waiting[local]--
		a.mu.Unlock()
	}
	if err != nil {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = fmt.Fprintf(conn, "err %s\n", err)
		return target{}, err
	}
	if wanted.kind == targetAgent || wanted.kind == targetControl || wanted.kind == targetSession || wanted.kind == targetJupyter {
		_, err = io.WriteString(conn, "ok\n")
	}
	return wanted, err
}

// readLine reads up to the first newline; what follows stays in conn.
func readLine(conn *boxConn) (string, error) {
	_ = conn.SetReadDeadline(time.Now().Add(prefaceTimeout))
	buf := make([]byte, maxPreface)
	for n := 0; n < len(buf); {
		got, err := conn.Conn.Read(buf[n:])
		if at := bytes.IndexByte(buf[n:n+got], '\n'); at >= 0 {
			end := n + at
			if rest := buf[end+1 : n+got]; len(rest) > 0 {
				conn.rest = bytes.Clone(rest)
			}
			return string(buf[:end]), conn.SetReadDeadline(time.Time{})
		}
		n += got
		if err != nil {
			return "", err
		}
	}
	return "", errPreface
}

var (
	errKey  = errors.New("the key is wrong")
	errFull = errors.New("the box has as many connections as it can; close some")
)

// check admits a connection whose first line was read.
func (a *Agent) check(_ context.Context, conn *boxConn, line string, local bool) (target, error) {
	key, text, err := parsePreface(line)
	id, _ := a.current()
	if err == nil && !sameKey(key, id.Key) {
		// The box may have been restored just now.
		if refreshErr := a.refresh(); refreshErr != nil {
			a.log.Warn("the identity could not be read", "error", refreshErr)
		}
		if id, _ = a.current(); !sameKey(key, id.Key) {
			err = errKey
		}
	}
	a.mu.Lock()
	a.waiting[local]--
	if err == nil {
		known := 0
		for other := range a.conns {
			if other.run != "" {
				known++
			}
		}
		if known >= maxConnections {
			err = errFull
		} else {
			conn.run = id.RunID
		}
	}
	a.mu.Unlock()
	if err != nil {
		return target{}, err
	}
	return parseTarget(text)
}

// splice connects conn to what it asked for, in both directions, until both have ended.
func (a *Agent) splice(ctx context.Context, conn *boxConn, wanted target) {
	defer conn.Close()
	other, err := a.dial(ctx, wanted)
	if err != nil {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = fmt.Fprintf(conn, "err %s\n", oneLine(err))
		return
	}
	defer other.Close()
	if _, err := io.WriteString(conn, "ok\n"); err != nil {
		return
	}
	// conn is closed when the agent stops or the run changes; that ends the copies in both directions.
	var back sync.WaitGroup
	back.Go(func() { copyHalf(conn, other) })
	copyHalf(other, conn)
	back.Wait()
}

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// copyHalf copies from src to dst and ends dst's direction with src's. If dst takes no more, src is told.
func copyHalf(dst, src halfCloser) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	// Without the methods by which the kernel would copy: they are not worth their differences between kernels.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
	if err != nil { // one side is broken: end the other as well, in both directions
		dst.Close()
		src.Close()
		return
	}
	_ = dst.CloseWrite()
}

func (a *Agent) dial(ctx context.Context, wanted target) (halfCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	switch wanted.kind {
	case targetUnix:
		return dialUnixAs(ctx, wanted.address)
	case targetAccept:
		return a.forwards.fetch(wanted.address)
	case targetUDP:
		conn, err := new(net.Dialer).DialContext(ctx, "udp", wanted.address)
		if err != nil {
			return nil, err
		}
		return &datagrams{Conn: conn}, nil
	}
	if wanted.port == a.port {
		return nil, fmt.Errorf("port %d is the agent's own; nothing is forwarded to it", wanted.port)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", wanted.address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// dialUnixAs connects as the box's user.
func dialUnixAs(ctx context.Context, path string) (halfCloser, error) {
	var conn net.Conn
	err := asUser(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func oneLine(err error) string {
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, []byte(err.Error())))
}
