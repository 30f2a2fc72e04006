package client

import (
	"context"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// TerminalSize is in characters.
type TerminalSize struct {
	Rows, Cols uint16
}

// Link says how a session's connection is.
type Link int

const (
	LinkUp   Link = iota // output flows
	LinkDown             // broken; a new one is tried until ReconnectFor is over
)

// Streams is what a session carries besides the command itself. Every field may be left empty.
type Streams struct {
	// Stdin is sent to the process until it ends. A Read that is waiting when the process
	// ends is left behind, unless Stdin has SetReadDeadline that works: nobody can call it back.
	Stdin io.Reader
	// Stdout and Stderr get the output in order. A Write that takes long holds this session up and
	// nobody else. A failing Write ends the session with its error; the process goes on.
	Stdout, Stderr io.Writer
	// Resize and Signals are forwarded as they come; signals are names without SIG, such as "TERM".
	// Neither has to be closed.
	Resize  <-chan TerminalSize
	Signals <-chan string
	// ReconnectFor is how long a broken connection is tried again; default 5 minutes, negative: never.
	ReconnectFor time.Duration
	// OnLink is called, from the session's goroutine, when the connection broke and when it is back.
	// err says why it broke.
	OnLink func(state Link, err error)
	// OnStarted is called once, when the process is known.
	OnStarted func(*carrelv1.Process)
}

// ExecOptions is one command in one box.
type ExecOptions struct {
	Streams
	Box  string // id or name
	Args []string
	Env  map[string]string
	Cwd  string
	User string
	// Pty, if set, runs the command on a terminal of that size; its output is all on Stdout.
	Pty *TerminalSize
	// Detach starts the command and answers at once.
	Detach bool
}

// AttachOptions joins a process that runs or has run.
type AttachOptions struct {
	Streams
	Box     string
	Process string
	// First byte wanted of each stream; -1: only what comes from now on.
	StdoutOffset, StderrOffset int64
}

// ExitStatus is how a session ended.
type ExitStatus struct {
	// Process is the process's id.
	Process string
	// Running: the session was detached, the process goes on; the fields below mean nothing.
	Running bool
	// Code is from 0 to 255; 128+N when signal N ended it.
	Code int
	// Signal names the signal that ended it, such as "KILL", or is empty.
	Signal string
	// EndedBy says why the platform ended it, such as "memory", or is empty.
	EndedBy string
	// Lost is how many bytes of output, from the offsets asked for on, were not kept any more when they were
	// asked for: a box keeps the last of what a process wrote. A session that was never cut loses nothing.
	Lost int64
}

// Exec runs a command in a box and carries its streams until it has ended. From the moment that the
// server took the command it is run exactly once, whatever happens to the connection: a broken one is
// made anew and goes on at the byte where it broke, also while control is away. The error is a
// *carrel.Error, the end of ctx (the process goes on), or that of a Write to Stdout or Stderr.
func (c *Client) Exec(ctx context.Context, o ExecOptions) (ExitStatus, error) {
	if len(o.Args) == 0 {
		return ExitStatus{}, carrel.Errorf(carrel.CodeInvalid, "no_command", "no command was given to run in the box")
	}
	start := &carrelv1.StartProcessRequest{
		Args: o.Args, Env: o.Env, Cwd: o.Cwd, User: o.User,
		Stdin: o.Stdin != nil, RequestId: newRequestID(),
	}
	if o.Pty != nil {
		start.Pty = &carrelv1.TerminalSize{Rows: uint32(o.Pty.Rows), Cols: uint32(o.Pty.Cols)}
	}
	s := newSession(c, o.Box, o.Streams)
	if o.Detach {
		start.Stdin = false
		var process *carrelv1.Process
		err := s.call(Arriving(ctx), startFor, func(ctx context.Context, ticket Ticket) error {
			start.Box = ticket.Box
			resp, err := c.Processes.StartProcess(ctx, withTicket(start, ticket))
			if err == nil {
				process = resp.Msg
			}
			return err
		})
		if err != nil {
			return ExitStatus{}, err
		}
		return ExitStatus{Process: process.GetId(), Running: true}, nil
	}
	s.start = start
	return s.run(ctx)
}

// Attach shows a process's output from the offsets on and carries input to it, beside what others give it, until it has ended; the
// rest is as for Exec.
func (c *Client) Attach(ctx context.Context, o AttachOptions) (ExitStatus, error) {
	s := newSession(c, o.Box, o.Streams)
	s.process = o.Process
	s.offsets[carrelv1.Stream_STREAM_STDOUT] = o.StdoutOffset
	s.offsets[carrelv1.Stream_STREAM_STDERR] = o.StderrOffset
	return s.run(ctx)
}

// ListProcesses lists the processes that the box's agent remembers.
func (c *Client) ListProcesses(ctx context.Context, box string) ([]*carrelv1.Process, error) {
	var list []*carrelv1.Process
	err := newSession(c, box, Streams{}).call(ctx, startFor, func(ctx context.Context, ticket Ticket) error {
		resp, err := c.Processes.ListProcesses(ctx, withTicket(&carrelv1.ListProcessesRequest{Box: ticket.Box}, ticket))
		if err == nil {
			list = resp.Msg.GetProcesses()
		}
		return err
	})
	return list, err
}

// GetProcess shows one process.
func (c *Client) GetProcess(ctx context.Context, box, process string) (*carrelv1.Process, error) {
	var found *carrelv1.Process
	err := newSession(c, box, Streams{}).call(ctx, startFor, func(ctx context.Context, ticket Ticket) error {
		resp, err := c.Processes.GetProcess(ctx, withTicket(&carrelv1.GetProcessRequest{Box: ticket.Box, Process: process}, ticket))
		if err == nil {
			found = resp.Msg
		}
		return err
	})
	return found, err
}

// Signal sends a signal (a name without SIG) to a process and its group.
func (c *Client) Signal(ctx context.Context, box, process, signal string) error {
	return newSession(c, box, Streams{}).call(Arriving(ctx), startFor, func(ctx context.Context, ticket Ticket) error {
		_, err := c.Processes.SignalProcess(ctx, withTicket(&carrelv1.SignalProcessRequest{Box: ticket.Box, Process: process, Signal: signal}, ticket))
		return err
	})
}

// withTicket makes a request that goes with a ticket and not with the API token, if there is one.
func withTicket[T any](message *T, ticket Ticket) *connect.Request[T] {
	req := connect.NewRequest(message)
	ticket.show(req.Header())
	return req
}

// show puts the ticket into a header. Without one, who comes to use the box says so: that is a sign of presence.
func (t Ticket) show(header http.Header) {
	switch {
	case t.Token != "":
		header.Set("Authorization", "Bearer "+t.Token)
	case t.present:
		header.Set("Carrel-Activity", "exec")
	}
}
