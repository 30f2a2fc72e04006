// Package vfork starts a program with as few system calls as it can be done with. Inside gVisor each costs some 25 microseconds,
// and [syscall.ForkExec] makes more than sixty of them that nobody needs: it resets every signal's handler by itself, which the kernel
// does at once if it is asked to (CLONE_CLEAR_SIGHAND), and learns through a pipe whether the program could be executed, which the
// child can as well write into the memory that it shares with us. It must not become a second os/exec: it knows what the agent
// needs, and what it cannot do it leaves to the standard library.
package vfork

import (
	"errors"
	"runtime"
	"syscall"
)

// Command is a program to start, in a session of its own.
type Command struct {
	Path      string
	Args, Env []string
	Dir       string
	// Files are the program's standard input, output and error. Every other file of ours must close when a program is executed.
	Files [3]int
	// Terminal makes Files[0] the controlling terminal.
	Terminal bool
	// Credential is who the program runs as; nil: who we are.
	Credential *syscall.Credential
}

// Start starts the program and gives its pid; the caller waits for its end. An error is a [syscall.Errno] of what failed in the
// child, which is gone then. The limit on open files is handed on as it is now; Go's own default, which gives back
// what was there before Go raised it, is kept by who sets the limit (syscall.Setrlimit). It is safe for concurrent use.
func Start(c Command) (pid int, err error) {
	pid, err = start(c)
	if errors.Is(err, errNotHere) {
		return c.plainly()
	}
	return pid, err
}

// errNotHere says that the standard library has to do it.
var errNotHere = errors.New("this way of starting programs is not there")

// plainly starts the program as everybody does.
func (c Command) plainly() (int, error) {
	attr := &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: c.Terminal, Credential: c.Credential}}
	for _, fd := range c.Files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	pid, err := syscall.ForkExec(c.Path, c.Args, attr)
	runtime.KeepAlive(c)
	return pid, err
}
