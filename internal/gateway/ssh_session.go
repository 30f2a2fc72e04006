package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// sftpServer is the agent's own, in every box.
	sftpServer = "/.carrel/bin/carrel-agent"
	// keepCommand is how long a command without a terminal waits for a broken connection to be made again.
	keepCommand = time.Minute
	// defaultKeepShell is how long a shell is kept where the template says nothing.
	defaultKeepShell = 10 * time.Minute
	// pausedLook is how often it is looked whether a box that was paused under a session is back, or gone for good.
	pausedLook = 10 * time.Second
	// hangUpTime is how long the end of a process that was hung up is waited for.
	hangUpTime = 2 * time.Second
	// feedRead is how much input is taken at once of those who send much, in bytes: what leaves together costs the box one wake-up.
	feedRead = 4 * sessionRead
	// sshFailed is the exit status for what goes wrong on Carrel's side, as ssh itself has it.
	sshFailed = 255
)

// sshSession is one session channel.
type sshSession struct {
	c       *sshConn
	ch      ssh.Channel
	closed  chan struct{} // closed when the channel has ended
	env     map[string]string
	pty     *ptyPayload
	agent   bool // the client's SSH agent is to be reached from the box
	command string
	sftp    bool

	mu      sync.Mutex // guards what follows
	process *boxProcess
	size    [2]uint16
}

// session serves one session channel to its end.
func (c *sshConn) session(ctx context.Context, channel ssh.NewChannel) {
	if c.closed.Load() {
		_ = channel.Reject(ssh.Prohibited, "you have said that there would be no more sessions")
		return
	}
	ch, requests, err := channel.Accept()
	if err != nil {
		return
	}
	c.first.Store(true)
	s := &sshSession{c: c, ch: ch, closed: make(chan struct{}), env: map[string]string{}}
	// Requests are read to the end whatever the session does: the library would stop every channel.
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := false
	for request := range requests {
		ok, begin := s.request(request, began)
		_ = request.Reply(ok, nil)
		if begin {
			began = true
			running.Go(func() { s.run(ctx) })
		}
	}
	close(s.closed)
	running.Wait()
	_ = ch.Close() // a session that never began
}

// request answers one request; begin says that everything for the start is there.
func (s *sshSession) request(request *ssh.Request, began bool) (ok, begin bool) {
	switch request.Type {
	case "env":
		return !began && s.setEnv(request.Payload), false
	case "pty-req":
		p, err := parsePayload[ptyPayload](request.Payload)
		if err != nil || began || s.pty != nil || s.c.proof.noPTY {
			return false, false
		}
		s.pty, s.size = &p, terminalSize(p.Rows, p.Columns)
		return true, false
	case "window-change":
		p, err := parsePayload[sizePayload](request.Payload)
		if err != nil || s.pty == nil {
			return false, false
		}
		s.resize(terminalSize(p.Rows, p.Columns))
		return true, false
	case "signal":
		p, err := parsePayload[textPayload](request.Payload)
		name := signalFromWire(p.Text)
		if err != nil || name == "" {
			return false, false
		}
		if process := s.running(); process != nil {
			process.Signal(name)
		}
		return true, false
	case "auth-agent-req@openssh.com":
		if began || s.c.proof.noAgent {
			return false, false
		}
		s.agent = true
		return true, false
	case "shell", "exec", "subsystem":
		if began {
			return false, false
		}
		return s.setCommand(request)
	}
	return false, false // x11-req among them: a client says that X11 is refused and goes on
}

func (s *sshSession) setEnv(payload []byte) bool {
	p, err := parsePayload[envPayload](payload)
	if err != nil || len(s.env) >= maxSSHEnv || len(p.Value) > maxSSHValue || !envAllowed(p.Name, s.c.proof.command != "") {
		return false
	}
	if carrel.ValidateEnv(map[string]string{p.Name: p.Value}) != nil {
		return false
	}
	s.env[p.Name] = p.Value
	return true
}

func (s *sshSession) setCommand(request *ssh.Request) (ok, begin bool) {
	wanted := ""
	if request.Type != "shell" {
		p, err := parsePayload[textPayload](request.Payload)
		if err != nil || len(p.Text) > maxSSHText || strings.ContainsRune(p.Text, 0) {
			return false, false
		}
		wanted = p.Text
		if request.Type == "subsystem" && wanted != "sftp" {
			return false, false
		}
	}
	if forced := s.c.proof.command; forced != "" {
		s.env["SSH_ORIGINAL_COMMAND"] = wanted
		s.command = forced
		return true, true
	}
	s.sftp = request.Type == "subsystem"
	s.command = wanted
	if s.sftp {
		s.command = ""
	}
	return true, true
}

func (s *sshSession) resize(size [2]uint16) {
	s.mu.Lock()
	s.size = size
	process := s.process
	s.mu.Unlock()
	if process != nil {
		process.Resize(size)
	}
}

func (s *sshSession) running() *boxProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// say shows a line to a person at a terminal; programs get nothing but what they asked for.
func (s *sshSession) say(format string, args ...any) {
	if s.pty != nil {
		_, _ = fmt.Fprintf(s.ch.Stderr(), "[carrel: %s]\r\n", printableLine(fmt.Sprintf(format, args...)))
	}
}

// run carries what the session is for, and ends the channel.
func (s *sshSession) run(ctx context.Context) {
	exited, err := s.carry(ctx)
	switch {
	case err != nil:
		select {
		case <-s.closed: // nobody hears it
		default:
			end := "\n"
			if s.pty != nil {
				end = "\r\n"
			}
			_, _ = io.WriteString(s.ch.Stderr(), "carrel: "+printableLine(s.c.sayError(err))+end)
			_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{sshFailed}))
		}
	case exited.GetExitSignal() != "":
		if by := exited.GetEndedBy(); by != "" {
			_, _ = fmt.Fprintf(s.ch.Stderr(), "carrel: the command was ended by the platform: %s\r\n", printableLine(by))
		}
		_, _ = s.ch.SendRequest("exit-signal", false, ssh.Marshal(exitSignal{Signal: signalToWire(printableLine(exited.GetExitSignal())), Language: "en"}))
	case exited != nil:
		_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{uint32(uint8(exited.GetExitCode()))}))
	}
	_ = s.ch.CloseWrite()
	_ = s.ch.Close()
}

// carry starts the process, or joins a kept one, and goes with it to its end or the channel's.
func (s *sshSession) carry(ctx context.Context) (*carrelv1.Process, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	// The process is not left when the transport ends, which ends ctx, but when it is known how the client went.
	staying, leave := context.WithCancelCause(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	defer func() {
		cancel(nil) // first: the listener for the SSH agent ends with it
		leave(nil)
		parts.Wait()
	}()
	p, err := s.c.pass(ctx, true, s.progress())
	if err != nil {
		return nil, err
	}
	defer s.c.g.session(p)()
	s.c.g.touch(p, activityExec)

	out := &boxProcess{user: s.c.proof.user, holes: s.pty != nil, dial: s.dialer(), away: s.away()}
	out.output = s.output
	rejoined := false
	typed := []byte(nil)
	if s.pty != nil && s.command == "" && !s.sftp {
		var kept keptShell
		if kept, typed, err = s.offerShell(ctx, p); err != nil {
			return nil, err
		}
		if kept.id != "" {
			rejoined = true
			out.id, out.output = kept.id, kept.replay(s.output)
			out.offsets[carrelv1.Stream_STREAM_STDOUT] = kept.from
		}
	}
	if !rejoined {
		if out.start, err = s.start(ctx, p, &parts); err != nil {
			return nil, err
		}
	}
	process := newBoxProcess(out)
	s.mu.Lock()
	s.process = process
	size := s.size
	s.mu.Unlock()
	if s.pty != nil {
		if rejoined { // a program that fills the screen draws it again
			process.Resize([2]uint16{size[0], max(size[1], 2) - 1})
		}
		process.Resize(size)
	}
	_, _ = process.Write(typed)

	result := make(chan error, 1)
	var exited *carrelv1.Process
	parts.Go(func() {
		var err error
		exited, err = process.run(staying)
		result <- err
	})
	go s.feed(p, process) // it ends with the channel, which run closes
	select {
	case err := <-result:
		return exited, err
	case <-s.closed:
	}
	if !s.c.lost() {
		process.HangUp()
		select {
		case err := <-result:
			return exited, err
		case <-time.After(hangUpTime):
		}
	}
	leave(errSessionOver)
	return nil, <-result
}

var errSessionOver = errors.New("the session is over")

// output passes what the process writes on to the client. What comes when there is no client any more is dropped: carry decides what becomes of
// the process, by how the client went.
func (s *sshSession) output(stream carrelv1.Stream, data []byte) error {
	var err error
	if stream == carrelv1.Stream_STREAM_STDERR {
		_, err = s.ch.Stderr().Write(data)
	} else {
		_, err = s.ch.Write(data)
	}
	if err != nil {
		<-s.closed // it is, or is about to be: nothing else fails a write
	}
	return nil
}

// feed passes what the client sends on to the process.
func (s *sshSession) feed(p pass, process *boxProcess) {
	buf := make([]byte, 1<<10) // grows for those who send much
	for {
		n, err := s.ch.Read(buf)
		if n > 0 {
			if s.pty != nil {
				s.c.g.touch(p, activityInput)
			}
			_, _ = process.Write(buf[:n])
			if n == len(buf) && n < feedRead {
				buf = make([]byte, feedRead)
			}
		}
		if err != nil {
			break
		}
	}
	if s.pty != nil { // the end of a lost transport is not typed into a shell that is kept
		select {
		case <-s.closed:
			return
		case <-time.After(sshLostTime):
		}
	}
	process.CloseInput()
}

// start makes the request for the session's process.
func (s *sshSession) start(ctx context.Context, p pass, parts *sync.WaitGroup) (*carrelv1.StartProcessRequest, error) {
	env := s.env
	peer, peerPort, _ := net.SplitHostPort(s.c.peer.String())
	local, localPort, _ := net.SplitHostPort(s.c.local.String())
	env["SSH_CONNECTION"] = strings.Join([]string{peer, peerPort, local, localPort}, " ")
	env["SSH_CLIENT"] = strings.Join([]string{peer, peerPort, localPort}, " ")
	request := &carrelv1.StartProcessRequest{Env: env, Stdin: true, Kind: "ssh", Login: true, Keep: durationpb.New(keepCommand)}
	switch {
	case s.sftp:
		request.Login, request.Args = false, []string{sftpServer, "sftp"}
	case s.command != "":
		request.Args = []string{s.command}
	}
	if s.pty != nil {
		env["TERM"] = terminalName(s.pty.Term)
		s.mu.Lock()
		request.Pty = &carrelv1.TerminalSize{Rows: uint32(s.size[0]), Cols: uint32(s.size[1])}
		s.mu.Unlock()
		request.TerminalModes = []byte(s.pty.Modes)
		keep := s.c.ref.KeepShell
		if keep <= 0 {
			keep = defaultKeepShell
		}
		request.Keep = durationpb.New(keep)
	}
	if s.agent {
		name, err := s.c.listenAgent(ctx, p, parts)
		if err != nil {
			s.say("the SSH agent of your machine cannot be reached from the box: %s", s.c.sayError(err))
		}
		request.AuthSocket = name
	}
	return request, nil
}

// progress tells a person at a terminal what the box is waiting for.
func (s *sshSession) progress() func(string) {
	return func(state string) {
		word := map[carrel.State]string{
			carrel.StatePaused: "is paused; it is being resumed", carrel.StateResuming: "is being resumed", carrel.StateStopped: "is stopped; it is being started",
			carrel.StateProvisioning: "is being started", carrel.StatePausing: "is just being paused; it is resumed after that", carrel.StateStopping: "is just being stopped; it is started after that",
		}[carrel.State(state)]
		if word != "" {
			s.say("box %s %s", s.c.ref.Name, word)
		}
	}
}

// dialer connects to the box's agent. The first connection starts a box that does not run. A session whose box was
// paused under it waits until the box is back: somebody resumes it, or types here.
func (s *sshSession) dialer() func(context.Context, bool) (net.Conn, error) {
	return func(ctx context.Context, first bool) (net.Conn, error) {
		if first {
			conn, _, err := s.c.reach(ctx, "session", true, s.progress())
			return conn, err
		}
		told := false
		look := time.NewTicker(pausedLook)
		defer look.Stop()
		for {
			process := s.running()
			typed := s.pty != nil && s.c.ref.Wake && process != nil && process.typed()
			conn, _, err := s.c.reach(ctx, "session", typed, s.progress())
			if err == nil || carrel.CodeOf(err) == carrel.CodeUnavailable {
				return conn, err
			}
			// Stopped, failed and deleted boxes have no process to go on with. While control is away nobody knows.
			ref, lookErr := s.c.g.findBox(ctx, s.c.proof.user, string(s.c.ref.Box), "")
			if code := carrel.CodeOf(lookErr); lookErr != nil && code != carrel.CodeUnavailable && code != carrel.CodeDeadline {
				return nil, err
			}
			switch ref.State {
			case carrel.StateStopped, carrel.StateStopping, carrel.StateFailed, carrel.StateDeleting, carrel.StateDeleted:
				return nil, errNotRunning(s.c.ref.Box, ref.State)
			case carrel.StatePaused, carrel.StatePausing:
				if !told {
					s.say("box %s was paused; this session goes on when it is resumed%s", s.c.ref.Name, map[bool]string{true: ": press a key"}[s.c.ref.Wake])
				}
				told = true
			}
			changed := s.c.g.routes.change()
			if _, err := s.c.g.passOf(s.c.proof.user, s.c.ref.Box, auth.ScopeExec); err == nil {
				continue
			}
			keys := time.NewTicker(sshLostTime)
			select {
			case <-changed:
			case <-look.C:
			case <-keys.C:
				for process != nil && s.pty != nil && !process.typed() {
					select {
					case <-keys.C:
						continue
					case <-changed:
					case <-look.C:
					case <-ctx.Done():
					}
					break
				}
			case <-ctx.Done():
			}
			keys.Stop()
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
		}
	}
}

// away tells a person at a terminal that the connection to the box broke and is back, when that takes a while.
func (s *sshSession) away() func(error) error {
	var since time.Time
	told := false
	return func(err error) error {
		switch {
		case err == nil:
			if told {
				s.say("connected to box %s again", s.c.ref.Name)
			}
			since, told = time.Time{}, false
		case since.IsZero():
			since = time.Now()
		case !told && time.Since(since) > 2*time.Second:
			told = true
			s.say("the connection to box %s is broken; it is tried again", s.c.ref.Name)
		}
		return nil
	}
}
