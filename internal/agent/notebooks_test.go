package agent

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
)

// notebookClient speaks to the box's notebooks.
func (b *box) notebookClient() agentv1connect.NotebookServiceClient {
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialTarget(ctx, b.Addr().String(), b.identity.Key, "agent")
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	b.t.Cleanup(transport.CloseIdleConnections)
	return agentv1connect.NewNotebookServiceClient(&http.Client{Transport: transport}, "http://box")
}

// TestKernelsAreProcessesOfTheBox promises that a kernel is listed, that what it executes keeps the box awake, and that it ends with
// the box.
func TestKernelsAreProcessesOfTheBox(t *testing.T) {
	b := startBox(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	notebooks := b.notebookClient()
	specs, err := notebooks.ListKernelSpecs(ctx, connect.NewRequest(&carrelv1.ListKernelSpecsRequest{}))
	require.NoError(t, err)
	require.Equal(t, "python3", specs.Msg.GetDefaultSpec())

	request := connect.NewRequest(&carrelv1.ExecuteRequest{Code: "print('on', flush=True)\nimport time\ntime.sleep(1000)"})
	request.Header().Set(HeaderUser, "alice")
	answer, err := notebooks.Execute(ctx, request)
	require.NoError(t, err)
	execution := answer.Msg.GetExecutions()[0]
	require.Equal(t, "alice", execution.GetStartedBy())
	stream, err := notebooks.WatchNotebooks(ctx, connect.NewRequest(&carrelv1.WatchNotebooksRequest{After: "0"}))
	require.NoError(t, err)
	for stream.Receive() && stream.Msg().GetOutput() == nil { //nolint:revive // the output is waited for
	}
	require.NoError(t, stream.Err())
	require.NoError(t, stream.Close())

	activity, err := b.control.Activity(ctx, connect.NewRequest(&agentv1.ActivityRequest{}))
	require.NoError(t, err)
	require.Len(t, activity.Msg.GetCommands(), 1)
	require.True(t, activity.Msg.GetCommands()[0].GetCell())
	require.NotNil(t, activity.Msg.GetCommands()[0].GetStartTime())
	require.Zero(t, activity.Msg.GetViewers(), "the agent itself is nobody who looks")
	processes, err := b.processes.List(ctx, connect.NewRequest(&carrelv1.ListProcessesRequest{}))
	require.NoError(t, err)
	require.Len(t, processes.Msg.GetProcesses(), 1)
	require.Equal(t, kindKernel, processes.Msg.GetProcesses()[0].GetKind())
	require.Equal(t, boxUser, processes.Msg.GetProcesses()[0].GetUser())

	usage, err := notebooks.GetUsage(ctx, connect.NewRequest(&carrelv1.GetUsageRequest{}))
	require.NoError(t, err)
	require.Positive(t, usage.Msg.GetMemoryBytes())
	require.Positive(t, usage.Msg.GetMemoryLimitBytes())
	require.Positive(t, usage.Msg.GetHomeLimitBytes())
	require.Positive(t, usage.Msg.GetCpuLimitMillis())
	require.Positive(t, usage.Msg.GetProcesses())

	_, err = notebooks.Interrupt(ctx, connect.NewRequest(&carrelv1.InterruptRequest{}))
	require.NoError(t, err)
	_, err = b.control.Quiesce(ctx, connect.NewRequest(&agentv1.QuiesceRequest{LeaseMillis: 60_000}))
	require.NoError(t, err)
	_, err = notebooks.StartKernel(ctx, connect.NewRequest(&carrelv1.StartKernelRequest{}))
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "nothing is started in a box that is about to be paused")
	_, err = b.control.Unquiesce(ctx, connect.NewRequest(&agentv1.UnquiesceRequest{}))
	require.NoError(t, err)
	done, err := notebooks.Execute(ctx, connect.NewRequest(&carrelv1.ExecuteRequest{Code: "print(1)", Wait: durationpb.New(patience)}))
	require.NoError(t, err)
	require.True(t, done.Msg.GetDone())
	activity, err = b.control.Activity(ctx, connect.NewRequest(&agentv1.ActivityRequest{}))
	require.NoError(t, err)
	require.Empty(t, activity.Msg.GetCommands())
}

// TestANewLifeFinishesNotebooks promises that what a box had not written into a notebook is written when it starts again, without anybody's asking.
func TestANewLifeFinishesNotebooks(t *testing.T) {
	home := openDir(t)
	require.NoError(t, os.Chmod(home, 0o777))
	at := func(c *Config, _ *identity.Identity) { c.Home = home }
	file := filepath.Join(home, "a.ipynb")
	t.Run("first", func(t *testing.T) {
		notebooks := startBox(t, at).notebookClient()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cell, err := structpb.NewStruct(map[string]any{"id": "one", "cell_type": "code", "source": "print('made ' + 'here')", "metadata": map[string]any{}, "outputs": []any{}})
		require.NoError(t, err)
		_, err = notebooks.EditNotebook(ctx, connect.NewRequest(&carrelv1.EditNotebookRequest{Path: "a.ipynb", Create: true, Edits: []*carrelv1.NotebookEdit{
			{Edit: &carrelv1.NotebookEdit_Insert{Insert: &carrelv1.InsertCell{Cell: cell}}},
		}}))
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			text, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(text), "made ")
		}, patience, 10*time.Millisecond)
		require.NoError(t, os.Chmod(file, 0o400))
		require.NoError(t, os.Chown(file, 0, 0)) // it cannot be written from here on
		done, err := notebooks.Execute(ctx, connect.NewRequest(&carrelv1.ExecuteRequest{Path: "a.ipynb", All: true, Wait: durationpb.New(patience)}))
		require.NoError(t, err)
		require.Equal(t, carrelv1.ExecutionState_EXECUTION_STATE_OK, done.Msg.GetExecutions()[0].GetState())
	})
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NotContains(t, string(text), "made here")
	require.NoError(t, os.Chown(file, boxUID, boxUID))
	require.NoError(t, os.Chmod(file, 0o600))
	t.Run("second", func(t *testing.T) {
		startBox(t, at)
		require.Eventually(t, func() bool {
			text, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(text), "made here")
		}, patience, 10*time.Millisecond)
	})
}

// TestRenamesTakeNotebooksAlong promises that what runs goes on in a notebook that is renamed through the box's files or by a client of Jupyter.
func TestRenamesTakeNotebooksAlong(t *testing.T) {
	b := startFileBox(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	notebooks := b.notebookClient()
	cell, err := structpb.NewStruct(map[string]any{"id": "one", "cell_type": "code", "source": "input()\nprint('after', 'it')", "metadata": map[string]any{}, "outputs": []any{}})
	require.NoError(t, err)
	_, err = notebooks.EditNotebook(ctx, connect.NewRequest(&carrelv1.EditNotebookRequest{Path: "a.ipynb", Create: true, Edits: []*carrelv1.NotebookEdit{
		{Edit: &carrelv1.NotebookEdit_Insert{Insert: &carrelv1.InsertCell{Cell: cell}}},
	}}))
	require.NoError(t, err)
	done, err := notebooks.Execute(ctx, connect.NewRequest(&carrelv1.ExecuteRequest{Path: "a.ipynb", All: true, AllowInput: true}))
	require.NoError(t, err)
	id := done.Msg.GetExecutions()[0].GetId()
	for _, dir := range []string{"one", "one/two", "three", "three/four"} { // so far away that nobody would find it there
		require.NoError(t, os.Mkdir(b.at(dir), 0o755))
		b.give(dir)
	}
	_, err = b.files.Move(ctx, connect.NewRequest(&carrelv1.MoveFileRequest{Source: "a.ipynb", Destination: "one/two/b.ipynb"}))
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialTarget(ctx, b.Addr().String(), b.identity.Key, "jupyter")
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch, "http://box/api/contents/one/two/b.ipynb", strings.NewReader(`{"path": "three/four/c.ipynb"}`))
	require.NoError(t, err)
	answer, err := client.Do(request)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Eventually(t, func() bool {
		_, err := notebooks.AnswerInput(ctx, connect.NewRequest(&carrelv1.AnswerInputRequest{Execution: id, Value: "x"}))
		return err == nil
	}, patience, 10*time.Millisecond, "it asks")
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(b.at("three/four/c.ipynb"))
		return err == nil && strings.Contains(string(text), "after it")
	}, patience, 10*time.Millisecond)
	require.NoFileExists(t, b.at("a.ipynb"))
	require.NoFileExists(t, b.at("one/two/b.ipynb"))
}
