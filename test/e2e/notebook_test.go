package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// counting is a cell that takes ten seconds, of which each line says how far it is.
const counting = "import time\nfor i in range(40):\n    print('line', i, flush=True)\n    time.sleep(0.25)\n"

// counted is what it shows in all.
func counted() string {
	var all strings.Builder
	for i := range 40 {
		fmt.Fprintf(&all, "line %d\n", i)
	}
	return all.String()
}

// follower collects what a cell shows from the events of a box, as a page does: it goes on at its cursor whenever its connection is lost.
type follower struct {
	s         *stack
	box       string
	execution string
	cursor    string
	text      string
	ended     *carrelv1.Execution
}

// until reads events until done, whatever happens to the connection.
func (f *follower) until(done func() bool) {
	f.s.t.Helper()
	f.s.eventually("the events of an execution", func() bool {
		ctx, cancel := context.WithTimeout(f.s.ctx(), settleTime)
		defer cancel()
		stream, err := f.s.client.Notebooks.WatchNotebooks(ctx, connect.NewRequest(&carrelv1.WatchNotebooksRequest{Box: f.box, After: f.cursor}))
		if err != nil {
			return done()
		}
		defer stream.Close()
		for !done() && stream.Receive() {
			event := stream.Msg()
			require.False(f.s.t, event.GetGap(), "nothing may be missing")
			if event.GetCursor() != "" {
				f.cursor = event.GetCursor()
			}
			if event.GetExecution() != f.execution {
				continue
			}
			if output := event.GetOutput().AsMap(); output["output_type"] == "stream" {
				f.text += output["text"].(string)
			}
			if event.GetEnded() != nil {
				f.ended = event.GetEnded()
			}
		}
		return done()
	})
}

// begin queues code of a notebook's only cell and follows it.
func (s *stack) begin(box, path, code string) *follower {
	s.t.Helper()
	fields, err := structpb.NewStruct(map[string]any{"id": "only", "cell_type": "code", "source": code, "metadata": map[string]any{}, "outputs": []any{}})
	require.NoError(s.t, err)
	edited, err := s.client.Notebooks.EditNotebook(s.ctx(), connect.NewRequest(&carrelv1.EditNotebookRequest{
		Box: box, Path: path, Create: true, Edits: []*carrelv1.NotebookEdit{{Edit: &carrelv1.NotebookEdit_Insert{Insert: &carrelv1.InsertCell{Cell: fields}}}},
	}))
	require.NoError(s.t, err)
	answer, err := s.client.Notebooks.Execute(s.ctx(), connect.NewRequest(&carrelv1.ExecuteRequest{Box: box, Path: path, All: true}))
	require.NoError(s.t, err)
	require.Len(s.t, answer.Msg.GetExecutions(), 1)
	return &follower{s: s, box: box, execution: answer.Msg.GetExecutions()[0].GetId(), cursor: edited.Msg.GetCursor()}
}

// complete waits for the end of a cell that counts and checks that everything of it is everywhere, once.
func (f *follower) complete(path string) {
	f.s.t.Helper()
	f.until(func() bool { return f.ended != nil })
	require.Equal(f.s.t, carrelv1.ExecutionState_EXECUTION_STATE_OK, f.ended.GetState(), f.ended.GetMessage())
	require.Equal(f.s.t, counted(), f.text, "what a viewer saw")
	execution, err := f.s.client.Notebooks.GetExecution(f.s.ctx(), connect.NewRequest(&carrelv1.GetExecutionRequest{Box: f.box, Execution: f.execution}))
	require.NoError(f.s.t, err)
	require.Equal(f.s.t, counted(), execution.Msg.GetOutputs()[0].AsMap()["text"], "what is kept of the execution")
	f.s.eventually("the notebook's file has everything", func() bool {
		return f.s.sh(f.box, "python3 -c 'import json,sys; print(\"\".join(json.load(open(sys.argv[1]))[\"cells\"][0][\"outputs\"][0][\"text\"]), end=\"\")' "+path) == strings.TrimSuffix(counted(), "\n")
	})
}

func TestCellsGoOnWhateverHappens(t *testing.T) {
	s := newStack(t, options{images: "python"})
	s.create("nb", func(r *carrelv1.CreateBoxRequest) { r.Template = "python" })

	// Paused in the middle, with its kernel, and resumed.
	f := s.begin("nb", "paused.ipynb", counting)
	f.until(func() bool { return strings.Contains(f.text, "line 4\n") })
	s.pause("nb")
	s.resume("nb")
	f.complete("paused.ipynb")

	// The gateway and the node's daemon killed in the middle.
	f = s.begin("nb", "killed.ipynb", counting)
	f.until(func() bool { return strings.Contains(f.text, "line 4\n") })
	for _, role := range []string{"gateway", "node"} {
		require.NoError(t, syscall.Kill(s.rolePID(role), syscall.SIGKILL))
	}
	f.complete("killed.ipynb")

	// The box stopped in the middle: what was shown is in the notebook, and the end is told.
	f = s.begin("nb", "stopped.ipynb", counting)
	f.until(func() bool { return strings.Contains(f.text, "line 4\n") })
	s.stopBox("nb")
	s.startBox("nb")
	f.until(func() bool { return f.ended != nil })
	require.Equal(t, carrelv1.ExecutionState_EXECUTION_STATE_LOST, f.ended.GetState())
	require.NotEmpty(t, f.ended.GetMessage())
	require.Contains(t, s.sh("nb", "cat stopped.ipynb"), "line 4")

	// The sandbox killed in the middle, a moment after something was shown: in the box's next life the notebook gets what the journal has, and nobody has to ask for it.
	f = s.begin("nb", "crashed.ipynb", counting)
	f.until(func() bool { return strings.Contains(f.text, "line 4\n") })
	look := func() *carrelv1.Box {
		box, err := answer(s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "nb"})))
		require.NoError(t, err)
		return box
	}
	before := look()
	s.killSandbox(before.GetRunId())
	s.eventually("another run", func() bool {
		now := look()
		return now.GetState() == running && now.GetEpoch() > before.GetEpoch()
	})
	s.eventually("the notebook's file has what is kept of the execution", func() bool {
		file := s.sh("nb", "python3 -c 'import json; print(*[\"\".join(o[\"text\"]) for o in json.load(open(\"crashed.ipynb\"))[\"cells\"][0][\"outputs\"]], sep=\"\", end=\"\")'")
		execution, err := s.client.Notebooks.GetExecution(s.ctx(), connect.NewRequest(&carrelv1.GetExecutionRequest{Box: "nb", Execution: f.execution}))
		if err != nil || execution.Msg.GetState() != carrelv1.ExecutionState_EXECUTION_STATE_LOST || len(execution.Msg.GetOutputs()) == 0 {
			return false
		}
		kept, _ := execution.Msg.GetOutputs()[0].AsMap()["text"].(string)
		return strings.Contains(kept, "line 0\n") && file == strings.TrimSuffix(kept, "\n")
	})

	// Far more output than is kept.
	usage, err := s.client.Notebooks.GetUsage(s.ctx(), connect.NewRequest(&carrelv1.GetUsageRequest{Box: "nb"}))
	require.NoError(t, err)
	t.Logf("usage %v", usage.Msg)
	began := time.Now()
	flooded, err := s.client.Notebooks.Execute(s.ctx(), connect.NewRequest(&carrelv1.ExecuteRequest{
		Box: "nb", Code: "import sys, time\nbegan = time.time()\nfor i in range(100):\n    sys.stdout.write(('x' * 99 + '\\n') * 10000)\nsys.stdout.flush()\nprint(f'{time.time() - began:.2f} s', file=sys.stderr)", Wait: durationpb.New(settleTime),
	}))
	require.NoError(t, err)
	took := time.Since(began)
	flood := flooded.Msg.GetExecutions()[0]
	require.Equal(t, carrelv1.ExecutionState_EXECUTION_STATE_OK, flood.GetState(), flood.GetMessage())
	t.Logf("100 MB of output: %s in all", took.Round(time.Millisecond))
	require.Equal(t, "100000000", strings.Fields(s.sh("nb", "grep -v ' s$' "+flood.GetOutputFile()+" | wc -c"))[0])
	t.Log(s.sh("nb", "grep -a ' s$' "+flood.GetOutputFile()))
}
