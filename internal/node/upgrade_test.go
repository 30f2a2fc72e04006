package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// with starts the node again, with another runsc for new boxes.
func (n *realNode) with(runsc string) {
	n.t.Helper()
	n.stop()
	n.runsc = runsc
	n.start()
}

// holding starts a box in which a program counts.
func (n *realNode) holding() *box {
	n.t.Helper()
	b := &box{w: n.world, id: carrel.NewBoxID()}
	b.start()
	_, err := n.agent(b).Start(n.t.Context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"/bin/hold", "8"}}))
	require.NoError(n.t, err)
	return b
}

// goesOn waits until the program in the box counts further than before, and fails if it is another or has other memory.
func (n *realNode) goesOn(b *box, was *counted) {
	n.t.Helper()
	n.eventually("the program counts on", func() bool {
		require.NoError(n.t, n.rt.Freeze(n.t.Context(), b.run))
		defer func() { require.NoError(n.t, n.rt.Thaw(n.t.Context(), b.run)) }()
		is, err := n.lookAtCount(b)
		if errors.Is(err, os.ErrNotExist) {
			return false // not yet
		}
		require.NoError(n.t, err)
		if was.sum != "" {
			require.Equal(n.t, was.pid, is.pid, "it is another process")
			require.Equal(n.t, was.sum, is.sum, "its memory is another")
		}
		more := is.count > was.count
		*was = is
		return more
	})
}

// binaries are those of runsc that the node keeps.
func (n *realNode) binaries() []string {
	found, err := filepath.Glob(filepath.Join(n.dir, "data", "bin", "runsc-*"))
	require.NoError(n.t, err)
	return found
}

func (n *realNode) version(b *box) string {
	n.t.Helper()
	version, err := n.rt.VersionOf(b.run)
	require.NoError(n.t, err)
	return version
}

// saved is the version that control was told with the box's newest snapshot.
func (n *realNode) saved(b *box) string {
	n.control.mu.Lock()
	defer n.control.mu.Unlock()
	return n.control.held[n.control.newest[string(b.id)]].GetRuntimeVersion()
}

// Another runsc comes with a newer Carrel. Boxes that run and boxes that are paused go on with theirs, which stays for as long as
// one of them needs it.
func TestRealUpgrade(t *testing.T) {
	if testing.Short() {
		return // gVisor needs root
	}
	oldRunsc, newRunsc := tool(t, "CARREL_RUNSC", "runsc", ""), tool(t, "CARREL_RUNSC_NEXT", "runsc-next", "")
	n := newRealNode(t)
	running, paused := n.holding(), n.holding()
	var runningCount, pausedCount counted
	n.goesOn(running, &runningCount)
	n.goesOn(paused, &pausedCount)
	former := n.version(running)
	paused.pause()

	n.with(newRunsc)
	newer := n.rt.Capabilities().Version
	require.NotEqual(t, former, newer)

	// The one that ran is adopted: it does what it is told, and its memory is saved and goes on.
	n.eventually("a command runs in the adopted box", func() bool {
		out, err := n.once(running)
		return err == nil && out != ""
	})
	n.goesOn(running, &runningCount)
	running.pause()
	require.Equal(t, former, n.saved(running))
	running.start()
	require.Equal(t, "memory", running.last().GetStartedFrom())
	require.Equal(t, former, n.version(running))
	n.goesOn(running, &runningCount)

	// The one that was paused is resumed.
	paused.start()
	require.Equal(t, "memory", paused.last().GetStartedFrom())
	require.Equal(t, former, n.version(paused))
	n.goesOn(paused, &pausedCount)

	// A cold start brings the new one, and from then on it is that.
	running.stop()
	running.start()
	require.Equal(t, newer, n.version(running))
	running.pause()
	require.Equal(t, newer, n.saved(running))

	// The former one stays while a box runs on it, or has memory of it, and then goes.
	n.with(newRunsc)
	require.Len(t, n.binaries(), 2)
	n.goesOn(paused, &pausedCount)
	paused.pause()
	n.with(newRunsc)
	require.Len(t, n.binaries(), 2)
	paused.start()
	n.goesOn(paused, &pausedCount)
	paused.stop()
	n.eventually("its older snapshots are dropped", func() bool {
		n.control.mu.Lock()
		defer n.control.mu.Unlock()
		return len(n.control.doomed) == 0
	})
	n.with(newRunsc)
	require.Len(t, n.binaries(), 1)
	require.Empty(t, n.rt.Capabilities().Former)

	// Back to the former Carrel, and somebody removed the binary that the paused box needs.
	n.stop()
	for _, path := range n.binaries() {
		require.NoError(t, os.Remove(path))
	}
	n.with(oldRunsc)
	running.generation++
	running.assign()
	refused := running.wait()
	require.Equal(t, "failed", refused.GetPhase())
	require.Equal(t, carrel.ReasonSnapshotIncompatible, refused.GetReason())
	require.False(t, refused.GetTransient())
	require.Contains(t, refused.GetMessage(), newer)
	require.Contains(t, refused.GetMessage(), former)
	running.withMemory = false
	running.start()
	require.Equal(t, "disk", running.last().GetStartedFrom())
	require.Equal(t, former, n.version(running))
	require.NoError(t, n.rt.Freeze(t.Context(), running.run))
	_, _, sum := n.count(running)
	require.NoError(t, n.rt.Thaw(t.Context(), running.run))
	require.Equal(t, runningCount.sum, sum, "its home is another")
	running.delete()
	paused.delete()
}
