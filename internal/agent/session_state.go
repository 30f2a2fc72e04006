package agent

import (
	"context"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

// maxWriters is of how many writers a process remembers how much it took of their input.
const maxWriters = 64

// sessionState is what a process keeps for those who speak package frame.
type sessionState struct {
	files spawned // set before the process is shown to anyone

	mu      sync.Mutex       // guards offsets
	offsets map[string]int64 // by writer
}

func (p *process) writerOffset(writer string) int64 {
	p.session.mu.Lock()
	defer p.session.mu.Unlock()
	return p.session.offsets[writer]
}

func (p *process) setWriterOffset(writer string, offset int64) {
	p.session.mu.Lock()
	defer p.session.mu.Unlock()
	if p.session.offsets == nil {
		p.session.offsets = map[string]int64{}
	}
	if _, known := p.session.offsets[writer]; !known && len(p.session.offsets) >= maxWriters {
		clear(p.session.offsets)
	}
	p.session.offsets[writer] = offset
}

// own makes v the owner of a process, which then waits for it. A session without a terminal is waited for like a pipe is.
func (p *process) own(v *viewer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.command.pty != nil && p.owner == nil && p.viewers == 1 {
		p.owner = v
	}
	if p.command.pty == nil && p.owner == v {
		v.steady = true
	}
}

// hangUpSession ends a process as the end of a login does: what is on a terminal is hung up, and a program without one finds its
// input at the end and nobody who reads its output.
func (a *Agent) hangUpSession(p *process) {
	if p.command.pty != nil {
		if err := a.hangUp(p); err == nil {
			p.input.file.Close()
		}
		return
	}
	p.session.files.close()
}

// signalNamed sends a signal to the process group of p; name may have SIG before it.
func (a *Agent) signalNamed(p *process, name string) error {
	number := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if number == 0 {
		return carrel.Errorf(carrel.CodeInvalid, "bad_signal", "%q is no signal; use a name such as TERM, INT or KILL", name)
	}
	return a.reaper.signal(p.pid, number)
}

// try gives as much of data to the process as it takes without waiting.
func (in *input) try(data []byte) int {
	select {
	case <-in.turn:
		defer func() { in.turn <- struct{}{} }()
	default:
		return 0
	}
	if len(data) == 0 || in.ended && !in.terminal {
		return 0
	}
	raw, err := in.file.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = raw.Write(func(fd uintptr) bool {
		n, _ = writeNow(int(fd), data)
		return true
	})
	in.advance(data[:n])
	return n
}

// add gives data to the process behind everything that it was given before, waits until all is taken or ctx ends, and
// tells how much was. With eof the input is closed behind it.
func (in *input) add(ctx context.Context, data []byte, eof bool) (int, error) {
	select {
	case <-in.turn:
		defer func() { in.turn <- struct{}{} }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if in.ended && !in.terminal {
		return 0, carrel.Errorf(carrel.CodePrecondition, "input_closed", "the standard input of the process was closed at offset %d", in.offset)
	}
	n := 0
	if len(data) > 0 {
		var err error
		n, err = in.put(ctx, data)
		in.advance(data[:n])
		if err != nil {
			return n, err
		}
	}
	if !eof {
		return n, nil
	}
	in.ended = true
	return n, in.end(ctx)
}

// advance notes what was taken. The caller has the turn.
func (in *input) advance(data []byte) {
	if len(data) == 0 {
		return
	}
	in.ended = false
	in.offset += int64(len(data))
	in.count.Store(in.offset)
	in.last = data[len(data)-1]
}
