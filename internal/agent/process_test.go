package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
)

func TestOutputStreamsAreSeparateAndTheEndComesLast(t *testing.T) {
	b := startBox(t)
	s := b.run(sh("echo out; echo err >&2; exit 7"))
	require.Equal(t, "out\n", s.out[stdout].String())
	require.Equal(t, "err\n", s.out[stderr].String())
	require.EqualValues(t, 7, s.exited.GetExitCode())
	require.False(t, s.exited.GetRunning())
	require.Equal(t, s.exited.GetId(), s.started.GetId())
	require.EqualValues(t, 4, s.exited.GetStdoutBytes())
	require.Empty(t, s.exited.GetExitSignal())
	require.Empty(t, s.exited.GetEndedBy())
}

func TestExitCodesAndSignals(t *testing.T) {
	b := startBox(t)
	for script, want := range map[string]struct {
		code int32
		name string
	}{
		"true": {0, ""}, "exit 255": {255, ""}, "kill -KILL $$": {137, "KILL"}, "kill -TERM $$": {143, "TERM"}, "kill -SEGV $$": {139, "SEGV"},
	} {
		s := b.run(sh(script))
		require.Equal(t, want.code, s.exited.GetExitCode(), script)
		require.Equal(t, want.name, s.exited.GetExitSignal(), script)
	}
}

func TestACommandHasItsOwnSessionUserDirectoryAndEnvironment(t *testing.T) {
	b := startBox(t, func(_ *Config, id *identity.Identity) {
		id.Env = map[string]string{"FROM": "identity", "BOTH": "identity"}
	})
	request := sh(`ps -o pid=,pgid=,sid= -p $$ | awk '{print ($1==$2 && $2==$3)}'; pwd; echo $HOME $USER $FROM $BOTH $MINE $BOX; id -u; ls /proc/self/fd | wc -l`)
	request.Env = map[string]string{"BOTH": "request", "MINE": "x"}
	s := b.run(request)
	lines := strings.Split(strings.TrimSpace(s.out[stdout].String()), "\n")
	require.Len(t, lines, 5, s.out[stderr].String())
	require.Equal(t, "1", lines[0])
	require.Equal(t, b.config.Home, lines[1])
	require.Equal(t, b.config.Home+" carrel identity request x 1", lines[2])
	if asRoot() {
		require.Equal(t, "1000", lines[3])
	}
	require.Equal(t, "4", lines[4], "no descriptor of the agent's is inherited: three and that of ls")
}

func TestWhatCannotBeStartedIsSaidClearly(t *testing.T) {
	b := startBox(t)
	script := filepath.Join(b.config.Home, "script")
	require.NoError(t, os.WriteFile(script, []byte("echo as a shell does"), 0o755))
	require.Equal(t, "as a shell does\n", b.run(&carrelv1.StartProcessRequest{Args: []string{script}}).out[stdout].String())
	plain := filepath.Join(b.config.Home, "plain")
	require.NoError(t, os.WriteFile(plain, nil, 0o644))
	lost := filepath.Join(b.config.Home, "lost")
	require.NoError(t, os.WriteFile(lost, []byte("#!/no/such/interpreter\n"), 0o755))

	for name, c := range map[string]struct {
		request *carrelv1.StartProcessRequest
		code    connect.Code
		reason  string
	}{
		"not in PATH":    {&carrelv1.StartProcessRequest{Args: []string{"nosuch"}}, connect.CodeNotFound, "command_not_found"},
		"its own PATH":   {&carrelv1.StartProcessRequest{Args: []string{"sh"}, Env: map[string]string{"PATH": "/nowhere"}}, connect.CodeNotFound, "command_not_found"},
		"no file":        {&carrelv1.StartProcessRequest{Args: []string{"/no/such"}}, connect.CodeNotFound, "command_not_found"},
		"not executable": {&carrelv1.StartProcessRequest{Args: []string{plain}}, connect.CodeInvalidArgument, "command_not_executable"},
		"no interpreter": {&carrelv1.StartProcessRequest{Args: []string{lost}}, connect.CodeInvalidArgument, "command_not_executable"},
		"no command":     {&carrelv1.StartProcessRequest{}, connect.CodeInvalidArgument, "no_command"},
		"zero byte":      {&carrelv1.StartProcessRequest{Args: []string{"echo", "a\x00b"}}, connect.CodeInvalidArgument, "bad_argument"},
		"no directory":   {&carrelv1.StartProcessRequest{Args: []string{"true"}, Cwd: "/no/such"}, connect.CodeInvalidArgument, "bad_directory"},
		"bad variable":   {&carrelv1.StartProcessRequest{Args: []string{"true"}, Env: map[string]string{"A=B": ""}}, connect.CodeInvalidArgument, "bad_variable"},
		"root":           {&carrelv1.StartProcessRequest{Args: []string{"true"}, User: "root"}, connect.CodePermissionDenied, "user_not_allowed"},
		"large argument": {&carrelv1.StartProcessRequest{Args: []string{"true", strings.Repeat("x", maxArgBytes)}}, connect.CodeInvalidArgument, "arguments_too_large"},
		"terminal size":  {&carrelv1.StartProcessRequest{Args: []string{"true"}, Pty: &carrelv1.TerminalSize{Rows: 1 << 20, Cols: 1}}, connect.CodeInvalidArgument, "bad_terminal_size"},
	} {
		_, err := b.processes.Start(b.context(), connect.NewRequest(c.request))
		require.Equal(t, c.code, connect.CodeOf(err), name)
		require.Equal(t, c.reason, reason(t, err), name)
	}
	require.Len(t, b.list(), 1, "what was refused is not listed")
}

func (b *box) list() []*carrelv1.Process {
	response, err := b.processes.List(b.context(), connect.NewRequest(&carrelv1.ListProcessesRequest{}))
	require.NoError(b.t, err)
	return response.Msg.GetProcesses()
}

func TestBinaryDataPassesBothWaysUnchanged(t *testing.T) {
	b := startBox(t)
	size := 64 << 20
	if testing.Short() {
		size = 4 << 20
	}
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(data)
	want := sha256.Sum256(data)

	stream, err := b.processes.Run(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"cat"}, Stdin: true}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	id := stream.Msg().GetStarted().GetId()
	var writing sync.WaitGroup
	writing.Go(func() {
		for offset := 0; offset < size; {
			n := min(maxInput, size-offset)
			response, err := b.processes.WriteInput(b.context(), connect.NewRequest(&carrelv1.WriteInputRequest{
				Process: id, Offset: int64(offset), Data: data[offset : offset+n], Eof: offset+n == size,
			}))
			if err != nil {
				t.Errorf("write: %v", err)
				return
			}
			offset = int(response.Msg.GetNextOffset())
		}
	})
	s := collect(t, stream)
	writing.Wait()
	require.Empty(t, s.gaps)
	require.Equal(t, size, s.out[stdout].Len())
	require.Equal(t, want, sha256.Sum256(s.out[stdout].Bytes()))
	require.Zero(t, s.exited.GetExitCode())
}

func TestTheStreamThatStartedACommandMissesNothing(t *testing.T) {
	b := startBox(t)
	size := int64(512 << 20)
	if testing.Short() {
		size = 32 << 20
	}
	stream, err := b.processes.Run(b.context(), connect.NewRequest(sh(fmt.Sprintf("head -c %d /dev/zero", size))))
	require.NoError(t, err)
	s := &seen{discard: true}
	began := time.Now()
	require.NoError(t, s.readAll(stream))
	t.Logf("%.0f MiB/s", float64(size)/(1<<20)/time.Since(began).Seconds())
	require.Empty(t, s.gaps)
	require.Equal(t, size, s.bytes)
	require.Equal(t, size, s.exited.GetStdoutBytes())
}

func TestWithoutAViewerACommandWaitsForNobodyAndItsLastOutputIsKept(t *testing.T) {
	b := startBox(t)
	p := b.start(sh("head -c 64000000 /dev/zero; echo end"))
	require.Zero(t, b.finish(p.GetId()).GetExitCode())

	stream, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: p.GetId()}))
	require.NoError(t, err)
	s := collect(t, stream)
	require.Len(t, s.gaps, 1)
	require.Zero(t, s.gaps[0].GetOffset())
	require.EqualValues(t, 64000004, s.next[stdout])
	require.EqualValues(t, 1<<20, s.bytes)
	require.True(t, bytes.HasSuffix(s.out[stdout].Bytes(), []byte("end\n")))
}

func TestAStalledViewerHoldsBackNobody(t *testing.T) {
	b := startBox(t)
	gate := filepath.Join(b.config.Home, "go")
	p := b.start(sh("while [ ! -e go ]; do read x < /dev/null; done; head -c 100000000 /dev/zero; echo end"))

	stalled, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: p.GetId()}))
	require.NoError(t, err)
	require.True(t, stalled.Receive())
	live, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: p.GetId()}))
	require.NoError(t, err)
	require.True(t, live.Receive())
	require.NoError(t, os.WriteFile(gate, nil, 0o644))

	s := collect(t, live)
	require.Equal(t, int64(100000004), s.next[stdout], "the live viewer comes to the end while the other does not read")

	late := collect(t, stalled)
	require.NotEmpty(t, late.gaps, "what the stalled viewer missed is said")
	require.Equal(t, int64(100000004), late.next[stdout])
}

func TestASlowOwnerHasEverythingAndAnotherViewerKeepsUp(t *testing.T) {
	b := startBox(t)
	const size = 24 << 20
	stream, err := b.processes.Run(b.context(), connect.NewRequest(sh(fmt.Sprintf("head -c %d /dev/zero", size))))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	other, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: stream.Msg().GetStarted().GetId()}))
	require.NoError(t, err)
	ahead := make(chan *seen, 1)
	go func() {
		s := &seen{discard: true}
		if err := s.readAll(other); err != nil {
			t.Errorf("other viewer: %v", err)
		}
		ahead <- s
	}()
	s := &seen{discard: true}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for stream.Receive() {
		<-tick.C
		require.NoError(t, s.add(stream.Msg()))
	}
	require.NoError(t, stream.Err())
	require.Empty(t, s.gaps)
	require.EqualValues(t, size, s.bytes)
	require.EqualValues(t, size, receive(t, ahead).next[stdout])
}

func TestReplayBeginsAtTheOffsetsAskedFor(t *testing.T) {
	b := startBox(t)
	s := b.run(sh("printf 0123456789; printf abcdef >&2"))
	attach := func(out, err int64) *seen {
		stream, e := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: s.started.GetId(), StdoutOffset: out, StderrOffset: err}))
		require.NoError(t, e)
		return collect(t, stream)
	}
	got := attach(4, 5)
	require.Equal(t, "456789", got.out[stdout].String())
	require.Equal(t, "f", got.out[stderr].String())
	got = attach(-1, -1)
	require.Zero(t, got.bytes)
	for _, bad := range []int64{11, -2} {
		stream, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: s.started.GetId(), StdoutOffset: bad}))
		require.NoError(t, err)
		require.False(t, stream.Receive())
		require.Equal(t, "offset_out_of_range", reason(t, stream.Err()))
	}
}

func TestACommandGoesOnWhenItsClientIsGone(t *testing.T) {
	b := startBox(t, func(c *Config, _ *identity.Identity) { c.awayPatience = 50 * time.Millisecond })
	ctx, cancel := context.WithCancel(b.context())
	stream, err := b.processes.Run(ctx, connect.NewRequest(sh("while [ ! -e go ]; do read x < /dev/null; done; head -c 5000000 /dev/zero; exit 3")))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	id := stream.Msg().GetStarted().GetId()
	cancel()
	_ = stream.Close()
	require.NoError(t, os.WriteFile(filepath.Join(b.config.Home, "go"), nil, 0o644))
	require.EqualValues(t, 3, b.finish(id).GetExitCode())
}

func TestOnlyWhoStartedACommandIsItsOwnerAgain(t *testing.T) {
	p := &process{user: "ua", now: time.Now}
	away := &viewer{p: p, away: time.Now(), steady: true}
	p.owner = away
	_, err := p.viewAs("ub", [streams]int64{})
	require.NoError(t, err)
	require.Same(t, away, p.owner, "another user only looks")
	back, err := p.viewAs("ua", [streams]int64{})
	require.NoError(t, err)
	require.Same(t, back, p.owner)
	require.True(t, back.steady)
}

func TestABackgroundProgramNeitherHoldsTheEndNorDies(t *testing.T) {
	b := startBox(t)
	s := b.run(sh("(while [ ! -e go ]; do echo x; sleep 0.05; done; echo last; touch done) & echo started; exit 5")) // and ends, while there is no go
	require.EqualValues(t, 5, s.exited.GetExitCode())
	require.Contains(t, s.out[stdout].String(), "started\n")
	require.NoError(t, os.WriteFile(filepath.Join(b.config.Home, "go"), nil, 0o644))
	eventually(t, func() bool { _, err := os.Stat(filepath.Join(b.config.Home, "done")); return err == nil }, "the program in the background goes on")
}

func TestSignalsReachTheWholeGroup(t *testing.T) {
	b := startBox(t)
	stream, err := b.processes.Run(b.context(), connect.NewRequest(sh("sleep 1000 | cat; echo never")))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	id := stream.Msg().GetStarted().GetId()
	_, err = b.processes.Signal(b.context(), connect.NewRequest(&carrelv1.SignalProcessRequest{Process: id, Signal: "NOSUCH"}))
	require.Equal(t, "bad_signal", reason(t, err))
	_, err = b.processes.Signal(b.context(), connect.NewRequest(&carrelv1.SignalProcessRequest{Process: id, Signal: "TERM"}))
	require.NoError(t, err)
	s := collect(t, stream)
	require.Equal(t, "TERM", s.exited.GetExitSignal())
	require.EqualValues(t, 143, s.exited.GetExitCode())
	_, err = b.processes.Signal(b.context(), connect.NewRequest(&carrelv1.SignalProcessRequest{Process: id, Signal: "TERM"}))
	require.Equal(t, "process_ended", reason(t, err))
}

func TestARepeatedRequestGivesTheFirstProcess(t *testing.T) {
	b := startBox(t)
	var wg sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		wg.Go(func() {
			request := sh("echo once >> count")
			request.RequestId = "same"
			response, err := b.processes.Start(b.context(), connect.NewRequest(request))
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			ids[i] = response.Msg.GetId()
		})
	}
	wg.Wait()
	for _, id := range ids {
		require.Equal(t, ids[0], id)
	}
	b.finish(ids[0])
	data, err := os.ReadFile(filepath.Join(b.config.Home, "count"))
	require.NoError(t, err)
	require.Equal(t, "once\n", string(data))

	again := sh("echo other")
	again.RequestId = "same"
	require.Equal(t, ids[0], b.run(again).exited.GetId(), "also for a stream, and after the end")

	failing := &carrelv1.StartProcessRequest{Args: []string{"later"}, RequestId: "fails first", Env: map[string]string{"PATH": b.config.Home}}
	_, err = b.processes.Start(b.context(), connect.NewRequest(failing))
	require.Error(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(b.config.Home, "later"), []byte("#!/bin/sh\n"), 0o755))
	_, err = b.processes.Start(b.context(), connect.NewRequest(failing))
	require.NoError(t, err, "what failed can be repeated")
}

func TestQuietStreamsAreKeptAlive(t *testing.T) {
	b := startBox(t, func(c *Config, _ *identity.Identity) { c.KeepAlive = 10 * time.Millisecond })
	stream, err := b.processes.Run(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"cat"}, Stdin: true}))
	require.NoError(t, err)
	s := &seen{}
	for s.keepAlives < 2 && stream.Receive() {
		require.NoError(t, s.add(stream.Msg()))
	}
	require.Equal(t, 2, s.keepAlives)
	require.NoError(t, stream.Close())
}

func TestEndedOutputMakesRoomForNew(t *testing.T) {
	b := startBox(t, func(c *Config, _ *identity.Identity) { c.OutputBytes = 1 << 20 })
	var ids []string
	for range 5 {
		s := b.run(sh("head -c 500000 /dev/zero"))
		require.Empty(t, s.gaps)
		ids = append(ids, s.exited.GetId())
	}
	attach := func(id string) *seen {
		stream, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: id}))
		require.NoError(t, err)
		return collect(t, stream)
	}
	first, last := attach(ids[0]), attach(ids[4])
	require.Zero(t, first.bytes, "the oldest went first")
	require.EqualValues(t, 500000, first.next[stdout], "which is said")
	require.EqualValues(t, 500000, last.bytes)
}

func TestManyCommandsAtOnceAllEnd(t *testing.T) {
	b := startBox(t)
	require.Empty(t, b.list()) // and there is a connection, for all to share
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			stream, err := b.processes.Run(b.context(), connect.NewRequest(sh(fmt.Sprintf("echo %d; exit %d", i, i))))
			if err != nil {
				t.Errorf("run: %v", err)
				return
			}
			s := &seen{}
			if err := s.readAll(stream); err != nil || s.exited.GetExitCode() != int32(i) || s.out[stdout].String() != fmt.Sprintf("%d\n", i) {
				t.Errorf("command %d: %v, %v, %q", i, err, s.exited, s.out[stdout].String())
			}
		})
	}
	wg.Wait()
	require.Len(t, b.list(), 100)
}
