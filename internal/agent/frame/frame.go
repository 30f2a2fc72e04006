// Package frame is the protocol of one process over one connection to the agent in a box (target "session"): what a
// gateway that carries a terminal or a bulk stream speaks in place of calls, because a keystroke then costs one write each
// way and output is not wrapped twice. It must not import anything of Carrel, so that both sides can use it. Words: a
// frame is a kind, a length and that many bytes; an offset counts the bytes of a process's input
// that one writer gave; a writer is whoever types or sends over one connection after the other.
//
// The gateway's first frames are User, Writer and then Start or Attach; the agent answers with Started and Taken, or with
// Error. From then on the gateway sends Input, EOF, Resize, Signal and HangUp, the agent Stdout, Stderr, Gap, Taken, and at
// the end Exited. The agent always reads: it holds up to Window bytes of input that the process has not taken, and the
// gateway never sends more than that beyond what Taken has said. After a broken connection the gateway attaches again as
// the same writer, and Taken tells from where on it has to send its input again.
package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Kind of a frame.
type Kind byte

// From the gateway to the agent.
const (
	User   Kind = 1 // the user of the platform, as text
	Start  Kind = 2 // a StartProcessRequest
	Attach Kind = 3 // an AttachProcessRequest
	Input  Kind = 4 // bytes
	EOF    Kind = 5 // no more input
	Resize Kind = 6 // rows and columns, 16 bits each
	Signal Kind = 7 // a name without SIG
	HangUp Kind = 8 // the user has gone for good: end it as the end of a login does
	Writer Kind = 9 // a name that the gateway has made up for this writer, as text of at most MaxName bytes
)

// From the agent to the gateway.
const (
	Started Kind = 32 // a Process
	Stdout  Kind = 33 // bytes
	Stderr  Kind = 34 // bytes
	Gap     Kind = 35 // a Gap
	Taken   Kind = 36 // the offset of the writer's next byte that the process has not taken, 64 bits
	Exited  Kind = 37 // a Process
	Error   Kind = 38 // a TerminalError
)

const (
	// HeaderSize of a frame, in bytes: the kind and 32 bits of length.
	HeaderSize = 5
	// MaxPayload of a frame, in bytes: the largest command with its environment fits.
	MaxPayload = 2 << 20
	// Window is how much input may be on its way, in bytes.
	Window = 1 << 20
	// MaxName of a writer or user, in bytes.
	MaxName = 64
	// AckEvery is after how much input Taken is sent at the latest, in bytes.
	AckEvery = 64 << 10
)

// ErrTooLarge is the error of a frame above MaxPayload.
var ErrTooLarge = errors.New("frame: the payload is too large")

// Reader reads frames. It is not safe for concurrent use.
type Reader struct {
	in   *bufio.Reader
	left int // of the payload
}

// NewReader reads frames through a buffer of size bytes.
func NewReader(r io.Reader, size int) *Reader { return &Reader{in: bufio.NewReaderSize(r, size)} }

// Next gives the kind of the next frame and the length of its payload, which Read and Payload give. What is left of the
// payload before is passed over. The end of the stream between two frames is io.EOF.
func (r *Reader) Next() (Kind, int, error) {
	if r.left > 0 {
		if _, err := r.in.Discard(r.left); err != nil {
			return 0, 0, unexpected(err)
		}
		r.left = 0
	}
	header, err := r.in.Peek(HeaderSize)
	if err != nil {
		if len(header) > 0 {
			err = unexpected(err)
		}
		return 0, 0, err
	}
	kind, size := Kind(header[0]), binary.BigEndian.Uint32(header[1:])
	if size > MaxPayload {
		return 0, 0, fmt.Errorf("%w: %d bytes", ErrTooLarge, size)
	}
	if _, err := r.in.Discard(HeaderSize); err != nil {
		return 0, 0, err
	}
	r.left = int(size)
	return kind, r.left, nil
}

// Read gives the next bytes of the payload, io.EOF at its end.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.in.Read(p[:min(len(p), r.left)])
	r.left -= n
	if n > 0 {
		return n, nil
	}
	return 0, unexpected(err)
}

// Payload gives the rest of the payload, in memory of its own.
func (r *Reader) Payload() ([]byte, error) {
	p := make([]byte, r.left)
	n, err := io.ReadFull(r.in, p)
	r.left -= n
	return p[:n], unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write writes one frame, with one write to a TCP connection. header has HeaderSize bytes to work in.
func Write(w io.Writer, header []byte, kind Kind, payload []byte) error {
	header[0] = byte(kind)
	binary.BigEndian.PutUint32(header[1:HeaderSize], uint32(len(payload)))
	if len(payload) == 0 {
		_, err := w.Write(header[:HeaderSize])
		return err
	}
	buffers := net.Buffers{header[:HeaderSize], payload}
	_, err := buffers.WriteTo(w)
	return err
}

// Append appends one frame to b.
func Append(b []byte, kind Kind, payload []byte) []byte {
	b = append(b, byte(kind), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(b)-4:], uint32(len(payload)))
	return append(b, payload...)
}

// Size encodes the payload of Resize.
func Size(rows, cols uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, rows), cols)
}

// ParseSize reads the payload of Resize.
func ParseSize(p []byte) (rows, cols uint16, err error) {
	if len(p) != 4 {
		return 0, 0, errors.New("frame: a size has 4 bytes")
	}
	return binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:]), nil
}

// Offset encodes the payload of Taken.
func Offset(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// ParseOffset reads the payload of Taken.
func ParseOffset(p []byte) (int64, error) {
	if len(p) != 8 {
		return 0, errors.New("frame: an offset has 8 bytes")
	}
	n := int64(binary.BigEndian.Uint64(p))
	if n < 0 {
		return 0, errors.New("frame: a negative offset")
	}
	return n, nil
}
