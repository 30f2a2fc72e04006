package agent

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
)

func TestOnlyWhoKnowsTheKeyIsServed(t *testing.T) {
	b := startBox(t)
	for _, key := range []string{strings.Repeat("0b", 32), "x", b.identity.Key + "0"} {
		_, err := dialTarget(b.context(), b.Addr().String(), key, "agent")
		require.ErrorContains(t, err, "the key is wrong")
	}
	for target, want := range map[string]string{
		"nosuch": "the target is not", "tcp/": "tcp/HOST:PORT", "tcp/localhost:http": "a number", "tcp/localhost:0": "a number", "unix/relative": "absolute path",
	} {
		_, err := b.dial(target)
		require.ErrorContains(t, err, want, target)
	}
}

func TestABadFirstLineEndsTheConnection(t *testing.T) {
	b := startBox(t)
	for _, line := range []string{"GET / HTTP/1.1\r\n", "\n", "carrel/2 k agent\n", "carrel/1 k\n", strings.Repeat("x", maxPreface+1)} {
		conn, err := net.Dial("tcp", b.Addr().String())
		require.NoError(t, err)
		_, err = io.WriteString(conn, line)
		require.NoError(t, err)
		answer, _ := io.ReadAll(conn)
		require.NotContains(t, string(answer), "ok\n")
		conn.Close()
	}
	require.Empty(t, b.list(), "and the agent goes on")
}

func TestTheAgentsOwnPortIsNotForwarded(t *testing.T) {
	b := startBox(t)
	port := b.Addr().(*net.TCPAddr).Port
	for _, host := range []string{"127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "127.1", "127.9.9.9", "0", "", "2130706433"} {
		for _, spelling := range []string{fmt.Sprint(port), fmt.Sprintf("0%d", port)} {
			_, err := b.dial("tcp/" + host + ":" + spelling)
			require.ErrorContains(t, err, "is the agent's own", host)
		}
	}
}

func TestForwardsAreSplicedWithHalfClose(t *testing.T) {
	b := startBox(t)
	path := filepath.Join(b.config.Home, "socket")
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": path} {
		listener, err := net.Listen(network, address)
		require.NoError(t, err)
		if network == "unix" {
			require.NoError(t, os.Chmod(path, 0o777))
		}
		done := make(chan error, 1)
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				done <- err
				return
			}
			defer conn.Close()
			data, err := io.ReadAll(conn) // until the client has ended its half
			if err == nil {
				_, err = conn.Write(append([]byte("got "), data...))
			}
			done <- err
		}()
		conn, err := b.dial(network + "/" + listener.Addr().String())
		require.NoError(t, err)
		data := bytes.Repeat([]byte("0123456789"), 100_000)
		_, err = conn.Write(data)
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		answer, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Equal(t, "got ", string(answer[:4]))
		require.True(t, bytes.Equal(data, answer[4:]))
		require.NoError(t, receive(t, done))
		conn.Close()
		listener.Close()
	}
	_, err := b.dial("tcp/127.0.0.1:9")
	require.ErrorContains(t, err, "refused")
}

func TestAUnixSocketIsReachedOnlyAsTheUser(t *testing.T) {
	if !asRoot() {
		return // there is nobody else to be
	}
	b := startBox(t)
	path := filepath.Join(b.dir, "roots")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer listener.Close()
	require.NoError(t, os.Chmod(path, 0o700))
	_, err = b.dial("unix/" + path)
	require.ErrorContains(t, err, "permission denied")
	require.Zero(t, os.Geteuid())
	require.EqualValues(t, 0, b.run(sh("exit 0")).exited.GetExitCode(), "and only that one thread was another user")
}

func TestADataThatFollowsThePrefaceAtOnceIsNotLost(t *testing.T) {
	b := startBox(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", b.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "carrel/1 %s tcp/%s\nearly", b.identity.Key, listener.Addr())
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "ok\nearly", string(answer))
}

func TestConnectionsWithoutAPrefaceAreBounded(t *testing.T) {
	b := startBox(t)
	require.Empty(t, b.list())
	var conns []net.Conn
	for range maxWaitingLocal + 50 {
		conn, err := net.Dial("tcp", b.Addr().String())
		require.NoError(t, err)
		conns = append(conns, conn)
	}
	_, err := io.ReadAll(conns[len(conns)-1])
	_ = err // closed or reset, but ended
	require.Empty(t, b.list(), "a connection that is there works on")
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, func() bool {
		conn, err := b.dial("agent")
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, "new ones are served when the silent ones are gone")
}

func TestAnotherRunEndsWhatBelongedToTheOneBefore(t *testing.T) {
	restored := make(chan string)
	b := startBox(t, func(c *Config, _ *identity.Identity) {
		c.checkpoints = func() (string, error) {
			what, ok := <-restored
			if !ok {
				return "", os.ErrNotExist
			}
			return what, nil
		}
	})
	defer close(restored)
	ready := func() *agentv1.ReadyResponse {
		response, err := b.control.Ready(b.context(), connect.NewRequest(&agentv1.ReadyRequest{}))
		require.NoError(t, err)
		return response.Msg
	}
	require.Equal(t, b.identity.RunID, ready().GetRunId())
	require.Zero(t, ready().GetRestores())
	_, err := b.control.Quiesce(b.context(), connect.NewRequest(&agentv1.QuiesceRequest{LeaseMillis: 600_000}))
	require.NoError(t, err)
	old, err := b.dial("agent")
	require.NoError(t, err)
	defer old.Close()

	next := b.identity
	next.RunID, next.Key, next.Env = "rbbbbbbbbbbbbbbbbbbb", strings.Repeat("0c", 32), map[string]string{"NEW": "yes"}
	require.NoError(t, identity.Write(b.dir, next))
	restored <- "restore"

	_, err = io.ReadAll(old)
	_ = err // ended
	_, err = b.dial("agent")
	require.ErrorContains(t, err, "the key is wrong", "the key ended with its run")
	before := b.identity
	b.identity = next
	var idle []interface{ CloseIdleConnections() }
	processes, control, made := clients(b.Addr().String(), next.Key)
	for _, client := range made {
		idle = append(idle, client)
	}
	t.Cleanup(func() {
		for _, client := range idle {
			client.CloseIdleConnections()
		}
	})
	b.processes, b.control = processes, control
	require.Equal(t, next.RunID, ready().GetRunId())
	require.EqualValues(t, 1, ready().GetRestores())
	require.Equal(t, "yes\n", b.run(sh("echo $NEW")).out[stdout].String(), "quiesced no more, with the new environment")

	// Without a sign, a new key is enough.
	before.RunID = "rccccccccccccccccccc"
	require.NoError(t, identity.Write(b.dir, before))
	conn, err := dialTarget(b.context(), b.Addr().String(), before.Key, "control")
	require.NoError(t, err)
	conn.Close()
}

func TestAQuiescedBoxStartsNothingUntilTheLeaseEnds(t *testing.T) {
	b := startBox(t)
	quiesce := func(millis int64) error {
		_, err := b.control.Quiesce(b.context(), connect.NewRequest(&agentv1.QuiesceRequest{LeaseMillis: millis}))
		return err
	}
	start := func() error {
		_, err := b.processes.Start(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"true"}}))
		return err
	}
	require.NoError(t, quiesce(600_000))
	require.NoError(t, quiesce(600_000), "again")
	require.Equal(t, "box_quiesced", reason(t, start()))
	_, err := b.control.Unquiesce(b.context(), connect.NewRequest(&agentv1.UnquiesceRequest{}))
	require.NoError(t, err)
	require.NoError(t, start())
	require.NoError(t, quiesce(20))
	eventually(t, func() bool { return start() == nil }, "the lease ends by itself")
	require.Equal(t, "bad_lease", reason(t, quiesce(0)))
}

func TestShutdownEndsAllProcesses(t *testing.T) {
	b := startBox(t)
	kind := b.start(sh("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done"))
	stubborn := b.start(sh("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
	eventually(t, func() bool {
		return b.get(kind.GetId()).GetStdoutBytes() > 0 && b.get(stubborn.GetId()).GetStdoutBytes() > 0
	}, "both run")
	shutDown := func(grace time.Duration) error {
		_, err := b.control.Shutdown(b.context(), connect.NewRequest(&agentv1.ShutdownRequest{GraceMillis: grace.Milliseconds()}))
		return err
	}
	patient := make(chan error, 1)
	go func() { patient <- shutDown(patience) }()
	require.EqualValues(t, 3, b.finish(kind.GetId()).GetExitCode(), "it has its time to end")
	require.True(t, b.get(stubborn.GetId()).GetRunning())
	require.NoError(t, shutDown(time.Millisecond))
	require.Equal(t, "KILL", b.finish(stubborn.GetId()).GetExitSignal())
	require.NoError(t, receive(t, patient), "nobody waits for what is over")
	_, err := b.processes.Start(b.context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"true"}}))
	require.Equal(t, "box_quiesced", reason(t, err))
}

func FuzzPreface(f *testing.F) {
	f.Add("carrel/1 abc agent")
	f.Add("carrel/1 abc tcp/[::1]:80")
	f.Add("carrel/1 abc unix//run/a b")
	f.Add("carrel/1  agent")
	f.Fuzz(func(t *testing.T, line string) {
		key, text, err := parsePreface(line)
		if err != nil {
			return
		}
		require.NotEmpty(t, key)
		require.NotContains(t, key, " ")
		wanted, err := parseTarget(text)
		if err != nil {
			return
		}
		switch wanted.kind {
		case targetTCP:
			_, port, err := net.SplitHostPort(wanted.address)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(wanted.port), port)
			require.True(t, wanted.port > 0 && wanted.port < 1<<16)
		case targetUnix:
			require.Contains(t, "/@", wanted.address[:1])
		case targetAgent, targetControl:
			require.Empty(t, wanted.address)
		default:
			t.Fatalf("target %q", wanted.kind)
		}
	})
}
