package e2e

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// viewer is a page's end of a box's stream, which follows one execution.
type viewer struct {
	s         *stack
	conn      *websocket.Conn
	execution string
	cursor    string
	text      string
	ended     *carrelv1.Execution
}

// ticket gives a ticket for a box, and the box's id.
func (s *stack) ticket(box string) (ticket, id string) {
	s.t.Helper()
	answer, err := s.client.Boxes.CreateTicket(s.ctx(), connect.NewRequest(&carrelv1.CreateTicketRequest{Id: box}))
	require.NoError(s.t, err)
	return answer.Msg.GetTicket(), answer.Msg.GetBoxId()
}

// open opens the stream and asks for what comes after the cursor.
func (v *viewer) open(box string) {
	v.s.t.Helper()
	ticket, id := v.s.ticket(box)
	conn, _, err := websocket.Dial(v.s.ctx(), v.s.url+"/v1/boxes/"+id+"/stream", &websocket.DialOptions{
		Subprotocols: []string{"carrel.ticket." + ticket, "carrel.stream.v1"}, HTTPHeader: http.Header{"Origin": {v.s.url}},
	})
	require.NoError(v.s.t, err, "%s", lazy(v.s.logs))
	conn.SetReadLimit(40 << 20)
	v.conn = conn
	v.ask(&carrelv1.StreamRequest{Channel: 1, Request: &carrelv1.StreamRequest_Notebooks{Notebooks: &carrelv1.WatchNotebooksRequest{After: v.cursor}}})
	v.ask(&carrelv1.StreamRequest{Channel: 2, Request: &carrelv1.StreamRequest_Usage{Usage: &carrelv1.WatchUsage{Seconds: 1}}})
}

func (v *viewer) ask(request *carrelv1.StreamRequest) {
	v.s.t.Helper()
	data, err := proto.Marshal(request)
	require.NoError(v.s.t, err)
	require.NoError(v.s.t, v.conn.Write(v.s.ctx(), websocket.MessageBinary, data))
}

// take takes one event. The error is the end of the socket.
func (v *viewer) take() (*carrelv1.StreamEvent, error) {
	v.s.t.Helper()
	_, data, err := v.conn.Read(v.s.ctx())
	if err != nil {
		return nil, err
	}
	event := &carrelv1.StreamEvent{}
	require.NoError(v.s.t, proto.Unmarshal(data, event))
	v.see(event.GetNotebook())
	return event, nil
}

func (v *viewer) see(event *carrelv1.NotebookEvent) {
	v.s.t.Helper()
	require.False(v.s.t, event.GetGap(), "nothing may be missing")
	if event.GetCursor() != "" {
		v.cursor = event.GetCursor()
	}
	if event.GetExecution() == v.execution {
		if output := event.GetOutput().GetFields(); output["output_type"].GetStringValue() == "stream" {
			v.text += output["text"].GetStringValue()
		}
		if event.GetEnded() != nil {
			v.ended = event.GetEnded()
		}
	}
}

func (v *viewer) until(done func() bool) {
	v.s.t.Helper()
	for !done() {
		event, err := v.take()
		require.NoError(v.s.t, err, "%s", lazy(v.s.logs))
		require.Nil(v.s.t, event.GetError())
	}
}

func (v *viewer) has(text string) func() bool {
	return func() bool { return strings.Contains(v.text, text) }
}

// count begins code that counts for ten seconds and looks at it.
func (s *stack) count(box string) *viewer {
	s.t.Helper()
	status, err := s.client.NotebookStatus(s.ctx(), box)
	require.NoError(s.t, err)
	begun, err := s.client.Execute(s.ctx(), &carrelv1.ExecuteRequest{Box: box, Code: counting})
	require.NoError(s.t, err)
	v := &viewer{s: s, execution: begun.GetExecutions()[0].GetId(), cursor: status.GetCursor()}
	v.open(box)
	return v
}

// A page that looks at a box sees everything once, whatever breaks behind the gateway, and is told when the box is paused.
func TestAPageFollowsItsBox(t *testing.T) {
	s := newStack(t, options{images: "python"})
	s.create("py", func(r *carrelv1.CreateBoxRequest) { r.Template = "python" })

	v := s.count("py")
	v.until(v.has("line 4\n"))
	require.NoError(t, syscall.Kill(s.rolePID("proxy"), syscall.SIGKILL))
	v.until(func() bool { return v.ended != nil })
	require.Equal(t, counted(), v.text, "the page noticed nothing")
	require.NoError(t, v.conn.Close(websocket.StatusNormalClosure, ""))

	v = s.count("py")
	v.until(v.has("line 4\n"))
	_, err := s.client.Boxes.PauseBox(s.ctx(), connect.NewRequest(&carrelv1.PauseBoxRequest{Id: "py"}))
	require.NoError(t, err)
	for err == nil {
		_, err = v.take()
	}
	require.EqualValues(t, 4410, websocket.CloseStatus(err), "%v", err)
	s.await("py", paused)
	s.resume("py")
	v.open("py")
	v.until(func() bool { return v.ended != nil })
	require.Equal(t, counted(), v.text, "what came before the pause, and after it")

	// The same as server-sent events, by the run's id.
	box, err := s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "py"}))
	require.NoError(t, err)
	ticket, _ := s.ticket("py")
	request, err := http.NewRequestWithContext(s.ctx(), http.MethodGet, s.url+"/v1/sessions/"+box.Msg.GetRunId()+"/stream?after=0&execution="+v.execution, nil)
	require.NoError(t, err)
	request.Header.Set("Accept", "text/event-stream")
	request.Header.Set("Authorization", "Bearer "+ticket)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	again := &viewer{s: s, execution: v.execution}
	lines := bufio.NewScanner(response.Body)
	for again.ended == nil && lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			event := &carrelv1.NotebookEvent{}
			require.NoError(t, protojson.Unmarshal([]byte(data), event))
			again.see(event)
		}
	}
	require.Equal(t, counted(), again.text)
}

// What `carrel run` promises, with a real kernel.
func TestRunFromTheCommandLine(t *testing.T) {
	s := newStack(t, options{images: "python"})
	s.create("py", func(r *carrelv1.CreateBoxRequest) { r.Template = "python" })
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}

	plot := write("plot.py", "import sys\nimport matplotlib.pyplot as plt\nprint('to stdout')\nprint('to stderr', file=sys.stderr)\nplt.plot([1, 4, 9])\nplt.show()\n6 * 7\n")
	ran := s.carrel("run", "py", plot)
	require.Equal(t, 0, ran.code, "%s", ran)
	require.Contains(t, ran.stdout, "to stdout\n")
	require.Contains(t, ran.stderr, "to stderr\n")
	require.Regexp(t, `\[image/png \d+ kB\]\n`, ran.stdout)
	require.Contains(t, ran.stdout, "\n42\n")

	ran = s.carrel("run", "py", write("bad.py", "x = 1\nx / 0\n"))
	require.Equal(t, 1, ran.code)
	require.Contains(t, ran.stderr, "ZeroDivisionError")
	require.NotContains(t, ran.stderr, "\x1b[")
	require.Empty(t, strings.TrimSpace(s.must("kernel", "list", "py", "-o", "name")), "kernels of their own are gone")

	// A shared kernel keeps its variables.
	require.Equal(t, 0, s.carrel("run", "py", write("set.py", "x = 40\n"), "--kernel", "python3").code)
	require.Equal(t, "42\n", s.carrel("run", "py", write("get.py", "x + 2\n"), "--kernel", "python3").stdout)

	// A notebook of this machine, with its outputs in another file.
	cell := func(id, source string) map[string]any {
		return map[string]any{"cell_type": "code", "id": id, "metadata": map[string]any{}, "source": source, "outputs": []any{}, "execution_count": nil}
	}
	document := map[string]any{"nbformat": 4, "nbformat_minor": 5, "metadata": map[string]any{}, "cells": []any{cell("a", "y = 6"), cell("b", "print(y * 7)"), cell("c", "1/0"), cell("d", "print('never')")}}
	text, err := json.Marshal(document)
	require.NoError(t, err)
	local, done := write("work.ipynb", string(text)), filepath.Join(dir, "done.ipynb")
	ran = s.carrel("run", "py", local, "--output", done)
	require.Equal(t, 1, ran.code, "%s", ran)
	require.Equal(t, "42\n", ran.stdout)
	require.Contains(t, ran.stderr, "cells that were not run: 1")
	kept, err := os.ReadFile(done)
	require.NoError(t, err)
	out := &structpb.Struct{}
	require.NoError(t, protojson.Unmarshal(kept, out))
	require.Contains(t, string(kept), "ZeroDivisionError")
	require.Contains(t, string(kept), "42")
	same, err := os.ReadFile(local)
	require.NoError(t, err)
	require.Equal(t, string(text), string(same), "the file itself stays as it is")
	require.Empty(t, s.sh("py", "ls -A | grep carrel-run || true"), "nothing is left in the box")

	// The same in the box, in its own kernel.
	s.must("cp", local, "py:work.ipynb")
	require.Equal(t, 1, s.carrel("run", "py:work.ipynb").code)
	require.Contains(t, s.must("kernel", "list", "py"), "/work.ipynb")
	s.eventually("outputs are in the notebook", func() bool { return strings.Contains(s.sh("py", "cat work.ipynb"), "ZeroDivisionError") })
}
