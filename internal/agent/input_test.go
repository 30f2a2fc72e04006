package agent

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

func (b *box) write(id string, offset int64, data string, eof bool) (int64, error) {
	response, err := b.processes.WriteInput(b.context(), connect.NewRequest(&carrelv1.WriteInputRequest{Process: id, Offset: offset, Data: []byte(data), Eof: eof}))
	if err != nil {
		return 0, err
	}
	return response.Msg.GetNextOffset(), nil
}

func TestARepeatedWriteIsNotWrittenTwice(t *testing.T) {
	b := startBox(t)
	stream, err := b.processes.Run(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"cat"}, Stdin: true}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	id := stream.Msg().GetStarted().GetId()
	for _, step := range []struct {
		offset int64
		data   string
		eof    bool
		next   int64
	}{
		{0, "hello", false, 5}, {0, "hello", false, 5}, {2, "llo world", false, 11}, {11, "!", true, 12}, {11, "!", true, 12}, {0, "hello", false, 12},
	} {
		next, err := b.write(id, step.offset, step.data, step.eof)
		require.NoError(t, err)
		require.Equal(t, step.next, next)
	}
	_, err = b.write(id, 13, "x", false)
	require.Equal(t, "input_gap", reason(t, err))
	_, err = b.write(id, 12, "x", false)
	require.Equal(t, "input_closed", reason(t, err))
	require.Equal(t, "hello world!", collect(t, stream).out[stdout].String())
	next, err := b.write(id, 0, "hello", false)
	require.NoError(t, err, "what was taken was taken, also after the end")
	require.EqualValues(t, 12, next)
}

func TestInputThatIsRefused(t *testing.T) {
	b := startBox(t)
	deaf := b.start(sh("exec <&-; sleep 1000"))
	_, err := b.write(deaf.GetId(), 0, "x", false)
	require.Equal(t, "no_input", reason(t, err))
	_, err = b.write("xnosuch", 0, "x", false)
	require.Equal(t, "process_not_found", reason(t, err))
	short := sh("true")
	short.Stdin = true
	p := b.start(short)
	b.finish(p.GetId())
	_, err = b.write(p.GetId(), 0, "x", false)
	require.Equal(t, "input_closed", reason(t, err))
	_, err = b.write(p.GetId(), 0, strings.Repeat("x", maxInput+1), false)
	require.Equal(t, "input_too_large", reason(t, err))
}

func TestAWriteWaitsAtMostAsLongAsItsRequest(t *testing.T) {
	fd, w, err := pipeIn()
	require.NoError(t, err)
	r := os.NewFile(uintptr(fd), "reader")
	defer r.Close()
	in := newInput(w, false)
	defer w.Close()
	data := []byte(strings.Repeat("0123456789abcdef", 1<<16)) // 1 MiB, more than a pipe holds
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = in.write(ctx, whole{in}, 0, data, false)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	// The same write again goes on where the first one had to stop.
	read := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(r)
		read <- all
	}()
	next, err := in.write(t.Context(), whole{in}, 0, data, true)
	require.NoError(t, err)
	require.EqualValues(t, len(data), next)
	require.Equal(t, string(data), string(receive(t, read)))
}

func TestASessionOfSSHKnowsItsTerminal(t *testing.T) {
	b := startBox(t)
	for kind, want := range map[string]string{"ssh": "same", "": "other"} {
		stream, err := b.processes.Run(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{
			Args: []string{"sh", "-c", `if [ "$SSH_TTY" = "$(tty)" ]; then echo same; else echo other; fi`}, Pty: &carrelv1.TerminalSize{}, Kind: kind,
		}))
		require.NoError(t, err)
		s := &seen{}
		require.NoError(t, s.readAll(stream))
		require.Equal(t, want+"\r\n", s.out[stdout].String())
	}
}

func TestATerminal(t *testing.T) {
	b := startBox(t)
	request := &carrelv1.StartProcessRequest{Args: []string{"sh"}, Pty: &carrelv1.TerminalSize{Rows: 33, Cols: 77}, Env: map[string]string{"PS1": "", "ENV": ""}}
	stream, err := b.processes.Run(b.context(), connect.NewRequest(request))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	id := stream.Msg().GetStarted().GetId()
	s := &seen{}
	offset := int64(0)
	say := func(text, want string) {
		t.Helper()
		next, err := b.write(id, offset, text, false)
		require.NoError(t, err)
		offset = next
		for !strings.Contains(s.out[stdout].String(), want) {
			require.True(t, stream.Receive(), "%q in %q", want, s.out[stdout].String())
			require.NoError(t, s.add(stream.Msg()))
		}
	}
	say("stty size; tty; echo $TERM\n", "xterm-256color")
	require.Contains(t, s.out[stdout].String(), "33 77")
	require.Contains(t, s.out[stdout].String(), "/dev/pts/")
	_, err = b.processes.Resize(b.context(), connect.NewRequest(&carrelv1.ResizeProcessRequest{Process: id, Size: &carrelv1.TerminalSize{Rows: 50, Cols: 100}}))
	require.NoError(t, err)
	say("stty size\n", "50 100")
	say("sh -c \"trap 'exit 7' INT; echo begin; while :; do sleep 0.01; done\"; echo after $?\n", "begin\r\n")
	say("\x03", "after 7")
	next, err := b.write(id, offset, "", true)
	require.NoError(t, err)
	require.Equal(t, offset, next)
	require.NoError(t, s.readAll(stream))
	require.True(t, s.exited.GetPty())
	require.Zero(t, s.out[stderr].Len())
	_, err = b.processes.Resize(b.context(), connect.NewRequest(&carrelv1.ResizeProcessRequest{Process: id, Size: &carrelv1.TerminalSize{Rows: 1, Cols: 1}}))
	require.Equal(t, "process_ended", reason(t, err))

	// End-of-file behind an unfinished line.
	p := b.start(&carrelv1.StartProcessRequest{Args: []string{"cat"}, Pty: &carrelv1.TerminalSize{}})
	_, err = b.write(p.GetId(), 0, "unfinished", true)
	require.NoError(t, err)
	require.Zero(t, b.finish(p.GetId()).GetExitCode())
	plain := b.start(sh("exec sleep 1000"))
	_, err = b.processes.Resize(b.context(), connect.NewRequest(&carrelv1.ResizeProcessRequest{Process: plain.GetId()}))
	require.Equal(t, "no_terminal", reason(t, err))
}

func TestStartupCommandsAreProcessesWhoseFailureHarmsNobody(t *testing.T) {
	b := startBox(t, withStartup("touch began", "exit 3"))
	eventually(t, func() bool {
		list := b.list()
		return len(list) == 2 && !list[0].GetRunning() && !list[1].GetRunning()
	}, "both have run")
	_, err := os.Stat(filepath.Join(b.config.Home, "began"))
	require.NoError(t, err)
	require.EqualValues(t, 3, b.list()[1].GetExitCode())
}

func TestSeveralTypeIntoOneTerminalAndEachByteIsTypedOnce(t *testing.T) {
	b := startBox(t)
	stream, err := b.processes.Run(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"cat"}, Stdin: true}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	id := stream.Msg().GetStarted().GetId()
	typed := func(writer string, offset int64, text string, eof bool) int64 {
		response, err := b.processes.WriteInput(b.context(), connect.NewRequest(&carrelv1.WriteInputRequest{Process: id, Writer: writer, Offset: offset, Data: []byte(text), Eof: eof}))
		require.NoError(t, err)
		return response.Msg.GetNextOffset()
	}
	require.EqualValues(t, 3, typed("a", 0, "one", false))
	require.EqualValues(t, 3, typed("b", 0, "two", false))
	require.EqualValues(t, 3, typed("a", 0, "one", false), "again")
	require.EqualValues(t, 6, typed("a", 0, "one+a+", false), "and what is new of it")
	require.EqualValues(t, 12, typed("", -1, "end", true), "behind everything")
	s := collect(t, stream)
	require.Equal(t, "onetwo+a+end", s.out[stdout].String())
	_, err = b.processes.WriteInput(b.context(), connect.NewRequest(&carrelv1.WriteInputRequest{Process: id, Writer: "a", Offset: 7, Data: []byte("x")}))
	require.Equal(t, "input_gap", reason(t, err))
}
