package agent

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

// maxInput is the most that one write takes, in bytes.
const maxInput = 1 << 20

// input is the standard input of a process, a pipe or a terminal.
type input struct {
	file     *os.File
	terminal bool
	turn     chan struct{} // holds one value while nobody writes; guards what follows
	offset   int64         // of the next byte to take
	last     byte          // the byte before offset
	ended    bool          // end-of-file was asked for, at offset
	count    atomic.Int64  // offset, for those who only look
}

func newInput(file *os.File, terminal bool) *input {
	in := &input{file: file, terminal: terminal, turn: make(chan struct{}, 1)}
	in.turn <- struct{}{}
	return in
}

// place says from where on offsets count, and is told what was taken. Its methods are called with the turn.
type place interface {
	taken() int64
	took(n int)
}

// whole counts all input of a process.
type whole struct{ in *input }

func (w whole) taken() int64 { return w.in.offset }
func (w whole) took(int)     {}

// write takes data, which begins at offset, and gives the offset of the next byte to write. It waits until the
// process has room for all of it, or ctx ends: then a part may have been taken, and a repeated write of
// the same data goes on behind that part. What was taken before is not written again; at the offset -1, which is behind everything, nothing
// counts as taken before. A pipe takes nothing after eof; a terminal does.
func (in *input) write(ctx context.Context, from place, offset int64, data []byte, eof bool) (int64, error) {
	if len(data) > maxInput {
		return 0, carrel.Errorf(carrel.CodeInvalid, "input_too_large", "%d bytes in one write; at most %d are taken", len(data), maxInput)
	}
	select {
	case <-in.turn:
		defer func() { in.turn <- struct{}{} }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	before := from.taken()
	if offset == -1 {
		offset = before
	}
	if offset < 0 || offset > before {
		err := carrel.Errorf(carrel.CodeInvalid, "input_gap", "the write is at offset %d, but only %d bytes came before; send those first", offset, before)
		return 0, err
	}
	// Compare without adding: offset may be anything.
	skip := before - offset
	if skip >= int64(len(data)) {
		data = nil
	} else {
		data = data[skip:]
	}
	if len(data) == 0 && (!eof || in.ended) {
		return before, nil
	}
	if in.ended && !in.terminal {
		return 0, carrel.Errorf(carrel.CodePrecondition, "input_closed", "the standard input of the process was closed at offset %d", in.offset)
	}
	if len(data) > 0 {
		n, err := in.put(ctx, data)
		in.advance(data[:n])
		from.took(n)
		if err != nil {
			return 0, err
		}
	}
	if eof {
		if err := in.end(ctx); err != nil {
			return 0, err
		}
		in.ended = true
	}
	return before + int64(len(data)), nil
}

// maxWriterName bounds the name of one of several who type, in bytes.
const maxWriterName = 64

// typist counts what one of several gave to a process.
type typist struct {
	p    *process
	name string
}

func (t typist) taken() int64 { return t.p.writerOffset(t.name) }
func (t typist) took(n int)   { t.p.setWriterOffset(t.name, t.taken()+int64(n)) }

// write gives input to a process. Offsets are those of writer, if that is not empty.
func (p *process) write(ctx context.Context, writer string, offset int64, data []byte, eof bool) (int64, error) {
	if len(writer) > maxWriterName {
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_writer", "the name of a writer has %d bytes; at most %d are taken", len(writer), maxWriterName)
	}
	var from place = whole{p.input}
	if writer != "" {
		from = typist{p, writer}
	}
	return p.input.write(ctx, from, offset, data, eof)
}

// put writes data or as much as it can until ctx ends.
func (in *input) put(ctx context.Context, data []byte) (int, error) {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = in.file.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	n, err := in.file.Write(data)
	if !stop() {
		<-fired
		_ = in.file.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return n, ctx.Err()
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO):
		return n, carrel.Errorf(carrel.CodePrecondition, "input_closed", "the process has closed its standard input or has ended")
	}
	return n, err
}

// end closes a pipe; on a terminal that collects lines it types the end-of-file character, once more if a
// line is unfinished, since the first then only hands over that line.
func (in *input) end(ctx context.Context) error {
	if !in.terminal {
		return in.file.Close()
	}
	eof, lines := byte(4), true
	if raw, err := in.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if settings, err := unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
				eof, lines = settings.Cc[unix.VEOF], settings.Lflag&unix.ICANON != 0
			}
		})
	}
	keys := []byte{eof}
	if lines && in.offset > 0 && in.last != '\n' && in.last != '\r' {
		keys = append(keys, eof)
	}
	_, err := in.put(ctx, keys)
	return err
}
