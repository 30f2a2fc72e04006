package vfork

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the runtime does around a fork: signals are blocked meanwhile, so that no handler of ours ever runs in the child, and
// the goroutine's stack must not grow.
//
//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:noescape
func clone(args *cloneArgs, size uintptr) (pid, errno uintptr)

// cloneArgs is struct clone_args of the kernel, in its first version with a size.
type cloneArgs struct {
	flags      uint64
	_          [3]uint64 // where to put numbers of the child
	exitSignal uint64
	_          [3]uint64 // its stack and thread-local storage: ours
}

// child is everything that the child needs, made before there is one.
type child struct {
	path, dir  *byte
	argv, env  **byte
	files      [3]uintptr
	terminal   bool
	credential bool
	uid, gid   uintptr
	groups     *uint32
	groupCount uintptr
	noSignals  uint64 // the set of blocked signals that a program begins with
	// failed is written by the child: the memory is shared, and we go on only when the child has executed or is gone.
	failed syscall.Errno
}

func start(c Command) (int, error) {
	for _, fd := range c.Files {
		if fd <= 2 { // it might be overwritten before it is duplicated
			return 0, errNotHere
		}
	}
	kid, err := newChild(c)
	if err != nil {
		return 0, err
	}
	args := &cloneArgs{flags: unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)}
	syscall.ForkLock.Lock()
	pid, errno := run(args, kid)
	afterFork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(c)
	switch {
	case errno == syscall.ENOSYS || errno == syscall.EINVAL || errno == syscall.EPERM:
		return 0, errNotHere
	case errno != 0:
		return 0, errno
	case kid.failed == 0:
		return int(pid), nil
	}
	// Perhaps who waits for everybody was faster.
	for {
		_, err := syscall.Wait4(int(pid), nil, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return 0, kid.failed
		}
	}
}

func newChild(c Command) (*child, error) {
	kid := &child{terminal: c.Terminal}
	var err error
	if kid.path, err = syscall.BytePtrFromString(c.Path); err != nil {
		return nil, err
	}
	if c.Dir != "" {
		if kid.dir, err = syscall.BytePtrFromString(c.Dir); err != nil {
			return nil, err
		}
	}
	argv, err := syscall.SlicePtrFromStrings(c.Args)
	if err != nil {
		return nil, err
	}
	env, err := syscall.SlicePtrFromStrings(c.Env)
	if err != nil {
		return nil, err
	}
	kid.argv, kid.env = &argv[0], &env[0]
	for i, fd := range c.Files {
		kid.files[i] = uintptr(fd)
	}
	if who := c.Credential; who != nil {
		kid.credential, kid.uid, kid.gid, kid.groupCount = true, uintptr(who.Uid), uintptr(who.Gid), uintptr(len(who.Groups))
		if len(who.Groups) > 0 {
			kid.groups = &who.Groups[0]
		}
	}
	return kid, nil
}

// run is left by us with the child's pid or why there is none; afterFork must follow. The child never leaves it. As in package
// syscall: after the clone the child may call nothing but assembly and what needs no stack, and neither
// allocate nor write a pointer.
//
//go:noinline
//go:norace
//go:nocheckptr
func run(args *cloneArgs, kid *child) (pid uintptr, errno syscall.Errno) {
	var number uintptr
	var failed syscall.Errno
	var i int
	beforeFork()
	pid, number = clone(args, unsafe.Sizeof(*args))
	if number != 0 || pid != 0 {
		return pid, syscall.Errno(number)
	}
	if _, _, failed = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); failed != 0 {
		goto over
	}
	if kid.credential {
		if _, _, failed = syscall.RawSyscall(unix.SYS_SETGROUPS, kid.groupCount, uintptr(unsafe.Pointer(kid.groups)), 0); failed != 0 {
			goto over
		}
		if _, _, failed = syscall.RawSyscall(unix.SYS_SETGID, kid.gid, 0, 0); failed != 0 {
			goto over
		}
		if _, _, failed = syscall.RawSyscall(unix.SYS_SETUID, kid.uid, 0, 0); failed != 0 {
			goto over
		}
	}
	if kid.dir != nil {
		if _, _, failed = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(kid.dir)), 0, 0); failed != 0 {
			goto over
		}
	}
	for i = 0; i < len(kid.files); i++ {
		if _, _, failed = syscall.RawSyscall(unix.SYS_DUP3, kid.files[i], uintptr(i), 0); failed != 0 {
			goto over
		}
	}
	if kid.terminal {
		if _, _, failed = syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 1); failed != 0 {
			goto over
		}
	}
	// No signal has a handler here any more, so that from now on they may come.
	if _, _, failed = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&kid.noSignals)), 0, unsafe.Sizeof(kid.noSignals), 0, 0); failed != 0 {
		goto over
	}
	_, _, failed = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(kid.path)), uintptr(unsafe.Pointer(kid.argv)), uintptr(unsafe.Pointer(kid.env)))
over:
	kid.failed = failed
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT, 253, 0, 0)
	}
}
