package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// TestBoxesOutliveAnUpgrade: a newer Carrel brings another runsc. What runs goes on and can still be paused with its memory, what is paused comes back with
// its memory, what begins anew has the newer one, and the former is removed when nothing needs it any more.
func TestBoxesOutliveAnUpgrade(t *testing.T) {
	s := newStack(t, options{})
	next := filepath.Join(bin(t), "runsc-next")
	_, err := os.Stat(next)
	require.NoError(t, err, "run `make bin/runsc-next` first")
	pids := map[string]int{}
	for _, name := range []string{"awake", "asleep"} {
		s.create(name)
		s.background(name, counter)
		pids[name], _ = s.progressOf(name)
	}
	goesOn := func(name string) {
		t.Helper()
		pid, before := s.progressOf(name)
		require.Equal(t, pids[name], pid, "%s is the same process", name)
		s.eventually(name+" counts on", func() bool { _, now := s.progressOf(name); return now > before })
	}
	s.pause("asleep")
	former := s.runtimeVersion()

	s.stop()
	s.opts.runsc = next
	s.start()
	s.eventually("the node says so", func() bool { return s.runtimeVersion() != former })

	goesOn("awake")
	s.pause("awake")
	for _, name := range []string{"awake", "asleep"} {
		require.Equal(t, "memory", s.resume(name).GetStartedFrom())
		goesOn(name)
	}
	s.create("fresh")
	require.Equal(t, "hello", s.sh("fresh", "echo hello"))
	require.Len(t, s.runscs(), 2)

	for _, name := range []string{"awake", "asleep"} {
		s.stopBox(name)
		require.Equal(t, "disk", s.startBox(name).GetStartedFrom())
		require.Equal(t, "hello", s.sh(name, "echo hello"))
	}
	s.stop()
	s.start()
	s.eventually("the former runsc is removed", func() bool { return len(s.runscs()) == 1 })
	require.Equal(t, "hello", s.sh("fresh", "echo hello"))
}

// runtimeVersion is the node's, for boxes that begin anew.
func (s *stack) runtimeVersion() string {
	s.t.Helper()
	nodes, err := s.client.Nodes.ListNodes(s.ctx(), connect.NewRequest(&carrelv1.ListNodesRequest{}))
	require.NoError(s.t, err)
	require.Len(s.t, nodes.Msg.GetNodes(), 1)
	return nodes.Msg.GetNodes()[0].GetRuntimeVersion()
}

// runscs are the binaries that the node keeps.
func (s *stack) runscs() []string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.data, "node", "bin", "runsc-*"))
	require.NoError(s.t, err)
	return found
}
