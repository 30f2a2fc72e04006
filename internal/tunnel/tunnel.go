// Package tunnel is the wire between a gateway and a node's proxy: a CONNECT request of HTTP/1.1 turns its TLS connection into
// one stream of bytes. A stream has a connection of its own, so that a byte is copied from one connection to the next by one goroutine and
// wakes nobody else; streams that share an HTTP/2 connection cost several times as much. The package must not know who may
// open what: that is between the two ends, in headers. Words: a record is what TLS sends at once; to cut a stream is to end it
// so that the other end can tell it from the end of the data.
package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Protocol is the only application protocol of the connections, for TLS to agree on.
	Protocol = "http/1.1"
	// maxAnswer is the longest header of an answer to CONNECT, in bytes, and maxReason the most of a refusal's body that is read.
	maxAnswer = 64 << 10
	maxReason = 4 << 10
)

// Conn is one end of a stream. Read and Write may be called at the same time, each by one goroutine; the other methods by any.
// Read answers io.EOF after the other end's CloseWrite, and another error when the stream was cut.
type Conn struct {
	tls     *tls.Conn
	records *recordConn
	rest    []byte     // came with the answer, and is read first
	writing sync.Mutex // held while anything is written, so that no record overtakes a batch
}

// RefusedError is an answer to CONNECT that opens nothing.
type RefusedError struct {
	Status int
	Body   []byte // at most 4 KiB of it
}

// Error is part of error.
func (r *RefusedError) Error() string { return fmt.Sprintf("the answer is %d: %s", r.Status, r.Body) }

// NewListener serves TLS for http.Server, whose handlers may then call Accept.
func NewListener(inner net.Listener, config *tls.Config) net.Listener {
	return tls.NewListener(recordListener{inner}, config)
}

type recordListener struct{ net.Listener }

func (l recordListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recordConn{Conn: raw}, nil
}

// Accept answers a CONNECT request that came by a listener of NewListener, and takes its connection over. The handler may go on
// using it after it has returned. After an error there is nothing to answer.
func Accept(w http.ResponseWriter) (*Conn, error) {
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	c := &Conn{}
	var ok bool
	if c.tls, ok = raw.(*tls.Conn); ok {
		c.records, ok = c.tls.NetConn().(*recordConn)
	}
	if !ok {
		_ = raw.Close()
		return nil, fmt.Errorf("take the connection over: %T is not from a tunnel's listener", raw)
	}
	if in := buffered.Reader; in.Buffered() > 0 {
		early, _ := in.Peek(in.Buffered())
		c.rest = bytes.Clone(early)
	}
	err = c.tls.SetDeadline(time.Time{})
	if err == nil {
		_, err = io.WriteString(c.tls, "HTTP/1.1 200 OK\r\n\r\n")
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("answer: %w", err)
	}
	return c, nil
}

// Open makes TLS of a new connection and asks the proxy at its other end for a stream to host. Whatever becomes of it, raw is the
// tunnel's from now on. ctx bounds the opening alone. A *RefusedError is the proxy's answer when it is not yes.
func Open(ctx context.Context, raw net.Conn, config *tls.Config, host string, header http.Header) (*Conn, error) {
	c := &Conn{records: &recordConn{Conn: raw}}
	c.tls = tls.Client(c.records, config)
	if err := c.open(ctx, host, header); err != nil {
		_ = c.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return c, nil
}

func (c *Conn) open(ctx context.Context, host string, header http.Header) error {
	if host == "" || strings.ContainsAny(host, " \r\n") {
		return fmt.Errorf("%q is no host", host)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := c.tls.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	var request bytes.Buffer
	fmt.Fprintf(&request, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", host, host)
	if err := header.Write(&request); err != nil {
		return err
	}
	request.WriteString("\r\n")
	if _, err := c.tls.Write(request.Bytes()); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	in := bufio.NewReader(io.LimitReader(c.tls, maxAnswer))
	answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(answer.Body, maxReason))
		return &RefusedError{Status: answer.StatusCode, Body: body}
	}
	if n := in.Buffered(); n > 0 {
		early, _ := in.Peek(n)
		c.rest = bytes.Clone(early)
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return nil
}

// Read is part of net.Conn. It gives as much as there is and fits, of several records.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.rest) > 0 {
		n := copy(p, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	n, err := c.tls.Read(p)
	for err == nil && n < len(p) && c.records.whole() {
		var more int
		more, err = c.tls.Read(p[n:])
		n += more
	}
	if n > 0 {
		return n, nil // TLS gives an error again
	}
	return 0, err
}

// Write is part of net.Conn. Large pieces leave in few calls of the kernel.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if len(p) <= recordPayload {
		return c.tls.Write(p)
	}
	for written := 0; ; {
		n, err := c.records.together(func() (int, error) { return c.tls.Write(p[written:min(len(p), written+batchBytes)]) })
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// CloseWrite tells the other end that nothing more comes; what it sends can still be read. Like a Write it waits while the other end takes
// nothing.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	_, err := c.records.together(func() (int, error) { return 0, c.tls.CloseWrite() })
	return err
}

// Close cuts the stream: what the other end has not read may be lost, and it knows. After CloseWrite and the other end's Close nothing is.
// It may be called again.
func (c *Conn) Close() error {
	if tcp, ok := c.records.Conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0) // at once, whatever the other end does not take
	}
	// Without TLS's word that all was said.
	err := c.records.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// AwaitClose waits, after a Read that answered io.EOF, until the other end has closed the connection, or this one has.
func (c *Conn) AwaitClose() { _, _ = c.records.Conn.Read(make([]byte, 1)) }

// Gone reports whether the other end has closed the connection, also when there is still something to read.
func (c *Conn) Gone() bool {
	conn, ok := c.records.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	const established = 1 // TCP_ESTABLISHED of linux/tcp_states.h
	gone := true
	if err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		gone = err != nil || info.State != established
	}); err != nil {
		return true
	}
	return gone
}

// LocalAddr and the rest are part of net.Conn. A Write that a deadline ended leaves the stream unusable.
func (c *Conn) LocalAddr() net.Addr                { return c.tls.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr               { return c.tls.RemoteAddr() }
func (c *Conn) SetDeadline(t time.Time) error      { return c.tls.SetDeadline(t) }
func (c *Conn) SetReadDeadline(t time.Time) error  { return c.tls.SetReadDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.tls.SetWriteDeadline(t) }
