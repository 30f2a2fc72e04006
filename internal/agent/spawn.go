package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/vfork"
	"carrel.dev/carrel/internal/carrel"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	maxArgs     = 4096
	maxArgBytes = 128 << 10 // Linux takes no longer single argument
	maxAllArgs  = 1 << 20
	// pipeSize is asked for when much is written; a system that gives less is fine.
	pipeSize = 256 << 10
)

// command is a checked request, ready to be started.
type command struct {
	args    []string
	path    string // of the program
	env     []string
	cwd     string
	account account
	pty     *unix.Winsize
	modes   []byte // of the terminal, as in applyModes
	name    string // argv[0], where it is not args[0]
	ssh     bool   // a session of SSH: SSH_TTY names its terminal
	stdin   bool
}

// prepare checks a request and finds the program.
func prepare(request *carrelv1.StartProcessRequest, who account, boxEnv ...map[string]string) (command, error) {
	c := command{args: request.GetArgs(), account: who, stdin: request.GetStdin(), modes: request.GetTerminalModes(), ssh: request.GetKind() == "ssh"}
	if err := checkModes(c.modes); err != nil {
		return command{}, err
	}
	if request.GetLogin() {
		c.login()
	}
	if err := checkArgs(c.args); err != nil {
		return command{}, err
	}
	if err := carrel.ValidateEnv(request.GetEnv()); err != nil {
		return command{}, err
	}
	if size := request.GetPty(); size != nil {
		var err error
		if c.pty, err = winsize(size); err != nil {
			return command{}, err
		}
	}
	env := map[string]string{"PATH": defaultPath, "LANG": "C.UTF-8"}
	if c.pty != nil {
		env["TERM"] = "xterm-256color"
	}
	for i, layer := range boxEnv {
		maps.Copy(env, layer)
		if i == 0 { // that of PID 1 has its own home
			env["HOME"], env["USER"], env["LOGNAME"], env["SHELL"] = who.home, who.name, who.name, who.shell
		}
	}
	maps.Copy(env, request.GetEnv())
	for _, name := range slices.Sorted(maps.Keys(env)) {
		c.env = append(c.env, name+"="+env[name])
	}

	c.cwd = request.GetCwd()
	if c.cwd == "" {
		c.cwd = who.home
	}
	if strings.ContainsRune(c.cwd, 0) || len(c.cwd) >= unix.PathMax {
		return command{}, carrel.Errorf(carrel.CodeInvalid, "bad_directory", "the working directory is no path")
	}
	if !filepath.IsAbs(c.cwd) {
		c.cwd = filepath.Join(who.home, c.cwd)
	}
	var err error
	if c.path, err = lookPath(c.args[0], env["PATH"], c.cwd); err != nil {
		return command{}, cmp.Or(c.checkDirectory(), err)
	}
	return c, nil
}

// checkDirectory says whether a command failed for want of its working directory: nobody looks before, since the program is
// started there anyway.
func (c *command) checkDirectory() error {
	if info, err := os.Stat(c.cwd); err != nil || !info.IsDir() {
		return carrel.Errorf(carrel.CodeInvalid, "bad_directory", "there is no directory %q in the box; give another working directory", c.cwd)
	}
	return nil
}

// login makes the command the user's shell, as a login over a network would: without arguments a login shell, which its first
// character in argv[0] tells it, else a plain one that is given them as one line.
func (c *command) login() {
	shell := c.account.shell
	if info, err := os.Stat(shell); err != nil || info.IsDir() {
		shell = "/bin/sh"
	}
	if len(c.args) == 0 {
		c.args, c.name = []string{shell}, "-"+filepath.Base(shell)
		return
	}
	c.args = []string{shell, "-c", strings.Join(c.args, " ")}
}

// argv is what the program gets as its arguments.
func (c *command) argv() []string {
	if c.name == "" {
		return c.args
	}
	return append([]string{c.name}, c.args[1:]...)
}

func checkArgs(args []string) error {
	if len(args) == 0 || args[0] == "" {
		return carrel.Errorf(carrel.CodeInvalid, "no_command", "no command was given; args begins with the program")
	}
	total := 0
	for _, arg := range args {
		total += len(arg) + 1
		if strings.ContainsRune(arg, 0) {
			return carrel.Errorf(carrel.CodeInvalid, "bad_argument", "an argument has a zero byte")
		}
		if len(arg) >= maxArgBytes {
			return carrel.Errorf(carrel.CodeInvalid, "arguments_too_large", "an argument is %d bytes; at most %d fit", len(arg), maxArgBytes-1)
		}
	}
	if len(args) > maxArgs || total > maxAllArgs {
		return carrel.Errorf(carrel.CodeInvalid, "arguments_too_large", "%d arguments of %d bytes; at most %d of %d bytes fit", len(args), total, maxArgs, maxAllArgs)
	}
	return nil
}

func winsize(size *carrelv1.TerminalSize) (*unix.Winsize, error) {
	rows, cols := size.GetRows(), size.GetCols()
	if rows > 1<<15 || cols > 1<<15 {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_terminal_size", "a terminal of %d rows and %d columns is too large; at most %d each", rows, cols, 1<<15)
	}
	if rows == 0 || cols == 0 {
		rows, cols = 24, 80
	}
	return &unix.Winsize{Row: uint16(rows), Col: uint16(cols)}, nil
}

// lookPath finds program as a shell with this PATH and working directory would.
func lookPath(program, path, cwd string) (string, error) {
	inPath := !strings.Contains(program, "/")
	candidates := []string{program}
	if inPath {
		candidates = nil
		for dir := range strings.SplitSeq(path, ":") {
			candidates = append(candidates, filepath.Join(dir, program))
		}
	}
	unusable := ""
	for _, candidate := range candidates {
		if !filepath.IsAbs(candidate) {
			candidate = filepath.Join(cwd, candidate)
		}
		info, err := statNow(candidate)
		switch {
		case err != nil:
		case info.Mode&unix.S_IFMT == unix.S_IFREG && info.Mode&0o111 != 0:
			return candidate, nil
		case unusable == "":
			unusable = candidate
		}
	}
	switch {
	case unusable != "":
		return "", carrel.Errorf(carrel.CodeInvalid, "command_not_executable", "%s is not executable", unusable)
	case inPath:
		return "", carrel.Errorf(carrel.CodeNotFound, "command_not_found", "command %q not found in PATH", program)
	}
	return "", carrel.Errorf(carrel.CodeNotFound, "command_not_found", "command %q not found: there is no such file", program)
}

// spawned has the agent's ends of what a started program reads and writes. For a terminal all is one file.
type spawned struct {
	stdin, stdout, stderr *os.File
	terminal              string // the path of the program's terminal; empty: it has none
}

func (s spawned) close() {
	for _, file := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if file != nil {
			file.Close()
		}
	}
}

// spawn starts the program and gives its pid through r, which calls ended when it has ended.
func (c command) spawn(r *reaper, ended func(unix.WaitStatus)) (spawned, int, error) {
	ours, theirs, err := c.open()
	if err != nil {
		return spawned{}, 0, err
	}
	program := vfork.Command{Path: c.path, Args: c.argv(), Env: c.env, Dir: c.cwd, Files: theirs, Terminal: c.pty != nil}
	if c.ssh && ours.terminal != "" {
		program.Env = append(slices.Clone(c.env), "SSH_TTY="+ours.terminal)
	}
	if isRoot() {
		program.Credential = &syscall.Credential{Uid: c.account.uid, Gid: c.account.gid, Groups: c.account.groups}
	}
	pid, err := r.start(func() (int, error) {
		pid, err := vfork.Start(program)
		if errors.Is(err, unix.ENOEXEC) { // a script without #!: what a shell does
			program.Path, program.Args = "/bin/sh", append([]string{"sh", c.path}, c.args[1:]...)
			pid, err = vfork.Start(program)
		}
		return pid, err
	}, ended)
	theirs.close()
	if err != nil {
		ours.close()
		return spawned{}, 0, c.explain(err)
	}
	return ours, pid, nil
}

// isRoot does not change.
var isRoot = sync.OnceValue(func() bool { return os.Geteuid() == 0 })

// theirFiles are the file descriptors that a program gets. They are numbers and not files of package os, each of which costs four
// system calls more.
type theirFiles [3]int

// close closes each once, but never the one that all programs share.
func (f theirFiles) close() {
	null, _ := nothing()
	for i, fd := range f {
		if fd > 0 && fd != null && !slices.Contains(f[:i], fd) {
			closeNow(fd)
		}
	}
}

// nothing is /dev/null, which is opened once: it has no position, and whoever gets it can do nothing to the others with it.
var nothing = sync.OnceValues(func() (int, error) {
	return unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
})

// open makes the ends of the program's standard files: ours, and in order theirs.
func (c command) open() (ours spawned, theirs theirFiles, err error) {
	defer func() {
		if err != nil {
			ours.close()
			theirs.close()
			err = fmt.Errorf("open the standard files of a process: %w", err)
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOSPC) {
				err = &carrel.Error{Code: carrel.CodeExhausted, Reason: "too_many_processes", Message: "the box has no files or terminals left for another process; end some", Cause: err}
			}
		}
	}()
	if c.pty != nil {
		master, slave, name, err := openTerminal(c.pty, c.modes, c.account.uid)
		if err != nil {
			return ours, theirs, err
		}
		ours, theirs = spawned{stdout: master, terminal: name}, theirFiles{slave, slave, slave}
		return ours, theirs, nil
	}
	if c.stdin {
		theirs[0], ours.stdin, err = pipeIn()
	} else {
		theirs[0], err = nothing()
	}
	if err != nil {
		return ours, theirs, err
	}
	for i, file := range []**os.File{&ours.stdout, &ours.stderr} {
		if *file, theirs[i+1], err = pipeOut(); err != nil {
			return ours, theirs, err
		}
	}
	return ours, theirs, nil
}

// openTerminal makes a terminal: the agent's end, which does not block, and the one of the program.
func openTerminal(size *unix.Winsize, modes []byte, uid uint32) (master *os.File, slave int, name string, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, "", fmt.Errorf("open a terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, 0, "", fmt.Errorf("number of a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, 0, "", fmt.Errorf("unlock a terminal: %w", err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size); err != nil {
		return nil, 0, "", fmt.Errorf("size of a terminal: %w", err)
	}
	if err := setModes(fd, modes); err != nil {
		return nil, 0, "", fmt.Errorf("modes of a terminal: %w", err)
	}
	name = fmt.Sprintf("/dev/pts/%d", number)
	other, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, "", fmt.Errorf("open %s: %w", name, err)
	}
	if os.Geteuid() == 0 {
		// As after any login: group 5 is tty. Programs that were started with the terminal open do not need it.
		_ = unix.Fchown(other, int(uid), 5)
		_ = unix.Fchmod(other, 0o620)
	}
	return master, other, name, nil
}

// resize tells a terminal and the programs on it a new size.
func resize(master *os.File, size *unix.Winsize) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	if err := raw.Control(func(fd uintptr) { setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) }); err != nil {
		return err
	}
	return setErr
}

// pipeOut makes a pipe from the program to us. Our end does not block.
func pipeOut() (ours *os.File, theirs int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, 0, err
	}
	if ours, err = unblocked(fds, 0); err != nil {
		return nil, 0, err
	}
	return ours, fds[1], nil
}

// pipeIn makes a pipe from us to the program. Our end does not block.
func pipeIn() (theirs int, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, err
	}
	_ = fcntlNow(fds[0], unix.F_SETPIPE_SZ, pipeSize)
	if ours, err = unblocked(fds, 1); err != nil {
		return 0, nil, err
	}
	return fds[0], ours, nil
}

// unblocked makes a file of our end of a new pipe, which has no flags yet. If it fails the pipe is closed.
func unblocked(fds [2]int, which int) (*os.File, error) {
	if err := fcntlNow(fds[which], unix.F_SETFL, unix.O_NONBLOCK); err != nil {
		closeNow(fds[0])
		closeNow(fds[1])
		return nil, err
	}
	return os.NewFile(uintptr(fds[which]), "pipe"), nil
}

// explain says why a program could not be started.
func (c command) explain(err error) error {
	name := c.args[0]
	if directory := c.checkDirectory(); directory != nil {
		return directory
	}
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return carrel.Errorf(carrel.CodeInvalid, "command_not_executable", "user %s may not run %s in %s: permission denied", c.account.name, c.path, c.cwd)
	case errors.Is(err, unix.ENOENT):
		return carrel.Errorf(carrel.CodeInvalid, "command_not_executable", "%s needs an interpreter that the box does not have", c.path)
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.ELIBBAD), errors.Is(err, unix.ETXTBSY):
		return carrel.Errorf(carrel.CodeInvalid, "command_not_executable", "%s is no program that this box can run: %v", c.path, err)
	case errors.Is(err, unix.E2BIG):
		return carrel.Errorf(carrel.CodeInvalid, "arguments_too_large", "the arguments and environment of %q are too large", name)
	case errors.Is(err, unix.EAGAIN):
		return carrel.Errorf(carrel.CodeExhausted, "too_many_processes", "%q was not started: user %s has as many processes as the box allows; end some", name, c.account.name)
	case errors.Is(err, unix.ENOMEM):
		return carrel.Errorf(carrel.CodeExhausted, "out_of_memory", "%q was not started: the box has no memory left; end something", name)
	}
	return fmt.Errorf("start process: %w", err)
}
