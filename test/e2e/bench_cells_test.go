//go:build bench

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

const (
	cellPairs      = 200
	cellFloodPairs = 12
	jupyterPort    = 8888
)

// tinyCell is what is run to measure the way there and back.
const tinyCell = "print(6 * 7)"

// floodCell puts out 100 MB, and leaves how long that took the kernel, in seconds, and when it was done.
const floodCell = `import sys, time
began = time.time()
for i in range(100):
    sys.stdout.write(('x' * 99 + '\n') * 10000)
sys.stdout.flush()
open('flooded', 'w').write(f'{time.time() - began} {time.time()}')
`

// TestBenchCells measures a cell's way to a kernel and back, against Debian's Jupyter server in the same box, reached directly; when a live viewer has
// all of 100 MB of a cell's output; and how much a stalled one slows the kernel.
func TestBenchCells(t *testing.T) {
	s := newStack(t, options{})
	s.must("image", "build", "testdata/jupyter.yaml", "--timeout", "20m")
	s.push("name: jupyter\nimage: jupyter\nresources: {cpu: 2, memory: 1GiB, home: 1GiB, root: 256MiB}\nsudo: true\n")
	box := s.create("cells", func(r *carrelv1.CreateBoxRequest) { r.Template = "jupyter" })
	ours := func() time.Duration {
		began := time.Now()
		answer, err := s.client.Execute(s.ctx(), &carrelv1.ExecuteRequest{Box: "cells", Code: tinyCell, Wait: durationpb.New(time.Minute)})
		require.NoError(t, err)
		took := time.Since(began)
		require.True(t, answer.GetDone())
		require.Equal(t, "42\n", answer.GetExecutions()[0].GetOutputs()[0].AsMap()["text"])
		return took
	}
	j := s.startJupyter(box)
	theirs := func() time.Duration {
		began := time.Now()
		require.Equal(t, "42\n", j.execute(tinyCell))
		return time.Since(began)
	}
	for range 5 { // what is made once
		ours()
		theirs()
	}
	trip := comparison{name: "cell to a kernel and back, ms", aim: 1.30}
	for i := range cellPairs {
		var one, two time.Duration
		if i%2 == 0 {
			one = ours()
		}
		two = theirs()
		if i%2 != 0 {
			one = ours()
		}
		trip.add(one, two)
	}
	_ = j.conn.CloseNow()

	var late, told, slower, alone series
	for i := range cellFloodPairs {
		var one, two flooded
		if i%2 == 0 {
			one = s.floodCell(false)
		}
		two = s.floodCell(true)
		if i%2 != 0 {
			one = s.floodCell(false)
		}
		late, told, slower, alone = append(late, one.late), append(told, one.told), append(slower, two.took/one.took), append(alone, one.took)
	}
	fmt.Printf("\n| what | Carrel | Jupyter server | ratio, median of pairs (p10 to p90) | aim |\n| --- | --- | --- | --- | --- |\n%s\n"+
		"| 100 MB of a cell's output: a live viewer has all of it so long after the code has ended, s | %.2f (worst %.2f) | | | ≤ 2 |\n"+
		"| the same, after the agent knew of its end, s | %.2f (worst %.2f) | | | |\n"+
		"| the kernel's time for it, with a stalled viewer against without (%.2f s) | | | **%.2f** (%.2f to %.2f) | ≤ 1.05 |\n",
		trip.row(), late.quantile(0.5), late.quantile(1), told.quantile(0.5), told.quantile(1), alone.quantile(0.5), slower.quantile(0.5), slower.quantile(0.1), slower.quantile(0.9))
	s.remove("cells")
}

// flooded is what came of floodCell, in seconds: how long it took the kernel, and how long after its end, and after the agent knew of that, a live viewer
// had everything.
type flooded struct{ took, late, told float64 }

// floodCell runs floodCell in the shared kernel while one viewer looks, and another one that never reads if stalled.
func (s *stack) floodCell(stalled bool) (f flooded) {
	s.t.Helper()
	status, err := s.client.NotebookStatus(s.ctx(), "cells")
	require.NoError(s.t, err)
	live := &viewer{s: s, cursor: status.GetCursor()}
	live.open("cells")
	defer func() { _ = live.conn.CloseNow() }()
	if stalled {
		other := &viewer{s: s, cursor: status.GetCursor()}
		other.open("cells")
		defer func() { _ = other.conn.CloseNow() }()
	}
	begun, err := s.client.Execute(s.ctx(), &carrelv1.ExecuteRequest{Box: "cells", Code: floodCell})
	require.NoError(s.t, err)
	live.execution = begun.GetExecutions()[0].GetId()
	live.until(func() bool { return live.ended != nil })
	complete := time.Now()
	require.Equal(s.t, carrelv1.ExecutionState_EXECUTION_STATE_OK, live.ended.GetState(), live.ended.GetMessage())
	file := live.ended.GetOutputFile()
	left := fmt.Sprintf("[%d bytes of output are left out here: all of it is in %s]", live.ended.GetTruncatedBytes(), file)
	require.True(s.t, strings.Contains(live.text, left), "%q does not end with %q", live.text[max(0, len(live.text)-300):], left)
	require.Equal(s.t, "100000000", s.sh("cells", "stat -c %s "+file+" && rm "+file), "the whole text is in the box, which has no room for many of them")
	figures := strings.Fields(s.sh("cells", "cat flooded"))
	f.took, err = strconv.ParseFloat(figures[0], 64)
	require.NoError(s.t, err)
	done, err := strconv.ParseFloat(figures[1], 64)
	require.NoError(s.t, err)
	f.late = complete.Sub(time.Unix(0, int64(done*1e9))).Seconds()
	f.told = complete.Sub(live.ended.GetEndTime().AsTime()).Seconds()
	return f
}

// jupyter is a client of a kernel of a Jupyter server.
type jupyter struct {
	s       *stack
	conn    *websocket.Conn
	session string
}

// startJupyter starts Debian's Jupyter server in a box, and a kernel of it, and reaches both directly.
func (s *stack) startJupyter(box *carrelv1.Box) *jupyter {
	s.t.Helper()
	address, _, err := net.SplitHostPort(s.agentAddress(box))
	require.NoError(s.t, err)
	s.letThrough(address)
	_, err = s.client.Exec(s.ctx(), client.ExecOptions{Box: box.GetId(), Detach: true, Args: []string{
		"jupyter-server", "--ip=0.0.0.0", fmt.Sprint("--port=", jupyterPort), "--no-browser", "--ServerApp.token=t", "--ServerApp.allow_origin=*",
	}})
	require.NoError(s.t, err)
	s.awaitListener(box.GetId(), jupyterPort)
	base := fmt.Sprintf("http://%s:%d/api/kernels", address, jupyterPort)
	request, err := http.NewRequestWithContext(s.ctx(), http.MethodPost, base+"?token=t", bytes.NewReader([]byte(`{"name":"python3"}`)))
	require.NoError(s.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(s.t, err)
	defer response.Body.Close()
	require.Equal(s.t, http.StatusCreated, response.StatusCode)
	var kernel struct{ ID string }
	require.NoError(s.t, json.NewDecoder(response.Body).Decode(&kernel))
	j := &jupyter{s: s, session: rand.Text()}
	j.conn, _, err = websocket.Dial(s.ctx(), strings.Replace(base, "http", "ws", 1)+"/"+kernel.ID+"/channels?token=t&session_id="+j.session, nil)
	require.NoError(s.t, err)
	j.conn.SetReadLimit(64 << 20)
	return j
}

// execute runs code and gives what it wrote, when the reply and the end have both come.
func (j *jupyter) execute(code string) (text string) {
	j.s.t.Helper()
	id := rand.Text()
	message, err := json.Marshal(map[string]any{
		"channel": "shell", "header": map[string]any{"msg_id": id, "msg_type": "execute_request", "session": j.session, "username": "bench", "version": "5.3"},
		"parent_header": map[string]any{}, "metadata": map[string]any{}, "buffers": []any{},
		"content": map[string]any{"code": code, "silent": false, "store_history": true, "user_expressions": map[string]any{}, "allow_stdin": false, "stop_on_error": true},
	})
	require.NoError(j.s.t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(j.s.t, j.conn.Write(ctx, websocket.MessageText, message))
	for replied, idle := false, false; !replied || !idle; {
		_, data, err := j.conn.Read(ctx)
		require.NoError(j.s.t, err)
		var got struct {
			Header struct {
				MsgType string `json:"msg_type"`
			} `json:"header"`
			Parent struct {
				MsgID string `json:"msg_id"`
			} `json:"parent_header"`
			Content struct {
				Text  string `json:"text"`
				State string `json:"execution_state"`
			} `json:"content"`
		}
		require.NoError(j.s.t, json.Unmarshal(data, &got))
		if got.Parent.MsgID != id {
			continue
		}
		switch got.Header.MsgType {
		case "stream":
			text += got.Content.Text
		case "execute_reply":
			replied = true
		case "status":
			idle = idle || got.Content.State == "idle"
		}
	}
	return text
}
