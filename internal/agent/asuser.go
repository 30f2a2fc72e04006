package agent

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// asUser calls f with the rights of the box's user and none of root's, so that nobody does through the agent what the user
// may not. Only the effective ids of one thread change: for signals and tracing it stays root's, and it ends with
// f. Where the agent is not root, f runs as whoever the agent is. It is safe for concurrent use.
func asUser(f func() error) error {
	done := make(chan error, 1)
	go func() {
		if unix.Geteuid() == 0 {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			if err := becomeUser(); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}

func becomeUser() error {
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, 0, 0, 0},
		{unix.SYS_SETRESGID, ^uintptr(0), boxUID, ^uintptr(0)},
		{unix.SYS_SETRESUID, ^uintptr(0), boxUID, ^uintptr(0)},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return fmt.Errorf("become the box's user: %w", errno)
		}
	}
	return nil
}
