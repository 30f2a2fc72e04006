package tunnel

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// Of RFC 8446, section 5.1: a record's header ends with the length of the rest, and its content has at most recordPayload bytes.
	recordHeader  = 5
	recordPayload = 16 << 10
	// batchBytes is how much is encrypted before it is written, in bytes.
	batchBytes = 128 << 10
	// quietBuffer and busyBuffer are what is read from the kernel at once, in bytes: the first while little comes, so that many streams that
	// wait weigh little.
	quietBuffer = 2 << 10
	busyBuffer  = 136 << 10
)

var (
	busyBuffers = sync.Pool{New: func() any { return new([busyBuffer]byte) }}
	// A batch and what TLS adds to each of its records, rounded up.
	batches = sync.Pool{New: func() any { b := make([]byte, 0, batchBytes+8<<10); return &b }}
)

// recordConn is the connection below TLS. It reads much at once but gives TLS never more than the rest of one record, so that it knows
// whether TLS could give another one without waiting, and it can write several records at once.
type recordConn struct {
	net.Conn

	// The reader's.
	small      []byte
	big        *[busyBuffer]byte // nil: small is in use
	start, end int               // what is buffered
	left       int               // of the record that TLS reads
	busy       bool              // much came the last time

	mu   sync.Mutex // guards held
	held *[]byte    // records that wait for together; nil: they are written at once
}

func (c *recordConn) buffer() []byte {
	if c.big != nil {
		return c.big[:]
	}
	return c.small
}

// fill reads more from the kernel.
func (c *recordConn) fill() error {
	if c.small == nil {
		c.small = make([]byte, quietBuffer)
	}
	buf := c.buffer()
	if c.start > 0 {
		c.end = copy(buf, buf[c.start:c.end])
		c.start = 0
	}
	switch {
	case c.big != nil && c.end == 0 && !c.busy: // a stream that waits gives its large buffer back
		busyBuffers.Put(c.big)
		c.big = nil
	case c.big == nil && c.busy:
		c.big = busyBuffers.Get().(*[busyBuffer]byte) //nolint:forcetypeassert // there is nothing else in it
		copy(c.big[:], c.small[:c.end])
	}
	buf = c.buffer()[c.end:]
	n, err := c.Conn.Read(buf)
	c.end += n
	if n > 0 {
		c.busy = n == len(buf) || c.busy && n > quietBuffer
		return nil
	}
	return err
}

// Read is part of net.Conn.
func (c *recordConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		for c.end-c.start < recordHeader {
			err := c.fill()
			if errors.Is(err, io.EOF) && c.end > c.start { // TLS shall see it
				return c.take(p, c.end-c.start), nil
			}
			if err != nil {
				return 0, err
			}
		}
		c.left = recordHeader + c.length()
	}
	if c.start == c.end {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := c.take(p, c.left)
	c.left -= n
	return n, nil
}

func (c *recordConn) take(p []byte, most int) int {
	n := copy(p[:min(len(p), most)], c.buffer()[c.start:c.end])
	c.start += n
	return n
}

// length of the content of the record whose header is buffered next.
func (c *recordConn) length() int { return int(binary.BigEndian.Uint16(c.buffer()[c.start+3:])) }

// whole reports whether TLS has read all of a record and all of another one is here.
func (c *recordConn) whole() bool {
	here := c.end - c.start
	return c.left == 0 && here >= recordHeader && here >= recordHeader+c.length()
}

// Write is part of net.Conn.
func (c *recordConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.held != nil {
		*c.held = append(*c.held, p...)
		c.mu.Unlock()
		return len(p), nil
	}
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// SetWriteDeadline is part of net.Conn. TLS gives its last word five seconds and lets nothing be written afterwards: that is not for what
// together holds, since a box may well take nothing for longer.
func (c *recordConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	held := c.held != nil
	c.mu.Unlock()
	if held {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// together writes at once what write has TLS write.
func (c *recordConn) together(write func() (int, error)) (int, error) {
	held := batches.Get().(*[]byte)
	defer batches.Put(held)
	*held = (*held)[:0]
	c.mu.Lock()
	c.held = held
	c.mu.Unlock()
	n, err := write()
	c.mu.Lock()
	c.held = nil
	c.mu.Unlock()
	if _, flushErr := c.Conn.Write(*held); flushErr != nil && err == nil {
		return 0, flushErr
	}
	return n, err
}
