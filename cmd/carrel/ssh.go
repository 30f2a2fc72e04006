package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"carrel.dev/carrel/internal/carrel"
)

// boxDomain is the ending of host names that stand for boxes.
const boxDomain = ".carrel"

func (a *app) sshCommand() *cobra.Command {
	var (
		tty, agent, noCommand, renew, stdio bool
		local, remote, dynamic              []string
	)
	cmd := &cobra.Command{
		Use: "ssh NAME [flags] [-- COMMAND…]", Short: "Log in to a box with SSH",
		Long: "Log in to a box with this machine's OpenSSH, with a certificate that is got and renewed by itself. A box that\n" +
			"is paused or stopped comes up. A shell whose connection was lost is kept for some minutes and offered at the\n" +
			"next login. The exit code is the command's; 255 is for what goes wrong.",
		Example:     example("carrel ssh mybox", "carrel ssh mybox -- uname -a", "carrel ssh mybox -L 8080:localhost:8000 -N", "carrel ssh mybox -A"),
		Annotations: map[string]string{ownsExitCode: "yes"}, ValidArgsFunction: a.boxNames(),
		Args: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			switch {
			case renew && len(args) == 0:
				return nil
			case len(args) == 0 || dash == 0:
				return usageError(cmd, "NAME is missing")
			case len(args) > 1 && dash != 1:
				return usageError(cmd, "%q is one argument too many; a command stands behind --", args[1])
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&tty, "tty", "t", false, "run the command on a terminal")
	flags.BoolVarP(&agent, "agent", "A", false, "let the box use this machine's SSH agent")
	flags.BoolVarP(&noCommand, "no-command", "N", false, "run nothing, only forward")
	flags.StringArrayVarP(&local, "local", "L", nil, "forward as ssh does: `[HOST:]PORT:HOST:PORT`; may be repeated")
	flags.StringArrayVarP(&remote, "remote", "R", nil, "let the box reach what this machine does: `[HOST:]PORT:HOST:PORT`; may be repeated")
	flags.StringArrayVarP(&dynamic, "dynamic", "D", nil, "SOCKS proxy into the box on `[HOST:]PORT`; may be repeated")
	flags.BoolVar(&renew, "renew", false, "get a new certificate if need be, and nothing else")
	flags.BoolVar(&stdio, "stdio", false, "speak SSH with the gateway on standard input and output (for ProxyCommand)")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		access, err := a.sshAccess(ctx, false)
		if err != nil || renew {
			return err
		}
		stop() // from here on ssh has the terminal
		if stdio {
			return a.sshStdio(access, args[0])
		}
		line := access.arguments(boxLogin(args[0], access.context.Org))
		for _, flag := range []struct {
			name string
			on   bool
		}{{"-t", tty}, {"-A", agent}, {"-N", noCommand}} {
			if flag.on {
				line = append(line, flag.name)
			}
		}
		for _, list := range []struct {
			name   string
			values []string
		}{{"-L", local}, {"-R", remote}, {"-D", dynamic}} {
			for _, value := range list.values {
				line = append(line, list.name, value)
			}
		}
		line = append(append(line, "--", sshAlias), args[1:]...)
		return a.runSSH(line)
	}
	return cmd
}

// boxLogin is the user name by which a box is meant: with the organisation, unless it is said already or the name is an id.
func boxLogin(name, org string) string {
	name = strings.TrimSuffix(name, boxDomain)
	if org == "" || strings.Contains(name, ".") || carrel.IDKind(name) == 'b' {
		return name
	}
	return name + "." + org
}

// arguments are those of ssh before the host.
func (s *sshAccess) arguments(login string) []string {
	line := []string{"-o", "HostName=" + s.gateway.Host, "-p", s.gateway.Port, "-l", login, "-o", "ProxyCommand=none"}
	for _, option := range s.options() {
		line = append(line, "-o", option[0]+"="+option[1])
	}
	return line
}

// runSSH runs this machine's ssh to its end.
func (a *app) runSSH(line []string) error {
	path, err := exec.LookPath("ssh")
	if err != nil {
		return carrel.Errorf(carrel.CodePrecondition, "no_ssh", "there is no ssh on this machine: install OpenSSH's client, or use `carrel exec -t NAME -- bash`")
	}
	cmd := exec.Command(path, line...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt) // the terminal sends it to ssh too, whose business it is
	defer signal.Stop(signals)
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if code := exit.ExitCode(); code >= 0 {
			return exitError(code)
		}
		return exitError(ownFailure)
	}
	if err != nil {
		return fmt.Errorf("run ssh: %w", err)
	}
	return nil
}

// sshStdio joins standard input and output with the gateway. The first line says which box is meant: the user name that ssh sends
// cannot be made of the host's name.
func (a *app) sshStdio(access *sshAccess, host string) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(access.gateway.Host, access.gateway.Port), 10*time.Second)
	if err != nil {
		return carrel.Errorf(carrel.CodeUnavailable, "gateway_unreachable", "the SSH gateway at %s does not answer: %v", net.JoinHostPort(access.gateway.Host, access.gateway.Port), err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "CARREL-BOX %s\r\n", boxLogin(host, access.context.Org)); err != nil {
		return fmt.Errorf("write to the SSH gateway: %w", err)
	}
	var down sync.WaitGroup
	down.Go(func() { _, _ = io.Copy(a.stdout, conn) })
	go func() { // a read of standard input cannot be ended; the program does
		_, _ = io.Copy(conn, a.stdin)
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}()
	down.Wait()
	return nil
}
