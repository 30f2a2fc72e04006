package kernel

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// A ZMTP 3.0 client (rfc.zeromq.org/spec/23) with the NULL mechanism, which is all that kernels have. It is written for peers that are not
// trusted: what a peer announces is not allocated before it has come.

const (
	flagMore    = 1
	flagLong    = 2
	flagCommand = 4
	// maxFrames of a message; what comes beyond is an error.
	maxFrames = 4096
	// maxCommand is the longest command, in bytes.
	maxCommand = 4096
	// greedy is how much of an announced frame is allocated before it has come, in bytes, and greedyShare what part of the largest message if that is
	// more: memory that grows as a frame comes is taken, and copied, twice.
	greedy         = 64 << 10
	greedyShare    = 8
	handshakeLimit = 10 * time.Second
)

var errProtocol = errors.New("the peer does not speak ZMTP 3")

// socket is one connection. Reading and writing may go on at the same time, each by one goroutine.
type socket struct {
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
}

// handshake makes conn a socket of a type ("DEALER", "SUB", "REQ"). It closes conn when it fails.
func handshake(conn net.Conn, kind, identity string) (_ *socket, err error) {
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return nil, fmt.Errorf("greet a kernel: %w", err)
	}
	s := &socket{conn: conn, in: bufio.NewReaderSize(conn, 32<<10), out: bufio.NewWriterSize(conn, 4<<10)}
	greeting := make([]byte, 64)
	greeting[0], greeting[9], greeting[10] = 0xff, 0x7f, 3
	copy(greeting[12:], "NULL")
	if _, err := conn.Write(greeting); err != nil {
		return nil, fmt.Errorf("greet a kernel: %w", err)
	}
	if _, err := io.ReadFull(s.in, greeting); err != nil {
		return nil, fmt.Errorf("greet a kernel: %w", err)
	}
	if greeting[0] != 0xff || greeting[9]&1 != 1 || greeting[10] < 3 || !bytes.Equal(bytes.TrimRight(greeting[12:32], "\x00"), []byte("NULL")) {
		return nil, errProtocol
	}
	ready := append([]byte{5}, "READY"...)
	ready = property(ready, "Socket-Type", kind)
	ready = property(ready, "Identity", identity)
	if err := s.frame(flagCommand, ready); err != nil {
		return nil, err
	}
	if err := s.out.Flush(); err != nil {
		return nil, fmt.Errorf("greet a kernel: %w", err)
	}
	for {
		flags, size, err := s.head()
		if err != nil {
			return nil, err
		}
		if flags&flagCommand == 0 || size > maxCommand {
			return nil, errProtocol
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(s.in, body); err != nil {
			return nil, fmt.Errorf("greet a kernel: %w", err)
		}
		switch {
		case bytes.HasPrefix(body, []byte("\x05READY")):
			return s, conn.SetDeadline(time.Time{})
		case bytes.HasPrefix(body, []byte("\x05ERROR")):
			return nil, fmt.Errorf("the kernel refused the connection: %q", body[min(len(body), 7):])
		}
	}
}

func property(to []byte, name, value string) []byte {
	to = append(to, byte(len(name)))
	to = append(to, name...)
	to = binary.BigEndian.AppendUint32(to, uint32(len(value)))
	return append(to, value...)
}

// frame writes one frame; the caller flushes.
func (s *socket) frame(flags byte, body []byte) error {
	var head [9]byte
	n := 2
	head[0], head[1] = flags, byte(len(body))
	if len(body) > 255 {
		head[0] |= flagLong
		binary.BigEndian.PutUint64(head[1:], uint64(len(body)))
		n = 9
	}
	if _, err := s.out.Write(head[:n]); err != nil {
		return fmt.Errorf("write to a kernel: %w", err)
	}
	if _, err := s.out.Write(body); err != nil {
		return fmt.Errorf("write to a kernel: %w", err)
	}
	return nil
}

// send writes one message.
func (s *socket) send(frames [][]byte) error {
	for i, frame := range frames {
		flags := byte(0)
		if i < len(frames)-1 {
			flags = flagMore
		}
		if err := s.frame(flags, frame); err != nil {
			return err
		}
	}
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("write to a kernel: %w", err)
	}
	return nil
}

// head reads the flags and the size of a frame.
func (s *socket) head() (flags byte, size int64, err error) {
	var buf [8]byte
	if flags, err = s.in.ReadByte(); err != nil {
		return 0, 0, err
	}
	if flags&flagLong == 0 {
		short, err := s.in.ReadByte()
		return flags, int64(short), err
	}
	if _, err := io.ReadFull(s.in, buf[:]); err != nil {
		return 0, 0, err
	}
	long := binary.BigEndian.Uint64(buf[:])
	if long > 1<<62 {
		return 0, 0, errProtocol
	}
	return flags, int64(long), nil
}

// receive reads one message of at most limit bytes. Of a larger one the bytes are passed over, and it is given as nil frames
// with its size.
func (s *socket) receive(limit int64) (frames [][]byte, size int64, err error) {
	over := false
	for {
		flags, n, err := s.head()
		if err != nil {
			return nil, 0, err
		}
		if flags&flagCommand != 0 {
			// Commands within a connection (PING, SUBSCRIBE) ask for nothing that version 3.0 has.
			if n > maxCommand {
				return nil, 0, errProtocol
			}
			if _, err := s.in.Discard(int(n)); err != nil {
				return nil, 0, err
			}
			continue
		}
		if size += n; size > limit || over {
			over = true
			frames = nil
			if _, err := io.CopyN(io.Discard, s.in, n); err != nil {
				return nil, 0, err
			}
		} else {
			if len(frames) >= maxFrames {
				return nil, 0, errProtocol
			}
			body, err := s.body(n, max(greedy, limit/greedyShare))
			if err != nil {
				return nil, 0, err
			}
			frames = append(frames, body)
		}
		if flags&flagMore == 0 {
			return frames, size, nil
		}
	}
}

// body reads the n bytes of a frame. Memory for the first bytes is taken at once; then it grows as they come.
func (s *socket) body(n, first int64) ([]byte, error) {
	var body []byte
	for at := 0; int64(at) < n; at = len(body) {
		body = slices.Grow(body, int(min(n-int64(at), max(first, int64(at)))))[:min(n, max(first, 2*int64(at)))]
		if _, err := io.ReadFull(s.in, body[at:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}
