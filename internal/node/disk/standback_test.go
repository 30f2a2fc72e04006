package disk_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/node/disk"
)

func TestWhoStandsBackIsHurriedUntilItsEnd(t *testing.T) {
	policy := func(thread int) int {
		attributes, err := unix.SchedGetAttr(thread, 0)
		require.NoError(t, err)
		return int(attributes.Policy)
	}
	threads, end, ended, leave := make(chan int), make(chan struct{}), make(chan struct{}), make(chan struct{})
	var back disk.Background
	go func() {
		back.StandBack()
		threads <- unix.Gettid()
		<-end
		back.End()
		close(ended)
		<-leave
	}()
	thread := <-threads
	defer close(leave)
	require.Equal(t, unix.SCHED_IDLE, policy(thread))
	back.Hurry()
	back.Hurry()
	require.Equal(t, unix.SCHED_NORMAL, policy(thread))
	require.NoError(t, unix.SchedSetAttr(thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0))
	close(end)
	<-ended
	require.Equal(t, unix.SCHED_NORMAL, policy(thread), "its last steps do not wait either")
	// The number may be another thread's by now, which is none of ours.
	require.NoError(t, unix.SchedSetAttr(thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0))
	back.Hurry()
	require.Equal(t, unix.SCHED_IDLE, policy(thread))
}
