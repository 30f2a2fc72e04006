package agent

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
)

// gather lets what is written to a connection closely after each other leave as one. A server of HTTP/2 writes each frame by itself, and
// an answer has three; in a sandbox each costs a packet of its own, and each wakes everybody between it and the client. Nothing is held
// back for a length of time: it leaves as soon as nobody has anything else to do, or when much has come together.
//
// Until begin it is a connection as any other. Write blocks as that of the connection does, and tells of an error at the next call. The methods
// are safe for concurrent use.
type gather struct {
	*directConn
	start func(func()) // starts a goroutine that is waited for
	begun atomic.Bool

	mu     sync.Mutex // held while anything is written
	buf    *[copyBuffer]byte
	n      int // bytes in buf; nil: 0
	wanted bool
	err    error
}

// newGather makes a gather of a connection of TCP, and leaves another one as it is.
func newGather(conn net.Conn, start func(func())) net.Conn {
	direct := direct(conn)
	if direct == nil {
		return conn
	}
	return &gather{directConn: direct, start: start}
}

// begin says that what is written from now on may be gathered.
func (g *gather) begin() { g.begun.Store(true) }

// Write is part of net.Conn.
func (g *gather) Write(p []byte) (int, error) {
	if !g.begun.Load() {
		return g.directConn.Write(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil && g.n+len(p) > copyBuffer {
		g.flush()
		if g.err == nil && len(p) > copyBuffer {
			return g.directConn.Write(p)
		}
	}
	if g.err != nil {
		return 0, g.err
	}
	if g.buf == nil {
		g.buf = copyBuffers.Get().(*[copyBuffer]byte)
	}
	g.n += copy(g.buf[g.n:], p)
	if !g.wanted {
		g.wanted = true
		g.start(func() {
			runtime.Gosched() // whoever can run, and perhaps writes, comes first
			g.mu.Lock()
			defer g.mu.Unlock()
			g.wanted = false
			g.flush()
		})
	}
	return len(p), nil
}

// flush writes what is there. g.mu is held.
func (g *gather) flush() {
	if g.n > 0 && g.err == nil {
		_, g.err = g.directConn.Write(g.buf[:g.n])
	}
	g.forget()
}

func (g *gather) forget() {
	g.n = 0
	if g.buf != nil {
		copyBuffers.Put(g.buf)
		g.buf = nil
	}
}

// CloseWrite ends this direction behind what was written.
func (g *gather) CloseWrite() error {
	g.mu.Lock()
	g.flush()
	g.mu.Unlock()
	return g.TCPConn.CloseWrite()
}

// Close is part of net.Conn. What is still there leaves if the connection takes it at once.
func (g *gather) Close() error {
	if g.mu.TryLock() { // else a Write is stuck, which Close ends
		if g.n > 0 && g.err == nil {
			_ = g.raw.Write(func(fd uintptr) bool {
				_, _ = writeNow(int(fd), g.buf[:g.n])
				return true
			})
		}
		g.forget()
		if g.err == nil {
			g.err = net.ErrClosed
		}
		g.mu.Unlock()
	}
	return g.directConn.Close()
}
