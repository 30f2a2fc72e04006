package node_test

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// In gVisor a listener of the box's user is shown with its program, also after a resume, and nobody has a capability for that.
func TestRealListenersShowTheirPrograms(t *testing.T) {
	if testing.Short() {
		return // gVisor needs root
	}
	n := newRealNode(t)
	b := &box{w: n.world, id: carrel.NewBoxID(), memory_: 512 * carrel.MiB}
	b.start()
	listen := func(port string) int32 {
		started, err := n.agent(b).Start(t.Context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"/bin/listen", port}}))
		require.NoError(t, err)
		return started.Msg.GetPid()
	}
	list := func() []*agentv1.Listener {
		ports := agentv1connect.NewForwardServiceClient(n.client(b), "http://agent")
		answer, err := ports.ListListeners(t.Context(), connect.NewRequest(&agentv1.ListListenersRequest{}))
		require.NoError(t, err)
		return answer.Msg.GetListeners()
	}
	shown := func(port uint32, pid int32, process string) {
		t.Helper()
		var last []*agentv1.Listener
		n.eventually("the port is shown with its program", func() bool {
			last = list()
			for _, one := range last {
				if one.GetPort() == port {
					require.Equal(t, process, one.GetProcess())
					require.Equal(t, pid, one.GetPid())
					return true
				}
			}
			return false
		})
		require.True(t, last[0].GetLoopback())
	}
	first := listen("8000")
	shown(8000, first, "/bin/listen 8000")
	b.pause()
	b.start()
	require.Equal(t, "memory", b.last().GetStartedFrom())
	shown(8000, first, "/bin/listen 8000")
	shown(8001, listen("8001"), "/bin/listen 8001")
	require.Len(t, list(), 2)

	processes, err := n.agent(b).List(t.Context(), connect.NewRequest(&carrelv1.ListProcessesRequest{}))
	require.NoError(t, err)
	require.Len(t, processes.Msg.GetProcesses(), 2, "what looks for them is none of the box's processes")
	stream, err := n.agent(b).Attach(t.Context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: processes.Msg.GetProcesses()[0].GetId()}))
	require.NoError(t, err)
	var said strings.Builder
	for strings.Count(said.String(), "\n") < 10 && stream.Receive() {
		said.Write(stream.Msg().GetOutput().GetData())
	}
	require.NoError(t, stream.Close())
	const trace = 1 << 19 // CAP_SYS_PTRACE
	for line := range strings.Lines(said.String()) {
		var who, set string
		var bits uint64
		_, err := fmt.Sscanf(line, "%s Cap%s %x", &who, &set, &bits)
		require.NoError(t, err, line)
		require.Zero(t, bits&trace, line)
		if who == "self" && set != "Bnd:" {
			require.Zero(t, bits, "a program of the user has a capability: "+line)
		}
	}
}
