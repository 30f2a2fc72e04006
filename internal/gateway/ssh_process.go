package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/frame"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// sessionRead is what is read of a process's output at once, in bytes: the data of one SSH packet.
	sessionRead = 32 << 10
	// sessionFrames buffers what comes from the agent for one session, in bytes.
	sessionFrames = 4 << 10
	// sessionAnswer is how long an agent may take to start a process or to join one.
	sessionAnswer = 30 * time.Second
	// sessionPatience is how long a broken connection to a box that should run is tried again.
	sessionPatience = 5 * time.Minute
)

var sessionBuffers = sync.Pool{New: func() any { return new([sessionRead]byte) }}

// errOutputLost ends a session that cannot go on without a hole in what it carries.
var errOutputLost = carrel.Errorf(carrel.CodeAborted, "output_lost", "the connection to the box was broken for too long and a part of the output is lost")

// boxProcess is one process in a box and whoever looks at it, across the connections between gateway and agent: a broken
// one is made again, and what was lost on the way is sent again in both directions. Write, CloseInput, Resize,
// Signal and HangUp may be called from any goroutine; run once.
type boxProcess struct {
	// dial connects to the box's agent, target session. first is true until the process is known.
	dial  func(ctx context.Context, first bool) (net.Conn, error)
	user  carrel.UserID
	start *carrelv1.StartProcessRequest // nil: join the process id
	id    string
	// output takes what the process writes; a slow one holds up this session alone.
	output func(stream carrelv1.Stream, data []byte) error
	// started is told of the process, once.
	started func(*carrelv1.Process)
	// away is told when the connection to the box broke, with nil when it is back. It gives an error to end the session.
	away func(error) error
	// holes: output that is no longer kept is passed over with a mark, not an error; for terminals.
	holes bool

	writer  string
	offsets [3]int64 // next byte of output, by carrelv1.Stream; run's alone

	writing sync.Mutex // held by whoever writes to conn; taken before mu

	mu      sync.Mutex // guards what follows
	changed sync.Cond  // on mu: there is room in held, or the end
	conn    net.Conn   // nil: away
	held    []byte     // input that the process is not known to have taken
	base    int64      // offset of held[0]
	sent    int64      // offset of the next byte to send
	eof     bool
	eofSent bool
	size    *[2]uint16
	control []byte // frames of signals and the like
	over    bool
	frames  []byte // scratch of the writer; guarded by writing
}

func newBoxProcess(p *boxProcess) *boxProcess {
	p.writer = rand.Text()
	p.changed.L = &p.mu
	if p.start != nil {
		p.start.RequestId = p.writer // a start whose answer was lost is not repeated
	}
	return p
}

// run starts or joins the process and carries its streams until it has ended. The error is a *carrel.Error, one of
// output or away, or ctx's.
func (p *boxProcess) run(ctx context.Context) (*carrelv1.Process, error) {
	defer p.finish()
	wait, broken := 20*time.Millisecond, time.Time{}
	for {
		conn, r, err := p.connect(ctx)
		if err == nil {
			if !broken.IsZero() && p.away != nil {
				if err := p.away(nil); err != nil {
					return nil, err
				}
			}
			wait, broken = 20*time.Millisecond, time.Time{}
			var exited *carrelv1.Process
			exited, err = p.follow(ctx, conn, r)
			p.drop(conn)
			if exited != nil {
				return exited, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var link linkError
		if !errors.As(err, &link) {
			return nil, err
		}
		if broken.IsZero() {
			broken = time.Now()
		}
		if time.Since(broken) > sessionPatience {
			return nil, link.error
		}
		if p.away != nil && p.id != "" {
			if err := p.away(link.error); err != nil {
				return nil, err
			}
		} else if p.id == "" && time.Since(broken) > sshLostTime*10 {
			return nil, link.error
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// linkError is an error of the connection to the box; a new connection may help.
type linkError struct{ error }

func (e linkError) Unwrap() error { return e.error }

// connect makes a connection on which the process is known and input can flow.
func (p *boxProcess) connect(ctx context.Context) (net.Conn, *frame.Reader, error) {
	conn, err := p.dial(ctx, p.id == "")
	if err != nil {
		switch carrel.CodeOf(err) {
		case carrel.CodeUnavailable:
			return nil, nil, linkError{err}
		}
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, sessionAnswer)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	r, err := p.begin(conn)
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, r, nil
}

func (p *boxProcess) begin(conn net.Conn) (*frame.Reader, error) {
	first := frame.Append(frame.Append(nil, frame.User, []byte(p.user)), frame.Writer, []byte(p.writer))
	kind, message := frame.Start, proto.Message(p.start)
	if p.id != "" {
		kind, message = frame.Attach, &carrelv1.AttachProcessRequest{
			Process: p.id, StdoutOffset: p.offsets[carrelv1.Stream_STREAM_STDOUT], StderrOffset: p.offsets[carrelv1.Stream_STREAM_STDERR],
		}
	}
	payload, err := proto.Marshal(message)
	if err != nil {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_command", "the command is not text in UTF-8")
	}
	if len(payload) > frame.MaxPayload {
		return nil, carrel.Errorf(carrel.CodeInvalid, "arguments_too_large", "the command and its environment are too large")
	}
	if _, err := conn.Write(frame.Append(first, kind, payload)); err != nil {
		return nil, linkError{err}
	}
	r := frame.NewReader(conn, sessionFrames)
	process := &carrelv1.Process{}
	if err := expect(r, frame.Started, process); err != nil {
		return nil, err
	}
	kind, _, err = r.Next()
	if err != nil {
		return nil, linkError{err}
	}
	payload, err = r.Payload()
	taken, offsetErr := frame.ParseOffset(payload)
	if kind != frame.Taken || err != nil || offsetErr != nil {
		return nil, errAgentSpeech
	}
	if p.id == "" {
		p.id = process.GetId()
	}
	if p.started != nil {
		p.started(process)
		p.started = nil
	}
	return r, p.joined(conn, taken)
}

var errAgentSpeech = carrel.Errorf(carrel.CodeUnavailable, "agent_failed", "the agent in the box answers in a way that is not understood")

// expect reads a message of a kind, or the error that the agent has in its place.
func expect(r *frame.Reader, kind frame.Kind, message proto.Message) error {
	got, _, err := r.Next()
	if err != nil {
		return linkError{err}
	}
	payload, err := r.Payload()
	if err != nil {
		return linkError{err}
	}
	if got == frame.Error {
		return agentRefusal(payload)
	}
	if got != kind || proto.Unmarshal(payload, message) != nil {
		return errAgentSpeech
	}
	return nil
}

// agentRefusal is an error as the agent, and so anybody who is root in the box, says it.
func agentRefusal(payload []byte) error {
	said := &carrelv1.TerminalError{}
	if proto.Unmarshal(payload, said) != nil {
		return errAgentSpeech
	}
	e := carrel.Errorf(carrel.CodeUnavailable, "agent_refused", "%s", clip(said.GetMessage()))
	var code connect.Code
	if code.UnmarshalText([]byte(said.GetCode())) == nil {
		e.Code = carrel.Code(code)
	}
	if reason := said.GetReason(); len(reason) <= 64 {
		e.Reason = reason
	}
	if e.Code == carrel.CodeUnavailable {
		return linkError{e} // such as a box that is just being paused
	}
	return e
}

// joined lets input flow over a new connection, from what the process has taken on.
func (p *boxProcess) joined(conn net.Conn, taken int64) error {
	p.mu.Lock()
	if taken < p.base || taken > p.base+int64(len(p.held)) {
		p.mu.Unlock()
		return carrel.Errorf(carrel.CodeAborted, "input_lost", "the connection to the box was broken and a part of the input is lost")
	}
	p.trim(taken)
	p.sent, p.eofSent, p.conn = taken, false, conn
	p.mu.Unlock()
	go p.flush() // what waits; it ends with the connection at the latest
	return nil
}

// drop gives up a connection.
func (p *boxProcess) drop(conn net.Conn) {
	_ = conn.Close()
	p.mu.Lock()
	if p.conn == conn {
		p.conn = nil
	}
	p.mu.Unlock()
}

// finish ends everything that waits.
func (p *boxProcess) finish() {
	p.mu.Lock()
	p.over, p.held, p.control = true, nil, nil
	p.changed.Broadcast()
	p.mu.Unlock()
}

// trim forgets input that was taken. p.mu is held.
func (p *boxProcess) trim(taken int64) {
	if n := taken - p.base; n > 0 {
		p.held = p.held[min(n, int64(len(p.held))):]
		p.base = taken
		if len(p.held) == 0 {
			p.held = nil
		}
		p.changed.Broadcast()
	}
}

// follow carries output until the process or the connection ends.
func (p *boxProcess) follow(ctx context.Context, conn net.Conn, r *frame.Reader) (*carrelv1.Process, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	for {
		kind, _, err := r.Next()
		if err != nil {
			return nil, linkError{fmt.Errorf("follow process: %w", err)}
		}
		switch kind {
		case frame.Stdout:
			err = p.pass(r, carrelv1.Stream_STREAM_STDOUT)
		case frame.Stderr:
			err = p.pass(r, carrelv1.Stream_STREAM_STDERR)
		case frame.Gap:
			err = p.gap(r)
		case frame.Taken:
			var payload []byte
			if payload, err = r.Payload(); err == nil {
				var taken int64
				if taken, err = frame.ParseOffset(payload); err == nil {
					p.mu.Lock()
					if taken <= p.sent {
						p.trim(taken)
					}
					p.mu.Unlock()
					p.flush()
				}
			}
		case frame.Exited:
			exited := &carrelv1.Process{}
			payload, err := r.Payload()
			if err != nil || proto.Unmarshal(payload, exited) != nil {
				return nil, linkError{errAgentSpeech}
			}
			return exited, nil
		default: // of a newer agent
		}
		if err != nil {
			return nil, err
		}
	}
}

// pass gives the payload of one frame to output.
func (p *boxProcess) pass(r *frame.Reader, stream carrelv1.Stream) error {
	buf := sessionBuffers.Get().(*[sessionRead]byte)
	defer sessionBuffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return linkError{err}
		}
		p.offsets[stream] += int64(n)
		if err := p.output(stream, buf[:n]); err != nil {
			return err
		}
	}
}

func (p *boxProcess) gap(r *frame.Reader) error {
	payload, err := r.Payload()
	if err != nil {
		return linkError{err}
	}
	gap := &carrelv1.Gap{}
	if proto.Unmarshal(payload, gap) != nil {
		return errAgentSpeech
	}
	stream := gap.GetStream()
	if stream != carrelv1.Stream_STREAM_STDOUT && stream != carrelv1.Stream_STREAM_STDERR {
		return errAgentSpeech
	}
	lost := gap.GetNextOffset() - p.offsets[stream]
	p.offsets[stream] = gap.GetNextOffset()
	switch {
	case lost <= 0:
		return nil
	case !p.holes:
		return errOutputLost
	}
	return p.output(stream, fmt.Appendf(nil, "\r\n[carrel: %d bytes of output are no longer kept]\r\n", lost))
}

// Write gives input to the process. It waits while more than the window is on its way; after the end it throws away.
func (p *boxProcess) Write(data []byte) (int, error) {
	written := len(data)
	for len(data) > 0 {
		p.mu.Lock()
		for len(p.held) >= frame.Window && !p.over {
			p.changed.Wait()
		}
		if p.over {
			p.mu.Unlock()
			return written, nil
		}
		n := min(len(data), frame.Window-len(p.held))
		p.held = append(p.held, data[:n]...)
		p.mu.Unlock()
		data = data[n:]
		p.flush()
	}
	return written, nil
}

// CloseInput tells the process that its input has ended.
func (p *boxProcess) CloseInput() {
	p.mu.Lock()
	p.eof = true
	p.mu.Unlock()
	p.flush()
}

// Resize tells the process's terminal its size. It does not wait.
func (p *boxProcess) Resize(size [2]uint16) {
	p.mu.Lock()
	p.size = &size
	p.mu.Unlock()
	go p.flush() // it ends with the connection at the latest
}

// Signal sends a signal. It does not wait.
func (p *boxProcess) Signal(name string) { p.send(frame.Signal, name) }

// HangUp tells the agent that the user has gone for good. It does not wait.
func (p *boxProcess) HangUp() { p.send(frame.HangUp, "") }

func (p *boxProcess) send(kind frame.Kind, payload string) {
	p.mu.Lock()
	if len(p.control) < 4<<10 && !p.over {
		p.control = frame.Append(p.control, kind, []byte(payload))
	}
	p.mu.Unlock()
	go p.flush() // it ends with the connection at the latest
}

// flush writes what waits. Whoever finds another one writing leaves its own to that one.
func (p *boxProcess) flush() {
	for p.writing.TryLock() {
		conn, frames := p.next()
		if len(frames) > 0 {
			if _, err := conn.Write(frames); err != nil {
				_ = conn.Close() // follow notices and connects again
				p.drop(conn)
			}
		}
		p.writing.Unlock()
		p.mu.Lock()
		more := p.waits()
		p.mu.Unlock()
		if !more {
			return
		}
	}
}

// waits reports whether something can be sent. p.mu is held.
func (p *boxProcess) waits() bool {
	return p.conn != nil && (p.sent < p.base+int64(len(p.held)) || p.eof && !p.eofSent || p.size != nil || len(p.control) > 0)
}

// next takes what is to be sent now. p.writing is held.
func (p *boxProcess) next() (net.Conn, []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.waits() {
		return nil, nil
	}
	b := append(p.frames[:0], p.control...)
	p.control = nil
	if p.size != nil {
		b = frame.Append(b, frame.Resize, frame.Size(p.size[0], p.size[1]))
		p.size = nil
	}
	data := p.held[p.sent-p.base:]
	data = data[:min(len(data), 4*sessionRead)]
	if len(data) > 0 {
		b = frame.Append(b, frame.Input, data)
		p.sent += int64(len(data))
	}
	if p.eof && !p.eofSent && p.sent == p.base+int64(len(p.held)) {
		b = frame.Append(b, frame.EOF, nil)
		p.eofSent = true
	}
	p.frames = b
	if cap(b) > 8*sessionRead { // a large paste does not stay for the life of the session
		p.frames = nil
	}
	return p.conn, b
}

// typed reports whether input waits that could not be sent.
func (p *boxProcess) typed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.held) > 0
}

// printable makes text of a box fit for a terminal.
func printableLine(text string) string {
	return clip(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, text))
}
