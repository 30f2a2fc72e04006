package node

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOrphansAreReapedAndChildrenLeftToWhomTheyBelong(t *testing.T) {
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer func() { require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)) }()
	// A process that is left behind by its parent, and then ends: while the shell is there it may collect it itself.
	held, release, err := os.Pipe()
	require.NoError(t, err)
	defer held.Close()
	parent := exec.Command("sh", "-c", "cat <&3 >/dev/null 2>&1 & echo $!")
	parent.ExtraFiles = []*os.File{held}
	out, err := parent.Output()
	require.NoError(t, err)
	orphan, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	require.NoError(t, release.Close())
	// A child of ours, which we have not waited for yet.
	child := exec.Command("true")
	require.NoError(t, child.Start())
	dead := func(pid int) func() bool { return func() bool { return isZombie(pid) } }
	require.Eventually(t, dead(orphan), time.Minute, time.Millisecond)
	require.Eventually(t, dead(child.Process.Pid), time.Minute, time.Millisecond)

	now := time.Now()
	waiting := reapOnce(nil, now, reapAge)
	require.Contains(t, waiting, orphan)
	require.True(t, isZombie(orphan), "it might still be waited for")
	require.NoError(t, child.Wait(), "the child was taken from us")
	waiting = reapOnce(waiting, now.Add(reapAge), reapAge)
	require.NotContains(t, waiting, orphan)
	require.False(t, isZombie(orphan))
}
