package kerneltest

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// AsUser runs f with the rights of the kernels' user, as the agent does.
func AsUser(f func() error) error {
	uid, gid, ok := Nobody()
	if !ok {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, ^uintptr(0), uintptr(gid), ^uintptr(0)},
			{unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- errno
				return
			}
		}
		done <- f()
	}()
	return <-done
}
