package gvisor

import (
	"context"
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readStatus says how the process behind pidfd ended, if that can be known: the kernel tells it to the parent
// (we are that if this process is the subreaper), and since Linux 6.15 to anybody once the parent has
// collected it, which the parent may do a moment after we woke.
func readStatus(pidfd int) exitStatus {
	st := exitStatus{code: -1}
	_ = poll(context.Background(), 50*time.Millisecond, func() (bool, error) {
		if s, ok := statusAsParent(pidfd); ok {
			st = s
			return true, nil
		}
		if s, ok := statusFromKernel(pidfd); ok {
			st = s
			return true, nil
		}
		return false, nil
	})
	return st
}

// siginfoChild is siginfo_t for SIGCHLD (sigaction(2)) on 64-bit machines.
type siginfoChild struct {
	Signo, Errno, Code, _ int32
	Pid, UID, Status      int32
	_                     [100]byte
}

// statusAsParent asks without collecting the zombie: Destroy does that.
func statusAsParent(pidfd int) (exitStatus, bool) {
	var info siginfoChild
	err := unix.Waitid(unix.P_PIDFD, pidfd, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
	if err != nil || info.Pid == 0 {
		return exitStatus{}, false
	}
	const cldExited = 1
	if info.Code == cldExited {
		return exitStatus{known: true, code: int(info.Status)}, true
	}
	return exitStatus{known: true, code: -1, signal: unix.Signal(info.Status)}, true
}

// statusFromKernel asks with PIDFD_GET_INFO (linux/pidfd.h).
func statusFromKernel(pidfd int) (exitStatus, bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return exitStatus{}, false
	}
	ws := unix.WaitStatus(info.Exit_code)
	if ws.Exited() {
		return exitStatus{known: true, code: ws.ExitStatus()}, true
	}
	return exitStatus{known: true, code: -1, signal: ws.Signal()}, true
}

// reap collects pid if it has ended and is our child, which it is only if this process is the subreaper.
func reap(pid int) {
	for {
		_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
