package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/frame"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// sessionBuffer reads the frames of one session, in bytes, and sessionBulk input that comes in large pieces.
	sessionBuffer = 16 << 10
	sessionBulk   = 128 << 10
	// sessionStart is how long a connection may take to say what it wants.
	sessionStart = 10 * time.Second
)

// session is one connection that speaks package frame.
type session struct {
	a      *Agent
	conn   *boxConn
	in     *frame.Reader
	user   string
	writer string

	process *process
	viewer  *viewer
	input   *writerInput // nil: the process takes no input

	mu     sync.Mutex // guards writes
	header [frame.HeaderSize]byte
}

// serveSession carries one process until it or the connection ends.
func (a *Agent) serveSession(ctx context.Context, conn *boxConn) {
	ctx, cancel := context.WithCancel(ctx)
	s := &session{a: a, conn: conn, in: frame.NewReader(conn, sessionBuffer)}
	_ = conn.SetReadDeadline(time.Now().Add(sessionStart))
	err := s.open(ctx)
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		s.fail(err)
		cancel()
		conn.Close()
		return
	}
	defer s.viewer.leave()
	var parts sync.WaitGroup
	defer parts.Wait()
	if in := s.process.input; in != nil {
		s.input = &writerInput{
			in: in, ctx: ctx, parts: &parts, offset: s.process.writerOffset(s.writer),
			taken: func(n int64) { s.process.setWriterOffset(s.writer, n) }, tell: s.tell,
		}
	}
	defer cancel()
	defer conn.Close() // ends the reader
	if s.write(frame.Started, encode(s.process.show())) != nil {
		return
	}
	if s.tell(s.process.writerOffset(s.writer)) != nil {
		return
	}
	parts.Go(func() {
		defer cancel() // nobody looks any more
		s.read()
	})
	if err := s.follow(ctx); err != nil && ctx.Err() == nil {
		s.a.log.Debug("a session was broken off", "process", s.process.id, "error", err)
	}
}

// open reads the first frames and starts or finds the process.
func (s *session) open(ctx context.Context) error {
	for {
		kind, _, err := s.in.Next()
		if err != nil {
			return err
		}
		payload, err := s.in.Payload()
		if err != nil {
			return err
		}
		switch kind {
		case frame.User, frame.Writer:
			if len(payload) > frame.MaxName {
				return carrel.Errorf(carrel.CodeInvalid, "bad_session", "a name has more than %d bytes", frame.MaxName)
			}
			if kind == frame.User {
				s.user = printable(string(payload))
			} else {
				s.writer = hex.EncodeToString(payload)
			}
		case frame.Start:
			request := &carrelv1.StartProcessRequest{}
			if err := proto.Unmarshal(payload, request); err != nil {
				return carrel.Errorf(carrel.CodeInvalid, "bad_session", "the start of the session cannot be read: %v", err)
			}
			if s.process, s.viewer, err = s.a.startProcess(ctx, request, s.user, true); err == nil {
				s.process.own(s.viewer)
			}
			return err
		case frame.Attach:
			request := &carrelv1.AttachProcessRequest{}
			if err := proto.Unmarshal(payload, request); err != nil {
				return carrel.Errorf(carrel.CodeInvalid, "bad_session", "the start of the session cannot be read: %v", err)
			}
			if s.process, err = s.a.processes.get(request.GetProcess()); err != nil {
				return err
			}
			s.viewer, err = s.process.view([streams]int64{request.GetStdoutOffset(), request.GetStderrOffset()})
			return err
		default:
			return carrel.Errorf(carrel.CodeInvalid, "bad_session", "the first frames of a session are its user, its writer and what it wants; not %d", kind)
		}
	}
}

func encode(m proto.Message) []byte {
	data, err := proto.Marshal(m)
	if err != nil { // text that is not UTF-8
		return nil
	}
	return data
}

func (s *session) write(kind frame.Kind, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The raw connection: it takes both parts at once.
	return frame.Write(s.conn.Conn, s.header[:], kind, payload)
}

func (s *session) tell(offset int64) error { return s.write(frame.Taken, frame.Offset(offset)) }

// fail tells why there is no session.
func (s *session) fail(err error) {
	var known *carrel.Error
	if !errors.As(err, &known) {
		s.a.log.Warn("a session could not be opened", "error", err)
		known = carrel.Errorf(carrel.CodeUnavailable, "agent_failed", "the session could not be opened")
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = s.write(frame.Error, encode(&carrelv1.TerminalError{Code: connect.Code(known.Code).String(), Reason: known.Reason, Message: printable(known.Message)}))
}

// follow sends what the process writes, to its end.
func (s *session) follow(ctx context.Context) error {
	for {
		event, done, err := s.viewer.event(ctx, nil)
		if err != nil {
			return err
		}
		switch e := event.GetEvent().(type) {
		case *carrelv1.ProcessEvent_Output:
			kind := frame.Stdout
			if e.Output.GetStream() == carrelv1.Stream_STREAM_STDERR {
				kind = frame.Stderr
			}
			err = s.write(kind, e.Output.GetData())
		case *carrelv1.ProcessEvent_Gap:
			err = s.write(frame.Gap, encode(e.Gap))
		case *carrelv1.ProcessEvent_Exited:
			err = s.write(frame.Exited, encode(e.Exited))
		}
		if err != nil || done {
			return err
		}
	}
}

// read takes what the gateway sends until the connection ends or something in it is wrong.
func (s *session) read() {
	buf := make([]byte, sessionBuffer)
	for {
		kind, size, err := s.in.Next()
		if err != nil {
			return
		}
		switch kind {
		case frame.Input:
			if size > len(buf) {
				buf = make([]byte, sessionBulk)
			}
			for {
				n, err := s.in.Read(buf)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil || s.input != nil && !s.input.give(buf[:n]) {
					return
				}
			}
		case frame.EOF:
			if s.input != nil {
				s.input.end()
			}
		case frame.Resize, frame.Signal:
			payload, err := s.in.Payload()
			if err != nil || size > frame.MaxName {
				return
			}
			s.control(kind, payload)
		case frame.HangUp:
			s.a.hangUpSession(s.process)
		}
	}
}

// control changes the size of the terminal or sends a signal; a process that has ended is no error.
func (s *session) control(kind frame.Kind, payload []byte) {
	if kind == frame.Signal {
		_ = s.a.signalNamed(s.process, string(payload))
		return
	}
	rows, cols, err := frame.ParseSize(payload)
	if err != nil || s.process.command.pty == nil {
		return
	}
	if size, err := winsize(&carrelv1.TerminalSize{Rows: uint32(rows), Cols: uint32(cols)}); err == nil {
		_ = resize(s.process.input.file, size)
	}
}

// writerInput gives one writer's input to a process. What the process does not take at once is held, up to
// frame.Window, so that the reader never waits.
type writerInput struct {
	in    *input
	ctx   context.Context //nolint:containedctx // of the session, whose part this is
	parts *sync.WaitGroup
	taken func(int64)       // keeps the offset for the next connection
	tell  func(int64) error // tells it to the writer

	mu      sync.Mutex // guards what follows
	offset  int64      // of the next byte that the process takes
	told    int64
	held    []byte
	eof     bool
	feeding bool
}

// give takes input; false when there is more than may be.
func (w *writerInput) give(data []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.feeding {
		n := w.in.try(data)
		data = data[n:]
		w.advance(n)
		if len(data) == 0 {
			return true
		}
	}
	if len(w.held)+len(data) > frame.Window+sessionBuffer {
		return false
	}
	w.held = append(w.held, data...)
	w.feed()
	return true
}

// end closes the input behind what was given.
func (w *writerInput) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.eof = true
	w.feed()
}

// advance notes that n more bytes were taken. w.mu is held.
func (w *writerInput) advance(n int) {
	if n == 0 {
		return
	}
	w.offset += int64(n)
	w.taken(w.offset)
	if w.offset-w.told >= frame.AckEvery {
		w.told = w.offset
		// The answer may have to wait for output that nobody reads; input goes on without it.
		offset := w.offset
		w.parts.Go(func() { _ = w.tell(offset) })
	}
}

// feed gives what is held to the process, in the background. w.mu is held.
func (w *writerInput) feed() {
	if w.feeding {
		return
	}
	w.feeding = true
	w.parts.Go(func() {
		for {
			w.mu.Lock()
			data, eof := w.held[:min(len(w.held), frame.AckEvery)], w.eof
			w.held = w.held[len(data):]
			if len(data) == 0 && !eof {
				w.feeding, w.held = false, nil
				w.mu.Unlock()
				return
			}
			last := len(data) == 0
			if last {
				w.eof = false
			}
			w.mu.Unlock()
			n, err := w.in.add(w.ctx, data, last)
			w.mu.Lock()
			if err != nil && w.ctx.Err() == nil {
				n = len(data) // the process takes no more: the rest is thrown away, as a closed pipe would
			}
			w.advance(n)
			w.mu.Unlock()
			if w.ctx.Err() != nil {
				return
			}
		}
	})
}
