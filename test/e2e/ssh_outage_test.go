package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

// shell is an interactive login over a connection of its own, without a program of its own: fifty are cheap.
type shell struct {
	t     *testing.T
	conn  *ssh.Client
	stdin io.Writer
	out   lockedBuffer
}

// dial logs in to the box dev.
func (c *sshClient) dial(t *testing.T) (*ssh.Client, error) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, "id"))
	require.NoError(t, err)
	signer, err := ssh.ParsePrivateKey(data)
	require.NoError(t, err)
	known, err := os.ReadFile(filepath.Join(c.dir, "known_hosts"))
	require.NoError(t, err)
	_, _, host, _, _, err := ssh.ParseKnownHosts(known)
	require.NoError(t, err)
	return ssh.Dial("tcp", net.JoinHostPort(c.host, c.port), &ssh.ClientConfig{
		User: "dev", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(host),
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519}, Timeout: 30 * time.Second,
	})
}

func (c *sshClient) shell(t *testing.T) *shell {
	t.Helper()
	conn, err := c.dial(t)
	require.NoError(t, err, "%s", lazy(c.s.logs))
	t.Cleanup(func() { _ = conn.Close() })
	session, err := conn.NewSession()
	require.NoError(t, err)
	s := &shell{t: t, conn: conn}
	session.Stdout, session.Stderr = &s.out, &s.out
	s.stdin, err = session.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, session.RequestPty("xterm", 24, 80, ssh.TerminalModes{}))
	require.NoError(t, session.Shell())
	return s
}

func (s *shell) types(text string) {
	s.t.Helper()
	_, err := io.WriteString(s.stdin, text)
	require.NoError(s.t, err)
}

func (s *shell) sees(c *sshClient, text string) {
	s.t.Helper()
	c.await(s.t, fmt.Sprintf("%q on the screen", text), func() bool { return strings.Contains(s.out.String(), text) })
}

// TestSSHWithoutControl: what is open goes on, and who is known gets in, also through a gateway that was started meanwhile and for a
// person who was never seen there before.
func TestSSHWithoutControl(t *testing.T) {
	s := newStack(t, options{})
	s.create("dev")
	c, stranger := s.newSSHClient(t), s.newSSHClient(t)
	open := c.shell(t)
	open.types("m=kept; echo ready-$((1+1))\n")
	open.sees(c, "ready-2")
	for _, role := range []string{"control", "reconcile", "postgres"} {
		pid := s.rolePID(role)
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	}
	open.types("echo on-$((2+1))\n")
	open.sees(c, "on-3")
	require.Equal(t, result{"known\n", "", 0}, stranger.ssh(t, "dev", "echo known"))

	require.NoError(t, syscall.Kill(s.rolePID("gateway"), syscall.SIGKILL))
	_ = open.conn.Wait() // its transport is lost
	s.eventually("the gateway is there again", func() bool {
		conn, err := stranger.dial(t)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	require.Equal(t, result{"known\n", "", 0}, stranger.ssh(t, "dev", "echo known"))
	again := c.shell(t)
	again.sees(c, "Rejoin it? [Y/n]")
	again.types("y")
	again.types("echo $m-$((3+1))\n")
	again.sees(c, "kept-4")
	again.types("exit\n")
	_ = again.conn.Close()
}

// TestSSHGatewayKilled kills the gateway under fifty sessions: whoever comes back finds each shell where it was.
func TestSSHGatewayKilled(t *testing.T) {
	const sessions = 50
	s := newStack(t, options{})
	s.create("dev")
	c := s.newSSHClient(t)
	shells := make([]*shell, sessions)
	for i := range shells {
		shells[i] = c.shell(t)
		shells[i].types(fmt.Sprintf("m=mark%d; echo ready-$((1+1))\n", i))
	}
	for _, one := range shells {
		one.sees(c, "ready-2")
	}
	require.NoError(t, syscall.Kill(s.rolePID("gateway"), syscall.SIGKILL))
	for _, one := range shells {
		_ = one.conn.Wait()
	}
	found := map[string]bool{}
	for range shells {
		var again *shell
		s.eventually("the gateway is there again", func() bool {
			conn, err := c.dial(t)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		})
		again = c.shell(t)
		again.sees(c, "Rejoin it? [Y/n]")
		again.types("y")
		again.types("echo found-$m-\n")
		again.sees(c, "found-mark")
		c.await(t, "the answer", func() bool { return strings.Count(again.out.String(), "found-mark") > 0 })
		_, rest, _ := strings.Cut(again.out.String(), "found-mark")
		number, _, _ := strings.Cut(rest, "-")
		require.False(t, found[number], "each shell is found once")
		found[number] = true
	}
	require.Len(t, found, sessions)
}
