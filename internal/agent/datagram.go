package agent

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// maxDatagram is the largest datagram that a frame can hold, in bytes.
const maxDatagram = 1<<16 - 1

// datagrams is a connected UDP socket as a stream: each datagram is a frame of its length in two bytes, the high one first, and
// its data. Datagrams that the network does not take are lost, as they would be anywhere else.
type datagrams struct {
	net.Conn
	mu   sync.Mutex // guards what follows, of Write
	held []byte     // the beginning of a frame
	rest []byte     // of Read: what did not fit
}

// Read gives frames. It has one caller at a time.
func (d *datagrams) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		frame := make([]byte, 2+maxDatagram)
		n, err := d.Conn.Read(frame[2:])
		for isUnreachable(err) {
			n, err = d.Conn.Read(frame[2:])
		}
		if err != nil {
			return 0, err
		}
		binary.BigEndian.PutUint16(frame, uint16(n))
		d.rest = frame[:2+n]
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// Write takes frames, in pieces of any size.
func (d *datagrams) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = append(d.held, p...)
	for len(d.held) >= 2 {
		size := 2 + int(binary.BigEndian.Uint16(d.held))
		if len(d.held) < size {
			break
		}
		_, err := d.Conn.Write(d.held[2:size])
		if err != nil && !isUnreachable(err) && !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ENOBUFS) {
			return 0, err
		}
		d.held = d.held[:copy(d.held, d.held[size:])]
	}
	return len(p), nil
}

// CloseWrite ends both directions: datagrams have no end of their own.
func (d *datagrams) CloseWrite() error { return d.Close() }

// isUnreachable reports an answer of the network to an earlier datagram.
func isUnreachable(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

var _ io.ReadWriteCloser = (*datagrams)(nil)
