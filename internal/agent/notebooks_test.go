package agent

import (
	"context"
	"net"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
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
