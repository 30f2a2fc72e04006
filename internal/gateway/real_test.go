package gateway_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/node/proxy"
)

// newRealStack has the real proxy and the real agent in place of the fakes.
func newRealStack(t *testing.T) (*stack, *proxy.Client, carrel.RunID) {
	s := newStack(t)
	quiet := slog.New(slog.DiscardHandler)
	run := carrel.NewRunID()

	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		require.NoError(t, os.Chmod(d, 0o755)) // the box's user can enter it
	}
	home := filepath.Join(dir, "home")
	require.NoError(t, os.Mkdir(home, 0o777))
	require.NoError(t, os.Chmod(home, 0o777))
	key := strings.Repeat("0a", 32)
	require.NoError(t, identity.Write(dir, identity.Identity{RunID: string(run), BoxID: string(s.box), BoxName: "mybox", Key: key}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a, err := agent.New(agent.Config{IdentityDir: dir, Listener: listener, Root: dir, Home: home, Env: []string{"PATH=" + os.Getenv("PATH")}, Grace: time.Second, OutputBytes: 64 << 20, Log: quiet})
	require.NoError(t, err)

	socket := filepath.Join(t.TempDir(), "proxy.sock")
	p, err := proxy.New(proxy.Config{Socket: socket, NodeUID: os.Getuid(), Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: quiet})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- a.Run(ctx) }()
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended; <-ended })

	keyPEM, csr, err := auth.NewCSR()
	require.NoError(t, err)
	cert, err := s.ca.SignCSR(csr, auth.Peer{Role: auth.PeerProxy, ID: string(s.node)}, auth.Names{}, time.Now())
	require.NoError(t, err)
	node := proxy.NewClient(socket)
	t.Cleanup(node.Close)
	require.NoError(t, node.SetIdentity(ctx, proxy.Identity{
		Node: s.node, Cluster: "testcluster", CertificatePEM: string(cert), KeyPEM: string(keyPEM), CAPEM: string(s.ca.PEM()), TicketKeys: s.keys,
	}))
	require.NoError(t, node.SetRoutes(ctx, []proxy.Route{{Box: s.box, Run: run, Epoch: 2, Address: a.Addr().String(), Key: key, Open: true}}))
	r := s.route(2)
	r.RunId, r.ProxyAddress = string(run), p.Addr().String()
	s.control.setRoute(r)
	eventually(t, func() bool { return s.gateway.Epoch(s.box) == 2 }, "the gateway has heard of the run")
	return s, node, run
}

func TestRealPartsCarryACommand(t *testing.T) {
	s, _, _ := newRealStack(t)
	c := s.client()
	var stdout, stderr buffer
	status, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"sh", "-c", "cat; echo err >&2; exit 9"}, Env: map[string]string{"A": "1"}, Streams: client.Streams{
		Stdin: strings.NewReader("from stdin\n"), Stdout: &stdout, Stderr: &stderr,
	}})
	require.NoError(t, err)
	require.Equal(t, 9, status.Code)
	require.Equal(t, "from stdin\n", stdout.String())
	require.Equal(t, "err\n", stderr.String())

	stdout = buffer{}
	_, err = c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"sh", "-c", "test -t 0 && stty size"}, Pty: &client.TerminalSize{Rows: 33, Cols: 101}, Streams: client.Streams{Stdout: &stdout}})
	require.NoError(t, err)
	require.Equal(t, "33 101\r\n", stdout.String())

	_, err = c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"no-such-command"}})
	require.Error(t, err)
	require.NotEqual(t, carrel.CodeInternal, carrel.CodeOf(err))
}

func TestRealPartsCarry64MBBothWays(t *testing.T) {
	s, _, _ := newRealStack(t)
	c := s.client()
	const total = 64 << 20
	sum, want := sha256.New(), sha256.New()
	left, block := total, pattern(0, 64<<10)
	in := readerFunc(func(b []byte) (int, error) {
		if left == 0 {
			return 0, io.EOF
		}
		n := copy(b[:min(len(b), left)], block)
		left -= n
		return n, nil
	})
	start := time.Now()
	seen := 0
	status, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"cat"}, Streams: client.Streams{
		Stdin: io.TeeReader(in, want), Stdout: writerFunc(func(b []byte) (int, error) { seen += len(b); return sum.Write(b) }),
	}})
	require.NoError(t, err)
	t.Logf("64 MiB in and out: %.0f MB/s", 67.1/time.Since(start).Seconds())
	require.Equal(t, total, seen)
	require.Zero(t, status.Lost)
	require.Equal(t, hex.EncodeToString(want.Sum(nil)), hex.EncodeToString(sum.Sum(nil)))
}

func TestRealPartsGoOnThroughCuts(t *testing.T) {
	s, _, _ := newRealStack(t)
	var stdout buffer
	lines := 0
	status, err := s.client().Exec(testContext(t), client.ExecOptions{
		Box: "mybox", Args: []string{"sh", "-c", "for i in $(seq 1 300); do echo line $i; read x; done; exit 5"}, Streams: client.Streams{
			Stdin: readerFunc(func(b []byte) (int, error) { return copy(b, "\n\n\n\n\n"), nil }),
			Stdout: writerFunc(func(b []byte) (int, error) {
				if lines++; lines%20 == 10 {
					s.conns.cut()
				}
				return stdout.Write(b)
			}),
		},
	})
	require.NoError(t, err)
	require.Equal(t, 5, status.Code)
	require.Zero(t, status.Lost)
	want := ""
	for i := range 300 {
		want += "line " + itoa(i+1) + "\n"
	}
	require.Equal(t, want, stdout.String())
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestRealPartsQuiesceCutsAndTheSessionComesBack(t *testing.T) {
	s, node, run := newRealStack(t)
	c := s.client()
	var stdout buffer
	links := make(chan client.Link, 16)
	ended := make(chan client.ExitStatus, 1)
	go func() {
		status, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"sh", "-c", "echo one; read x; echo two; exit 3"}, Streams: client.Streams{
			Stdin: blockedReader{s.t.Context()}, Stdout: &stdout, OnLink: func(l client.Link, _ error) { links <- l },
		}})
		require.NoError(t, err)
		ended <- status
	}()
	require.Eventually(t, func() bool { return stdout.String() == "one\n" }, within, 5*time.Millisecond)
	require.NoError(t, node.Quiesce(testContext(t), run, 10*time.Second))
	require.Equal(t, client.LinkDown, <-links)
	require.NoError(t, node.Unquiesce(testContext(t), run))
	list, err := c.ListProcesses(testContext(t), "mybox")
	require.NoError(t, err)
	require.Len(t, list, 1)
	_, err = c.Processes.WriteInput(testContext(t), request(&carrelv1.WriteInputRequest{Box: string(s.box), Process: list[0].GetId(), Data: []byte("go\n")}))
	require.NoError(t, err)
	require.Equal(t, 3, (<-ended).Code)
	require.Equal(t, "one\ntwo\n", stdout.String())
	require.Equal(t, client.LinkUp, <-links)
}

// blockedReader is input that nobody types.
type blockedReader struct{ ctx context.Context }

func (b blockedReader) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, io.EOF
}

func TestRealPartsExecLatency(t *testing.T) {
	s, _, _ := newRealStack(t)
	c := s.client()
	var times []time.Duration
	for range 30 {
		start := time.Now()
		_, err := c.Exec(testContext(t), client.ExecOptions{Box: "mybox", Args: []string{"true"}})
		require.NoError(t, err)
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	t.Logf("exec true: median %s, p95 %s", times[len(times)/2], times[len(times)*95/100])
}
