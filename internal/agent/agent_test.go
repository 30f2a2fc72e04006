package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/leftover"
)

// patience bounds every wait of a test on a loaded machine.
const patience = 3 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(initVariable) != "" {
		os.Exit(runAsInit())
	}
	if len(os.Args) > 1 && os.Args[1] == ownersArgument {
		if err := WriteOwners(context.Background(), os.Stdout, os.Args[2:]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	// What the test itself was started with is not passed on.
	_ = unix.CloseRange(3, 1<<20, unix.CLOSE_RANGE_CLOEXEC)
	// Nor that a shell had it ignore interrupts, as in the background: what is handled here, programs have as it should be.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGQUIT)
	go func() {
		<-interrupted
		os.Exit(1)
	}()
	os.Exit(m.Run())
}

// box is an agent in this process with its clients.
type box struct {
	*Agent
	t         *testing.T
	dir       string
	address   string
	identity  identity.Identity
	processes agentv1connect.ProcessServiceClient
	control   agentv1connect.ControlServiceClient
}

func testIdentity() identity.Identity {
	return identity.Identity{RunID: "raaaaaaaaaaaaaaaaaaa", BoxID: "baaaaaaaaaaaaaaaaaaa", BoxName: "alpha", Key: strings.Repeat("0a", 32)}
}

// startBox starts an agent that ends with the test, and checks that it leaves no goroutine behind.
func startBox(t *testing.T, change ...func(*Config, *identity.Identity)) *box {
	t.Helper()
	before := goleak.IgnoreCurrent()
	dir := openDir(t)
	home := filepath.Join(dir, "home")
	require.NoError(t, os.Mkdir(home, 0o777))
	require.NoError(t, os.Chmod(home, 0o777))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	config := Config{
		Version: "test", IdentityDir: dir, Listener: listener, Root: dir, Home: home, Env: []string{"PATH=" + defaultPath, "BOX=1"},
		Grace: 2 * time.Second, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}
	id := testIdentity()
	for _, f := range change {
		f(&config, &id)
	}
	require.NoError(t, identity.Write(dir, id))
	a, err := New(config)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	b := &box{Agent: a, t: t, dir: dir, address: a.Addr().String(), identity: id}
	var idle []*http.Client
	b.processes, b.control, idle = clients(b.address, id.Key)
	t.Cleanup(func() {
		stop()
		require.NoError(t, receive(t, ended))
		for _, client := range idle {
			client.CloseIdleConnections()
		}
		leftover.None(t, before)
	})
	return b
}

// openDir is a directory that the box's user can enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		require.NoError(t, os.Chmod(d, 0o755))
	}
	return dir
}

// clients speak to the agent at address.
func clients(address, key string) (agentv1connect.ProcessServiceClient, agentv1connect.ControlServiceClient, []*http.Client) {
	var made []*http.Client
	client := func(target string) *http.Client {
		transport := &http.Transport{
			Protocols: new(http.Protocols),
			HTTP2:     &http.HTTP2Config{MaxReceiveBufferPerConnection: 16 << 20, MaxReceiveBufferPerStream: 1 << 20, MaxReadFrameSize: 256 << 10},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialTarget(ctx, address, key, target)
			},
		}
		transport.Protocols.SetUnencryptedHTTP2(true)
		c := &http.Client{Transport: transport}
		made = append(made, c)
		return c
	}
	processes := agentv1connect.NewProcessServiceClient(client("agent"), "http://box")
	control := agentv1connect.NewControlServiceClient(client("control"), "http://box")
	return processes, control, made
}

// dialTarget connects to the agent and passes the preface.
func dialTarget(ctx context.Context, address, key, target string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "carrel/1 %s %s\n", key, target); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	var line []byte
	for one := make([]byte, 1); ; {
		if _, err := conn.Read(one); err != nil {
			return nil, errors.Join(fmt.Errorf("answer to the preface: %w", err), conn.Close())
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	if string(line) != "ok" {
		return nil, errors.Join(errors.New(string(line)), conn.Close())
	}
	return conn, nil
}

func (b *box) dial(target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return dialTarget(ctx, b.address, b.identity.Key, target)
}

func (b *box) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.t.Cleanup(cancel)
	return ctx
}

func sh(script string) *carrelv1.StartProcessRequest {
	return &carrelv1.StartProcessRequest{Args: []string{"sh", "-c", script}}
}

func (b *box) start(request *carrelv1.StartProcessRequest) *carrelv1.Process {
	b.t.Helper()
	response, err := b.processes.Start(b.context(), connect.NewRequest(request))
	require.NoError(b.t, err)
	return response.Msg
}

func (b *box) get(id string) *carrelv1.Process {
	b.t.Helper()
	response, err := b.processes.Get(b.context(), connect.NewRequest(&carrelv1.GetProcessRequest{Process: id}))
	require.NoError(b.t, err)
	return response.Msg
}

// finish waits for the end of a process, looking at none of its output.
func (b *box) finish(id string) *carrelv1.Process {
	b.t.Helper()
	stream, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: id, StdoutOffset: -1, StderrOffset: -1}))
	require.NoError(b.t, err)
	return collect(b.t, stream).exited
}

// run runs a command to its end with all its output.
func (b *box) run(request *carrelv1.StartProcessRequest) *seen {
	b.t.Helper()
	stream, err := b.processes.Run(b.context(), connect.NewRequest(request))
	require.NoError(b.t, err)
	return collect(b.t, stream)
}

// seen is what a stream of events held.
type seen struct {
	started, exited *carrelv1.Process
	out             [streams]bytes.Buffer
	next            [streams]int64
	gaps            []*carrelv1.Gap
	keepAlives      int
	discard         bool // count, do not keep
	bytes           int64
}

type eventStream = connect.ServerStreamForClient[carrelv1.ProcessEvent]

func collect(t *testing.T, stream *eventStream) *seen {
	t.Helper()
	s := &seen{}
	require.NoError(t, s.readAll(stream))
	require.NotNil(t, s.exited, "the last event is exited")
	return s
}

func (s *seen) readAll(stream *eventStream) error {
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if err := s.add(stream.Msg()); err != nil {
			return err
		}
	}
	return stream.Err()
}

func (s *seen) add(event *carrelv1.ProcessEvent) error {
	if s.exited != nil {
		return errors.New("an event after exited")
	}
	switch e := event.GetEvent().(type) {
	case *carrelv1.ProcessEvent_Started:
		s.started = e.Started
	case *carrelv1.ProcessEvent_Exited:
		s.exited = e.Exited
	case *carrelv1.ProcessEvent_KeepAlive:
		s.keepAlives++
	case *carrelv1.ProcessEvent_Gap:
		i := e.Gap.GetStream() - 1
		if e.Gap.GetOffset() != s.next[i] && s.next[i] != 0 {
			return fmt.Errorf("gap at %d, expected at %d", e.Gap.GetOffset(), s.next[i])
		}
		s.gaps = append(s.gaps, e.Gap)
		s.next[i] = e.Gap.GetNextOffset()
	case *carrelv1.ProcessEvent_Output:
		i := e.Output.GetStream() - 1
		if s.next[i] != 0 && e.Output.GetOffset() != s.next[i] {
			return fmt.Errorf("output at %d, expected at %d", e.Output.GetOffset(), s.next[i])
		}
		s.next[i] = e.Output.GetOffset() + int64(len(e.Output.GetData()))
		s.bytes += int64(len(e.Output.GetData()))
		if !s.discard {
			s.out[i].Write(e.Output.GetData())
		}
	}
	return nil
}

func reason(t *testing.T, err error) string {
	t.Helper()
	var wire *connect.Error
	require.ErrorAs(t, err, &wire)
	for _, detail := range wire.Details() {
		value, err := detail.Value()
		require.NoError(t, err)
		if info, ok := value.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// receive takes from a channel within patience.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		require.FailNow(t, "nothing came in time")
		panic("unreachable")
	}
}

// eventually polls until condition holds, within patience.
func eventually(t *testing.T, condition func() bool, message string) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, message)
}

// testLog writes log lines to the test's.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// asRoot reports whether the test can do what only root can; the short tests need none of it.
func asRoot() bool { return os.Geteuid() == 0 }

func withStartup(lines ...string) func(*Config, *identity.Identity) {
	return func(_ *Config, id *identity.Identity) { id.Startup = lines }
}
