// Command sshpeer is what SSH leads to in benchmarks: a program on a terminal that echoes, and one that gives or takes bytes. It
// serves the same over bare TCP, for what SSH is compared with. It must not depend on anything in the box.
//
//	sshpeer echo | give BYTES | take BYTES   on standard input and output
//	sshpeer serve ADDRESS                    whatever the first line of a connection names, on that connection
//
// echo has its terminal's driver pass every byte on as it is, says "ready" on a line and then each byte again; take says "done" on a
// line when it has got all. A connection that asks for echo has a terminal of its own with that program on it.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// chunk is how much is written or read at once, in bytes.
const chunk = 64 << 10

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sshpeer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "echo":
		return echo()
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	}
	return bulk(args, os.Stdin, os.Stdout)
}

// bulk gives or takes as many bytes as args say.
func bulk(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("give BYTES or take BYTES is what there is")
	}
	left, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for left > 0 {
		part := buf[:min(left, chunk)]
		var n int
		if args[0] == "give" {
			n, err = out.Write(part)
		} else {
			n, err = in.Read(part)
		}
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	if args[0] == "take" {
		_, err = io.WriteString(out, "done\n")
	}
	return err
}

func echo() error {
	settings, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return err
	}
	settings.Iflag, settings.Oflag = 0, 0
	settings.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
	if err := unix.IoctlSetTermios(0, unix.TCSETS, settings); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for {
		n, err := os.Stdin.Read(buf)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(buf[:n]); err != nil {
			return err
		}
	}
}

func serve(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if err := answer(conn); err != nil {
				fmt.Fprintln(os.Stderr, "sshpeer:", err)
			}
		}()
	}
}

func answer(conn net.Conn) error {
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	if words := strings.Fields(line); len(words) != 1 || words[0] != "echo" {
		return bulk(words, in, conn)
	}
	terminal, program, err := onTerminal("echo")
	if err != nil {
		return err
	}
	defer func() {
		_ = program.Process.Kill()
		_ = program.Wait()
		_ = terminal.Close()
	}()
	go func() { _, _ = io.Copy(conn, terminal) }()
	_, err = io.Copy(terminal, in)
	return err
}

// onTerminal starts this program with an argument on a new terminal, whose other end it gives.
func onTerminal(argument string) (*os.File, *exec.Cmd, error) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	raw, err := terminal.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var number uint32
	var ioctl error
	if err := raw.Control(func(fd uintptr) {
		if number, ioctl = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN); ioctl == nil {
			ioctl = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	}); err != nil {
		return nil, nil, err
	}
	if ioctl != nil {
		return nil, nil, ioctl
	}
	end, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer end.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	program := exec.Command(self, argument)
	program.Stdin, program.Stdout, program.Stderr = end, end, end
	program.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return terminal, program, program.Start()
}
