package agent

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

func mode(opcode byte, value uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{opcode}, value)
}

func modes(pairs ...[]byte) (all []byte) {
	for _, pair := range pairs {
		all = append(all, pair...)
	}
	return append(all, 0)
}

func TestModesOfATerminalAreThoseAskedFor(t *testing.T) {
	b := startBox(t)
	request := sh("stty -a; stty size")
	request.Pty = &carrelv1.TerminalSize{Rows: 33, Cols: 101}
	request.TerminalModes = modes(mode(1, 7), mode(3, 8), mode(5, 255), mode(53, 0), mode(38, 0), mode(42, 1), mode(128, 38400), mode(159, 1))
	text := b.run(request).out[stdout].String()
	for _, want := range []string{"intr = ^G", "erase = ^H", "eof = <undef>", " -echo ", "-ixon", "\niutf8", "33 101"} {
		require.Contains(t, text, want)
	}
	request.TerminalModes = make([]byte, maxModes+1)
	_, err := b.processes.Start(b.context(), connect.NewRequest(request))
	require.Equal(t, "bad_terminal_modes", reason(t, err))
}

func FuzzApplyModes(f *testing.F) {
	f.Add(modes(mode(1, 7), mode(53, 0), mode(91, 1), mode(200, 1)))
	f.Add([]byte{53, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		once := unix.Termios{}
		applyModes(&once, data)
		twice := once
		applyModes(&twice, data)
		require.Equal(t, once, twice)
	})
}

func TestALoginIsTheUsersShell(t *testing.T) {
	b := startBox(t)
	require.NoError(t, os.MkdirAll(filepath.Join(b.dir, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "etc/passwd"), []byte("carrel:x:1000:1000::/home/carrel:/bin/bash\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(b.config.Home, ".profile"), []byte("echo profile read\n"), 0o644))

	s := b.run(&carrelv1.StartProcessRequest{Login: true, Args: []string{"echo", "$0", "'a b'; exit 3"}})
	require.Equal(t, "/bin/bash a b\n", s.out[stdout].String(), "arguments are one line for the shell, and no profile is read")
	require.EqualValues(t, 3, s.exited.GetExitCode())

	stream, err := b.processes.Run(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Login: true, Stdin: true, Kind: "ssh"}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	b.typeIn(stream.Msg().GetStarted().GetId(), 0, "echo $0\n", true)
	s = collect(t, stream)
	require.Equal(t, "profile read\n-bash\n", s.out[stdout].String())

	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "etc/passwd"), []byte("carrel:x:1000:1000::/home/carrel:/no/shell\n"), 0o644))
	require.Equal(t, "/bin/sh\n", b.run(&carrelv1.StartProcessRequest{Login: true, Args: []string{"echo $0"}}).out[stdout].String())
}

func (b *box) typeIn(process string, offset int64, text string, eof bool) {
	b.t.Helper()
	_, err := b.processes.WriteInput(b.context(), connect.NewRequest(&carrelv1.WriteInputRequest{Process: process, Offset: offset, Data: []byte(text), Eof: eof}))
	require.NoError(b.t, err)
}

func (b *box) activity() *agentv1.ActivityResponse {
	b.t.Helper()
	response, err := b.control.Activity(b.context(), connect.NewRequest(&agentv1.ActivityRequest{}))
	require.NoError(b.t, err)
	return response.Msg
}

func TestAProcessTellsWhoStartedItAndWhoLooks(t *testing.T) {
	b := startBox(t)
	request := connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"cat"}, Stdin: true, Kind: "terminal"})
	request.Header().Set(HeaderUser, "uaaaaaaaaaaaaaaaaaaa")
	stream, err := b.processes.Run(b.context(), request)
	require.NoError(t, err)
	require.True(t, stream.Receive())
	p := stream.Msg().GetStarted()
	require.Equal(t, "terminal", p.GetKind())
	require.Equal(t, "uaaaaaaaaaaaaaaaaaaa", p.GetStartedBy())
	require.EqualValues(t, 1, p.GetViewers())
	require.Nil(t, p.GetUnwatchedTime())
	b.typeIn(p.GetId(), 0, "12345", false)
	require.EqualValues(t, 5, b.get(p.GetId()).GetStdinBytes())
	require.EqualValues(t, 1, b.activity().GetViewers())
	require.NoError(t, stream.Close())
	eventually(t, func() bool { p = b.get(p.GetId()); return p.GetViewers() == 0 && p.GetUnwatchedTime() != nil }, "the viewer is gone")
	require.Equal(t, "exec", b.start(sh("true")).GetKind())
	_, err = b.processes.Start(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"true"}, Kind: "No Kind"}))
	require.Equal(t, "bad_kind", reason(t, err))
	_, err = b.processes.Start(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"true"}, Keep: durationpb.New(-1)}))
	require.Equal(t, "bad_keep", reason(t, err))
}

func TestATerminalIsHungUpWhenNobodyCameBack(t *testing.T) {
	b := startBox(t)
	request := &carrelv1.StartProcessRequest{
		Args: []string{"bash", "--norc", "-i"}, Pty: &carrelv1.TerminalSize{}, Keep: durationpb.New(300 * time.Millisecond), Env: map[string]string{"PS1": "ready:"},
	}
	stream, err := b.processes.Run(b.context(), connect.NewRequest(request))
	require.NoError(t, err)
	s := &seen{}
	for !strings.Contains(s.out[stdout].String(), "ready:") && stream.Receive() {
		require.NoError(t, s.add(stream.Msg()))
	}
	b.typeIn(s.started.GetId(), 0, "sleep 1000\n", false)
	eventually(t, func() bool { return b.get(s.started.GetId()).GetForeground() == "sleep 1000" }, "the command is in the foreground")
	require.True(t, b.get(s.started.GetId()).GetRunning(), "while somebody looks nothing is hung up")
	require.NoError(t, stream.Close())
	var ended *carrelv1.Process
	eventually(t, func() bool { ended = b.get(s.started.GetId()); return !ended.GetRunning() }, "it ends by itself")
	require.Equal(t, "HUP", ended.GetExitSignal())
	require.Nil(t, ended.GetUnwatchedTime())
}

func TestForegroundWorkIsActivityAndAWaitingShellIsNot(t *testing.T) {
	b := startBox(t)
	require.Nil(t, b.activity().GetCommandTime())
	b.start(sh("sleep 1000"))
	require.Empty(t, b.activity().GetCommands(), "detached")

	run, err := b.processes.Run(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"cat"}, Stdin: true}))
	require.NoError(t, err)
	require.True(t, run.Receive())
	active := b.activity()
	require.Len(t, active.GetCommands(), 1)
	require.Equal(t, "cat", active.GetCommands()[0].GetCommand())
	require.NotNil(t, active.GetCommandTime())
	b.typeIn(run.Msg().GetStarted().GetId(), 0, "", true)
	collect(t, run)

	request := &carrelv1.StartProcessRequest{Args: []string{"bash", "--norc", "-i"}, Pty: &carrelv1.TerminalSize{}, Env: map[string]string{"PS1": "ready:"}}
	shell, err := b.processes.Run(b.context(), connect.NewRequest(request))
	require.NoError(t, err)
	s := &seen{}
	for !strings.Contains(s.out[stdout].String(), "ready:") && shell.Receive() {
		require.NoError(t, s.add(shell.Msg()))
	}
	quiet := b.activity()
	require.Empty(t, quiet.GetCommands(), "a shell that waits for a command")
	require.EqualValues(t, 1, quiet.GetViewers())
	require.False(t, quiet.GetCommandTime().AsTime().Before(active.GetCommandTime().AsTime()), "the end of a command was noted")
	b.typeIn(s.started.GetId(), 0, "sleep 1001\n", false)
	eventually(t, func() bool {
		commands := b.activity().GetCommands()
		return len(commands) == 1 && commands[0].GetCommand() == "sleep 1001" && commands[0].GetProcess() == s.started.GetId()
	}, "a command of the shell")
	_, err = b.processes.Signal(b.context(), connect.NewRequest(&carrelv1.SignalProcessRequest{Process: s.started.GetId(), Signal: "HUP"}))
	require.NoError(t, err)
	require.NoError(t, s.readAll(shell))
	require.NotNil(t, s.exited, "HUP to a terminal ends what is on it")
}

func TestAnOwnerThatComesBackMissesNothing(t *testing.T) {
	b := startBox(t)
	const size = 64 << 20
	first, err := b.processes.Run(b.context(), connect.NewRequest(sh("head -c 67108864 /dev/zero | tr '\\0' x")))
	require.NoError(t, err)
	s := &seen{discard: true}
	for s.bytes < 8<<20 && first.Receive() {
		require.NoError(t, s.add(first.Msg()))
	}
	require.NoError(t, first.Close(), "the connection breaks with output on its way")
	eventually(t, func() bool { return b.get(s.started.GetId()).GetViewers() == 0 }, "the agent has noticed")
	again, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: s.started.GetId(), StdoutOffset: s.next[stdout]}))
	require.NoError(t, err)
	require.NoError(t, s.readAll(again))
	require.Empty(t, s.gaps)
	require.EqualValues(t, size, s.bytes)
}

// What a terminal has is read together, though it gives little at once; and nothing more is waited for.
func TestATerminalIsReadToItsEnd(t *testing.T) {
	// Like a terminal, this gives one piece with each read.
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	defer unix.Close(ends[0])
	send := func(sizes ...int) (sent string) {
		for i, size := range sizes {
			piece := strings.Repeat(string(rune('a'+i)), size)
			_, err := unix.Write(ends[1], []byte(piece))
			require.NoError(t, err)
			sent += piece
		}
		return sent
	}
	buf := make([]byte, chunkSize)
	read := func() (string, error) {
		n, err := readTerminal(ends[0], buf)
		return string(buf[:n]), err
	}
	for _, sizes := range [][]int{{4095, 4095, 100}, {4094, 4095}, {5}} {
		sent := send(sizes...)
		got, err := read()
		require.NoError(t, err)
		require.Equal(t, sent, got)
		_, err = read()
		require.ErrorIs(t, err, unix.EAGAIN)
	}
	sent := send(5, 6)
	first, err := read()
	require.NoError(t, err)
	require.Equal(t, "aaaaa", first, "what was typed is passed on at once")
	second, err := read()
	require.NoError(t, err)
	require.Equal(t, sent, first+second)
	sent = send(4095)
	require.NoError(t, unix.Close(ends[1]))
	last, err := read()
	require.NoError(t, err)
	require.Equal(t, sent, last)
	_, err = read()
	require.ErrorIs(t, err, io.EOF)
}
