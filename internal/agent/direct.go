package agent

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Here are the system calls that a command takes and that do not wait, made without telling Go's scheduler. It is otherwise told of each,
// wakes a thread that looks every 20 µs whether one takes long, and gives the processor to another thread then. In a sandbox every call
// takes that long: for each command some fifteen calls were made to look, and ten to wake threads and to put them to sleep again.
// Nothing that may wait for somebody else belongs here: it would hold up the whole agent.

// call makes one again that a signal interrupted. What pointers among the arguments point to stays where it is meanwhile.
//
//go:uintptrescapes
func call(number, a, b, c, d, e uintptr) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(number, a, b, c, d, e, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// readNow reads what is there from a file that does not block; unix.EAGAIN: nothing. The end is 0 bytes.
func readNow(fd int, p []byte) (int, error) {
	return call(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0)
}

// writeNow writes what fits to a file that does not block; unix.EAGAIN: nothing does.
func writeNow(fd int, p []byte) (int, error) {
	return call(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0)
}

// closeNow closes what closing sends nothing from: a pipe, a terminal, /dev/null.
func closeNow(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func fcntlNow(fd, command, argument int) error {
	_, err := call(unix.SYS_FCNTL, uintptr(fd), uintptr(command), uintptr(argument), 0, 0)
	return err
}

// waitNow takes the end of a child, or of any with -1; 0: none has ended.
func waitNow(pid int, status *unix.WaitStatus) (int, error) {
	var got int32 // the kernel's
	n, err := call(unix.SYS_WAIT4, uintptr(pid), uintptr(unsafe.Pointer(&got)), unix.WNOHANG, 0, 0)
	*status = unix.WaitStatus(got)
	return n, err
}

// statNow looks at a file of the box's own disks. Like the start of a program, which reads them too, it holds up the agent.
func statNow(path string) (stat unix.Statx_t, err error) {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return stat, err
	}
	here := unix.AT_FDCWD
	_, err = call(unix.SYS_STATX, uintptr(here), uintptr(unsafe.Pointer(name)), 0, unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&stat)))
	return stat, err
}

// randomNow fills p, of at most 256 bytes, from the kernel.
func randomNow(p []byte) error {
	n, err := call(unix.SYS_GETRANDOM, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
	if err == nil && n < len(p) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// directConn is a TCP connection that is read and written in this way.
type directConn struct {
	*net.TCPConn
	raw syscall.RawConn
}

// direct makes a connection of TCP direct; nil: it is another one.
func direct(conn net.Conn) *directConn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return &directConn{TCPConn: tcp, raw: raw}
}

// Read is part of net.Conn.
func (c *directConn) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	var callErr error
	err = c.raw.Read(func(fd uintptr) bool {
		n, callErr = readNow(int(fd), p)
		return !errors.Is(callErr, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return 0, err
	case callErr != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", callErr)}
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write is part of net.Conn.
func (c *directConn) Write(p []byte) (written int, err error) {
	var callErr error
	err = c.raw.Write(func(fd uintptr) bool {
		for written < len(p) {
			var n int
			if n, callErr = writeNow(int(fd), p[written:]); callErr != nil {
				return !errors.Is(callErr, unix.EAGAIN)
			}
			written += n
		}
		return true
	})
	if err == nil && callErr != nil {
		err = &net.OpError{Op: "write", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("write", callErr)}
	}
	return written, err
}
