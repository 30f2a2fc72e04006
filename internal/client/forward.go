package client

import (
	"context"
	"errors"
	"io"
	"time"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	inputChunk = 64 << 10
	inputAhead = 4         // pieces read from Stdin while a write is under way
	maxInput   = 512 << 10 // bytes in one WriteInput; the API takes 1 MiB
)

// forward starts carrying input, sizes and signals to the process, until the session is over.
func (s *session) forward(ctx context.Context) {
	if s.streams.Stdin != nil {
		s.forwarding.Go(func() { s.forwardInput(ctx) })
	}
	if s.streams.Resize != nil {
		s.forwarding.Go(func() { s.forwardSizes(ctx) })
	}
	if s.streams.Signals != nil {
		s.forwarding.Go(func() { s.forwardSignals(ctx) })
	}
}

// forwardInput gives Stdin to the process, every byte once: a write whose answer was lost is repeated
// at its offset, where the agent takes it only if it has not yet.
func (s *session) forwardInput(ctx context.Context) {
	pieces := make(chan piece, inputAhead)
	readerDone := make(chan struct{})
	go s.readInput(pieces, readerDone)
	defer s.endReader(readerDone)

	var pending []byte
	eof := false
	for !eof {
		// Wait for something, then take all that is there, so that fast input goes in large pieces.
		select {
		case p := <-pieces:
			pending, eof = append(pending, p.data...), p.eof
		case <-s.ended:
			return
		}
	more:
		for !eof && len(pending) < maxInput-inputChunk {
			select {
			case p := <-pieces:
				pending, eof = append(pending, p.data...), p.eof
			default:
				break more
			}
		}
		if !s.writeInput(ctx, pending, eof) {
			return
		}
		pending = pending[:0]
	}
}

// writeInput gives one piece to the process and reports whether more is welcome.
func (s *session) writeInput(ctx context.Context, data []byte, eof bool) bool {
	full := newBackOff(5*time.Millisecond, 250*time.Millisecond)
	for {
		var next int64
		err := s.call(ctx, s.streams.ReconnectFor, func(ctx context.Context, ticket Ticket) error {
			resp, err := s.client.Processes.WriteInput(ctx, withTicket(&carrelv1.WriteInputRequest{
				Box: ticket.Box, Process: s.process, Offset: s.input, Data: data, Eof: eof, Writer: s.writer,
			}, ticket))
			if err == nil {
				next = resp.Msg.GetNextOffset()
			}
			return err
		})
		if err != nil {
			switch carrel.CodeOf(err) {
			case carrel.CodePrecondition, carrel.CodeNotFound:
				return false // it reads no more, or is gone: the output stream tells the end
			}
			if ctx.Err() == nil {
				s.fail(err)
			}
			return false
		}
		taken := next - s.input
		if taken < 0 || taken > int64(len(data)) {
			s.fail(carrel.Errorf(carrel.CodeInternal, "bad_input_offset", "the box answered input with an offset that cannot be; the process goes on without this session"))
			return false
		}
		s.input, data = next, data[taken:]
		if len(data) == 0 {
			return true
		}
		if taken > 0 {
			full.Reset()
			continue
		}
		select { // its buffer is full: it is not reading
		case <-time.After(full.NextBackOff()):
		case <-s.ended:
			return false
		}
	}
}

// piece is what one Read gave, or the end of input.
type piece struct {
	data []byte
	eof  bool
}

// readInput reads Stdin until it or the session ends.
func (s *session) readInput(pieces chan<- piece, done chan<- struct{}) {
	defer close(done)
	for {
		chunk := make([]byte, inputChunk)
		n, err := s.streams.Stdin.Read(chunk)
		if err != nil && !errors.Is(err, io.EOF) {
			select {
			case <-s.ended: // called back by endReader
			default:
				failed := carrel.Errorf(carrel.CodeAborted, "stdin_unreadable", "standard input could not be read: %v", err)
				failed.Cause = err // the end of the caller's context, perhaps, of which Stdin may hear first
				s.fail(failed)
			}
			return
		}
		select {
		case pieces <- piece{chunk[:n], err != nil}:
		case <-s.ended:
			return
		}
		if err != nil {
			return
		}
	}
}

// endReader calls back a Read that is waiting and waits for it, where Stdin is of a kind that can be
// called back.
func (s *session) endReader(done <-chan struct{}) {
	select {
	case <-done:
		return
	default:
	}
	d, ok := s.streams.Stdin.(interface{ SetReadDeadline(time.Time) error })
	if !ok || d.SetReadDeadline(time.Unix(1, 0)) != nil {
		return
	}
	<-done
	_ = d.SetReadDeadline(time.Time{})
}

func (s *session) forwardSizes(ctx context.Context) {
	for {
		select {
		case size, ok := <-s.streams.Resize:
			if !ok {
				return
			}
			// A size that could not be told is not worth a session: the next one will be.
			_ = s.call(ctx, startFor, func(ctx context.Context, ticket Ticket) error {
				_, err := s.client.Processes.ResizeProcess(ctx, withTicket(&carrelv1.ResizeProcessRequest{
					Box: ticket.Box, Process: s.process,
					Size: &carrelv1.TerminalSize{Rows: uint32(size.Rows), Cols: uint32(size.Cols)},
				}, ticket))
				return err
			})
		case <-s.ended:
			return
		}
	}
}

func (s *session) forwardSignals(ctx context.Context) {
	for {
		select {
		case signal, ok := <-s.streams.Signals:
			if !ok {
				return
			}
			// The process may have ended meanwhile, which the output stream tells.
			_ = s.call(ctx, s.streams.ReconnectFor, func(ctx context.Context, ticket Ticket) error {
				_, err := s.client.Processes.SignalProcess(ctx, withTicket(&carrelv1.SignalProcessRequest{
					Box: ticket.Box, Process: s.process, Signal: signal,
				}, ticket))
				return err
			})
		case <-s.ended:
			return
		}
	}
}
