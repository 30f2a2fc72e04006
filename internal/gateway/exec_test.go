package gateway_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	return ctx
}

// buffer is written by a session and read by a test.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestExecCarriesStreamsAndExitCode(t *testing.T) {
	s := newStack(t)
	c := s.client()
	var stdout, stderr buffer
	status, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"echo", "a", "b"}, Streams: client.Streams{Stdout: &stdout, Stderr: &stderr}})
	require.NoError(t, err)
	require.Equal(t, 0, status.Code)
	require.Equal(t, "a\nb\n", stdout.String())
	require.Equal(t, "to stderr\n", stderr.String())

	status, err = c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"exit", "42"}})
	require.NoError(t, err)
	require.Equal(t, 42, status.Code)
	require.Equal(t, 1, s.control.tickets, "one ticket serves many commands")
}

func TestExecGoesOnWhereTheConnectionBroke(t *testing.T) {
	for name, cut := range map[string]func(*stack){
		"client to gateway":  func(s *stack) { s.conns.cut() },
		"gateway to the box": func(s *stack) { s.proxy.cut() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStack(t)
			c := s.client()
			var stdout buffer
			var links []client.Link
			const lines = 20
			ended := make(chan error, 1)
			var status client.ExitStatus
			go func() {
				var err error
				status, err = c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"slow", "20"}, Streams: client.Streams{
					Stdout: &stdout, OnLink: func(l client.Link, _ error) { links = append(links, l) },
				}})
				ended <- err
			}()
			want := ""
			for i := range lines {
				s.agent.step <- struct{}{}
				want += "line " + itoa(i) + "\n"
				require.Eventually(t, func() bool { return stdout.String() == want }, within, time.Millisecond, "every line once, in order")
				if i%5 == 4 {
					cut(s)
				}
			}
			require.NoError(t, <-ended)
			require.Equal(t, 7, status.Code)
			require.EqualValues(t, 1, s.agent.starts.Load(), "the command is run once")
			require.Contains(t, links, client.LinkDown)
			require.Contains(t, links, client.LinkUp)
		})
	}
}

func itoa(i int) string { return string(appendInt(nil, i)) }

func appendInt(b []byte, i int) []byte {
	if i >= 10 {
		b = appendInt(b, i/10)
	}
	return append(b, byte('0'+i%10))
}

func TestExecGoesOnWhileControlIsAway(t *testing.T) {
	s := newStack(t)
	c := s.client()
	_, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"exit", "0"}})
	require.NoError(t, err)
	s.stopControl()
	s.conns.cut()
	var stdout buffer
	_, err = c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"echo", "still"}, Streams: client.Streams{Stdout: &stdout}})
	require.NoError(t, err)
	require.Equal(t, "still\n", stdout.String())

	// A gateway that is restarted meanwhile works from what it has on disk.
	s.stopGateway()
	s.startGateway()
	ticket := s.ticket(nil)
	list, err := s.processes(ticket).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetProcesses(), 2)
}

func TestExecCarries64MB(t *testing.T) {
	s := newStack(t)
	const size = 64 << 20
	check := &patternChecker{t: t}
	start := time.Now()
	_, err := s.client().Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"generate", "67108864"}, Streams: client.Streams{Stdout: check}})
	require.NoError(t, err)
	require.EqualValues(t, size, check.seen)
	t.Logf("64 MiB out: %.0f MB/s", 67.1/time.Since(start).Seconds())
}

// patternChecker checks that what is written is pattern, from 0 on.
type patternChecker struct {
	t    *testing.T
	seen int64
	wait func()
}

func (p *patternChecker) Write(b []byte) (int, error) {
	if p.wait != nil {
		p.wait()
	}
	from := p.seen &^ 7
	want := pattern(from, p.seen-from+int64(len(b)))[p.seen-from:]
	if !bytes.Equal(want, b) {
		p.t.Errorf("output differs at %d", p.seen)
		return 0, io.ErrShortWrite
	}
	p.seen += int64(len(b))
	return len(b), nil
}

func TestInputArrivesOnceAndInOrder(t *testing.T) {
	s := newStack(t)
	c := s.client()
	data := pattern(0, 4<<20)
	reads := 0
	in := readerFunc(func(b []byte) (int, error) {
		if len(data) == 0 {
			return 0, io.EOF
		}
		if reads++; reads%16 == 8 {
			s.conns.cut()
		}
		n := copy(b, data)
		data = data[n:]
		return n, nil
	})
	check := &patternChecker{t: t}
	status, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"cat"}, Streams: client.Streams{Stdin: in, Stdout: check}})
	require.NoError(t, err)
	require.Equal(t, 0, status.Code)
	require.EqualValues(t, 4<<20, check.seen)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestInputIsNotEndedWhenTheClientGoes(t *testing.T) {
	s := newStack(t)
	ctx, cancel := context.WithCancel(testContext(t))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	defer r.Close()
	_, err = s.client().Exec(ctx, client.ExecOptions{Box: "mybox", Args: []string{"cat"}, Streams: client.Streams{
		Stdin: r, OnStarted: func(*carrelv1.Process) { cancel() },
	}})
	require.ErrorIs(t, err, context.Canceled)
	p, err := s.agent.get("p1")
	require.NoError(t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Nil(t, p.done)
}

func TestStalledReaderHoldsUpNobody(t *testing.T) {
	s := newStack(t)
	c := s.client()
	release := make(chan struct{})
	stalled := &patternChecker{t: t, wait: func() { <-release }}
	ended := make(chan error, 1)
	go func() {
		_, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"generate", "33554432"}, Streams: client.Streams{Stdout: stalled}})
		ended <- err
	}()
	require.Eventually(t, func() bool { _, err := s.agent.get("p1"); return err == nil }, within, time.Millisecond)
	live := &patternChecker{t: t}
	_, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"generate", "33554432"}, Streams: client.Streams{Stdout: live}})
	require.NoError(t, err)
	require.EqualValues(t, 32<<20, live.seen)
	close(release)
	require.NoError(t, <-ended)
	require.EqualValues(t, 32<<20, stalled.seen)
}

func TestGapIsShown(t *testing.T) {
	s := newStack(t)
	c := s.client()
	status, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"generate", "4096"}})
	require.NoError(t, err)
	p, err := s.agent.get(status.Process)
	require.NoError(t, err)
	p.forget(carrelv1.Stream_STREAM_STDOUT, 4000)
	var stdout, stderr buffer
	status, err = c.Attach(testContext(t), client.AttachOptions{Box: "mybox", Process: status.Process, Streams: client.Streams{Stdout: &stdout, Stderr: &stderr}})
	require.NoError(t, err)
	require.EqualValues(t, 4000, status.Lost)
	require.Len(t, stdout.String(), 96)
	require.Contains(t, stderr.String(), "[carrel: 4000 bytes of output are no longer kept]")
}

func TestSignalsAndSizesAreForwarded(t *testing.T) {
	s := newStack(t)
	signals, sizes := make(chan string, 1), make(chan client.TerminalSize, 1)
	sizes <- client.TerminalSize{Rows: 50, Cols: 120}
	ended := make(chan client.ExitStatus, 1)
	go func() {
		status, err := s.client().Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"hold"}, Pty: &client.TerminalSize{Rows: 24, Cols: 80}, Streams: client.Streams{Signals: signals, Resize: sizes}})
		require.NoError(t, err)
		ended <- status
	}()
	require.Eventually(t, func() bool {
		p, err := s.agent.get("p1")
		if err != nil {
			return false
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.rows == 50
	}, within, time.Millisecond)
	signals <- "TERM"
	require.Equal(t, "TERM", (<-ended).Signal)
}

func TestDetachAnswersAtOnce(t *testing.T) {
	s := newStack(t)
	c := s.client()
	status, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"hold"}, Detach: true})
	require.NoError(t, err)
	require.True(t, status.Running)
	require.NoError(t, c.Signal(testContext(t), "mybox", status.Process, "KILL"))
	end, err := c.Attach(testContext(t), client.AttachOptions{Box: "mybox", Process: status.Process})
	require.NoError(t, err)
	require.Equal(t, "KILL", end.Signal)
}

func TestSessionOutlivesPauseAndResume(t *testing.T) {
	s := newStack(t)
	c := s.client()
	var stdout buffer
	ended := make(chan error, 1)
	go func() {
		_, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"slow", "2"}, Streams: client.Streams{Stdout: &stdout}})
		ended <- err
	}()
	s.agent.step <- struct{}{}
	require.Eventually(t, func() bool { return stdout.String() == "line 0\n" }, within, time.Millisecond)

	gone := s.route(1)
	gone.Gone = true
	s.control.setRoute(gone)
	s.proxy.epoch.Store(2)
	s.proxy.cut()
	s.agent.step <- struct{}{}
	_, err := s.processes(s.ticket(nil)).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
	require.Equal(t, client.ReasonBoxNotRunning, carrel.ReasonOf(err))

	s.control.setRoute(s.route(2)) // another run, another epoch: the old ticket is of no use
	require.NoError(t, <-ended)
	require.Equal(t, "line 0\nline 1\n", stdout.String())
	require.EqualValues(t, 1, s.agent.starts.Load())
}

func TestFailingWriterEndsTheSession(t *testing.T) {
	s := newStack(t)
	r, w := io.Pipe()
	r.Close()
	_, err := s.client().Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"generate", "1000000"}, Streams: client.Streams{Stdout: w}})
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.True(t, strings.Contains(err.Error(), "write output"))
}
