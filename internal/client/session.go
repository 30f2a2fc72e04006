package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// startFor is how long a session tries to reach the box before anything has come of it.
	startFor = 5 * time.Second
	// wakeFor is how long it waits for a box that is coming up.
	wakeFor = 5 * time.Minute
	// defaultReconnect is how long it tries once the process runs.
	defaultReconnect = 5 * time.Minute
	// silence is how long a stream may say nothing, not even keep-alive, before it counts as broken.
	silence = time.Minute
)

// session is one Exec or Attach across its connections. The goroutine of run owns every field; the
// forwarding goroutines, started when the process is known, only read client, box, process and streams.
type session struct {
	client  *Client
	box     string
	streams Streams
	start   *carrelv1.StartProcessRequest // nil for Attach

	process string
	offsets [3]int64 // next byte wanted, by carrelv1.Stream
	input   int64    // first byte of input that was not given yet
	writer  string   // names this session's input beside that of others
	exited  *carrelv1.Process
	lost    int64 // bytes of output
	down    bool  // OnLink has heard of a broken connection

	fail       context.CancelCauseFunc // ends the session with an error, from any goroutine
	ended      chan struct{}           // closed when the process has ended or the session is over
	forwarding sync.WaitGroup
}

func newSession(c *Client, box string, streams Streams) *session {
	if streams.Stdout == nil {
		streams.Stdout = io.Discard
	}
	if streams.Stderr == nil {
		streams.Stderr = io.Discard
	}
	if streams.ReconnectFor == 0 {
		streams.ReconnectFor = defaultReconnect
	}
	return &session{client: c, box: box, streams: streams, writer: newRequestID(), ended: make(chan struct{})}
}

// writeError marks errors of the caller's own writers.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

func (s *session) run(ctx context.Context) (ExitStatus, error) {
	ctx, fail := context.WithCancelCause(ctx)
	s.fail = fail
	defer s.forwarding.Wait()
	defer fail(nil)
	defer close(s.ended)

	if s.process != "" {
		s.forward(ctx)
	}
	waits := newRetries()
	var downSince time.Time
	for {
		before, known := s.offsets, s.process != ""
		err := s.connection(ctx)
		if s.exited != nil {
			return s.status(), nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return s.status(), cause
		}
		var write writeError
		if errors.As(err, &write) {
			return s.status(), write.error
		}
		if s.offsets != before || (s.process != "") != known {
			downSince = time.Time{} // it got somewhere
			waits.Reset()
		}
		if !s.worthRetrying(err) {
			return s.status(), err
		}
		now := s.client.now()
		if downSince.IsZero() {
			downSince = now
		}
		patience := startFor
		if carrel.ReasonOf(err) == ReasonBoxNotUp {
			patience = wakeFor
		}
		if s.process != "" {
			patience = s.streams.ReconnectFor
		}
		if now.Sub(downSince) >= patience {
			return s.status(), s.giveUp(err)
		}
		if s.process != "" && !s.down && s.streams.OnLink != nil {
			s.streams.OnLink(LinkDown, err)
			s.down = true
		}
		select {
		case <-time.After(waits.after(err)):
		case <-ctx.Done():
			return s.status(), context.Cause(ctx)
		}
	}
}

// worthRetrying reports whether another connection may go on where this one ended. A box that is not
// running ends a session that has not begun; one that has begun waits for the box to be resumed.
func (s *session) worthRetrying(err error) bool {
	if broken(err) || outdated(err) {
		return true
	}
	return s.process != "" && carrel.ReasonOf(err) == ReasonBoxNotRunning
}

func (s *session) giveUp(err error) error {
	if s.process == "" {
		return err
	}
	return &carrel.Error{Code: carrel.CodeOf(err), Reason: "session_lost", Cause: err,
		Metadata: map[string]string{"process": s.process},
		Message: fmt.Sprintf("the connection to process %s was lost and could not be made again (%s). The process goes on as long as its box does: `carrel attach %s %s` joins it.",
			s.process, messageOf(err), s.box, s.process)}
}

func messageOf(err error) string {
	var e *carrel.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

func (s *session) status() ExitStatus {
	if s.exited == nil {
		return ExitStatus{Process: s.process, Running: s.process != "", Lost: s.lost}
	}
	return ExitStatus{
		Process: s.process, Code: int(s.exited.GetExitCode()),
		Signal: s.exited.GetExitSignal(), EndedBy: s.exited.GetEndedBy(), Lost: s.lost,
	}
}

// errCut says that a stream ended without the process's end.
var errCut = carrel.Errorf(carrel.CodeUnavailable, "stream_cut", "the connection was cut")

// connection opens one stream and follows it to its end. nil means that the process has ended.
func (s *session) connection(ctx context.Context) error {
	if s.process == "" { // one that runs may well be paused
		ctx = Arriving(ctx)
	}
	ticket, err := s.client.admission(ctx, s.box)
	if err != nil {
		return err
	}
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()

	var stream *connect.ServerStreamForClient[carrelv1.ProcessEvent]
	if s.process == "" {
		s.start.Box = ticket.Box
		stream, err = s.client.Processes.RunProcess(streamCtx, withTicket(s.start, ticket))
	} else {
		stream, err = s.client.Processes.AttachProcess(streamCtx, withTicket(&carrelv1.AttachProcessRequest{
			Box: ticket.Box, Process: s.process,
			StdoutOffset: s.offsets[carrelv1.Stream_STREAM_STDOUT],
			StderrOffset: s.offsets[carrelv1.Stream_STREAM_STDERR],
		}, ticket))
	}
	if err == nil {
		defer stream.Close()
		for stream.Receive() {
			watchdog.Stop() // writing may take as long as it likes
			if err := s.event(ctx, stream.Msg()); err != nil {
				return err
			}
			if s.exited != nil {
				return nil
			}
			watchdog.Reset(silence)
		}
		err = stream.Err()
	}
	if s.client.refused(ctx, s.box, ticket, err) && !outdated(err) {
		return errCut
	} else if s.process == "" && s.client.another(ctx, s.box, ticket, err) {
		return errCut // to begin anew in that one
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return errCut // run looks at its own context first
	}
	return err
}

func (s *session) event(ctx context.Context, event *carrelv1.ProcessEvent) error {
	if s.down {
		s.down = false
		s.streams.OnLink(LinkUp, nil)
	}
	switch e := event.GetEvent().(type) {
	case *carrelv1.ProcessEvent_Started:
		s.started(ctx, e.Started)
	case *carrelv1.ProcessEvent_Output:
		return s.output(e.Output)
	case *carrelv1.ProcessEvent_Gap:
		return s.gap(e.Gap.GetStream(), e.Gap.GetNextOffset())
	case *carrelv1.ProcessEvent_Exited:
		s.exited = e.Exited
		if s.process == "" {
			s.process = e.Exited.GetId()
		}
	}
	return nil
}

func (s *session) started(ctx context.Context, process *carrelv1.Process) {
	if s.process == "" { // a stream that was made again says it again
		s.process = process.GetId()
		s.forward(ctx)
	}
	if s.streams.OnStarted != nil {
		s.streams.OnStarted(process)
		s.streams.OnStarted = nil
	}
}

func (s *session) output(o *carrelv1.Output) error {
	stream := o.GetStream()
	if stream != carrelv1.Stream_STREAM_STDOUT && stream != carrelv1.Stream_STREAM_STDERR {
		return nil
	}
	next, data := &s.offsets[stream], o.GetData()
	if *next < 0 {
		*next = o.GetOffset() // from now on: this is where now was
	}
	switch skip := *next - o.GetOffset(); {
	case skip >= int64(len(data)):
		return nil // all of it was seen
	case skip > 0:
		data = data[skip:]
	case skip < 0:
		if err := s.gap(stream, o.GetOffset()); err != nil {
			return err
		}
	}
	w := s.streams.Stdout
	if stream == carrelv1.Stream_STREAM_STDERR {
		w = s.streams.Stderr
	}
	n, err := w.Write(data)
	*next += int64(n)
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return writeError{fmt.Errorf("write output of process %s: %w", s.process, err)}
	}
	return nil
}

func (s *session) gap(stream carrelv1.Stream, next int64) error {
	if stream != carrelv1.Stream_STREAM_STDOUT && stream != carrelv1.Stream_STREAM_STDERR {
		return nil
	}
	lost := next - max(s.offsets[stream], 0)
	if s.offsets[stream] >= 0 && lost <= 0 {
		return nil
	}
	s.offsets[stream] = next
	s.lost += lost
	if _, err := fmt.Fprintf(s.streams.Stderr, "\r\n[carrel: %d bytes of output are no longer kept]\r\n", lost); err != nil {
		return writeError{fmt.Errorf("write output of process %s: %w", s.process, err)}
	}
	return nil
}

// call makes one data-plane call, with a new ticket or again when the connection broke, for at most
// patience. f must be repeatable.
func (s *session) call(ctx context.Context, patience time.Duration, f func(context.Context, Ticket) error) error {
	waits := newRetries()
	start := s.client.now()
	for {
		ticket, err := s.client.admission(ctx, s.box)
		again := false
		if err == nil {
			if err = f(ctx, ticket); err == nil {
				return nil
			}
			if again = s.client.refused(ctx, s.box, ticket, err); !again && s.client.another(ctx, s.box, ticket, err) {
				continue
			}
		}
		limit := patience
		if carrel.ReasonOf(err) == ReasonBoxNotUp {
			limit = max(limit, wakeFor)
		}
		if !again && !s.worthRetrying(err) || s.client.now().Sub(start) >= limit {
			return err
		}
		select {
		case <-time.After(waits.after(err)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
