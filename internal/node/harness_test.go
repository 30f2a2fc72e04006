package node_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/leftover"
	"carrel.dev/carrel/internal/node"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/node/netpool"
	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/fake"
)

const childVariable = "CARREL_NODE_TEST_CHILD"

// TestMain is also the node process that the tests start and kill.
func TestMain(m *testing.M) {
	if path := os.Getenv(childVariable); path != "" {
		if err := runChild(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(leftover.Main(m))
}

// childConfig is what a node process of the tests is told.
type childConfig struct {
	Dir        string
	ControlURL string
	CAFile     string
	Token      string
	Verbose    bool
	Version    string
}

func (c childConfig) testSocket() string { return filepath.Join(c.Dir, "test.sock") }

// runChild is a node with its proxy, the fake runtime and agents, in one process.
func runChild(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var c childConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.DiscardHandler)
	if c.Verbose {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	agents := &agents{dir: filepath.Join(c.Dir, "run", "identities")}
	rt, err := fake.New(fake.Config{Root: filepath.Join(c.Dir, "fake"), Agent: agents.serve, Version: c.Version})
	if err != nil {
		return err
	}
	defer rt.Close()
	pool, err := disk.Open(ctx, disk.Config{Dir: filepath.Join(c.Dir, "data"), RunDir: filepath.Join(c.Dir, "run"), SizeBytes: disk.MinPool, Logger: log})
	if err != nil {
		return err
	}
	socket := filepath.Join(c.Dir, "proxy.sock")
	p, err := node.NewProxy(node.ProxyConfig{Socket: socket, NodeUID: os.Getuid(), Dir: filepath.Join(c.Dir, "proxy"), Listen: "127.0.0.1:0", Logger: log})
	if err != nil {
		return err
	}
	d, err := node.New(node.Config{
		DataDir: filepath.Join(c.Dir, "data"), RunDir: filepath.Join(c.Dir, "run"), Pool: pool, Runtime: rt, Networks: netpool.Loopback{},
		Images: testImages{pool}, ControlURL: c.ControlURL, CAFile: c.CAFile, JoinTokenFile: c.Token, Name: "n1", ProxyAddress: p.Addr().String(), ProxySocket: socket,
		AgentPath: os.Args[0], Logger: log, Version: "test",
	})
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	errs := make(chan error, 3)
	group.Go(func() { errs <- p.Run(ctx) })
	group.Go(func() { errs <- d.Run(ctx) })
	group.Go(func() { errs <- serveTest(ctx, c.testSocket(), rt) })
	err = <-errs
	stop()
	group.Wait()
	return err
}

// testImages makes images of nothing.
type testImages struct{ pool *disk.Pool }

func (i testImages) Build(_ context.Context, definition string, progress func(string)) (string, int64, error) {
	progress("building")
	if definition == "bad" {
		return "", 0, carrel.Errorf(carrel.CodeInvalid, "package_not_found", "there is no package bad")
	}
	return i.add("built " + definition)
}

func (i testImages) Import(_ context.Context, from node.ImportSource, _ func(string)) (string, int64, error) {
	return i.add(fmt.Sprintf("imported %+v", from))
}

func (i testImages) add(text string) (string, int64, error) {
	digest := imageDigest(text)
	path := filepath.Join(i.pool.ImageDir(), strings.Replace(digest, ":", "-", 1)+".erofs")
	return digest, int64(len(text)), os.WriteFile(path, []byte(text), 0o600)
}

func imageDigest(text string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))) }

// serveTest lets the test look into the fake machines.
func serveTest(ctx context.Context, socket string, rt *fake.Runtime) error {
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request, body []byte) ([]byte, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			out, err := f(r, body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusTeapot)
				return
			}
			_, _ = w.Write(out)
		})
	}
	handle("PUT /file/{run}/{path...}", func(r *http.Request, body []byte) ([]byte, error) {
		return nil, rt.Machine(r.PathValue("run")).WriteFile("/"+r.PathValue("path"), body)
	})
	handle("GET /file/{run}/{path...}", func(r *http.Request, _ []byte) ([]byte, error) {
		return rt.Machine(r.PathValue("run")).ReadFile("/" + r.PathValue("path"))
	})
	handle("PUT /memory/{run}", func(r *http.Request, body []byte) ([]byte, error) {
		return rt.Machine(r.PathValue("run")).Memory("m", func([]byte) []byte { return body })
	})
	handle("GET /memory/{run}", func(r *http.Request, _ []byte) ([]byte, error) {
		return rt.Machine(r.PathValue("run")).Memory("m", func(old []byte) []byte { return old })
	})
	handle("POST /kill/{run}", func(r *http.Request, body []byte) ([]byte, error) {
		return nil, rt.Kill(r.PathValue("run"), runtime.Exit{Reason: string(body), Message: "the test says so", Code: -1})
	})
	handle("GET /list", func(*http.Request, []byte) ([]byte, error) {
		list, err := rt.List(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(list)
	})
	server := &http.Server{Handler: mux}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// agents answers as the agent of every box.
type agents struct{ dir string }

func (a *agents) serve(run string, conn net.Conn) {
	data, err := os.ReadFile(filepath.Join(a.dir, run, "identity.json"))
	if err != nil {
		return
	}
	var id struct{ Key string }
	if json.Unmarshal(data, &id) != nil {
		return
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) != 3 || words[1] != id.Key || words[2] != "control" {
		_, _ = io.WriteString(conn, "err no\n")
		return
	}
	_, _ = io.WriteString(conn, "ok\n")
	_, handler := agentv1connect.NewControlServiceHandler(&agentControl{run: run, foreground: filepath.Join(a.dir, "..", "..", "foreground-"+run)})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	l := &oneListener{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- &closingConn{Conn: conn, close: sync.OnceFunc(func() { close(l.done) })}
	server := &http.Server{Handler: handler, Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	_ = server.Serve(l)
	<-l.done
}

type closingConn struct {
	net.Conn
	close func()
}

func (c *closingConn) Close() error {
	err := c.Conn.Close()
	c.close()
	return err
}

// oneListener gives out one connection and waits for its end.
type oneListener struct {
	conn chan net.Conn
	done chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return &net.TCPAddr{} }

type agentControl struct {
	agentv1connect.UnimplementedControlServiceHandler
	run        string
	foreground string // a file that names the command in the foreground, if it is there
}

func (a *agentControl) Activity(context.Context, *connect.Request[agentv1.ActivityRequest]) (*connect.Response[agentv1.ActivityResponse], error) {
	command, err := os.ReadFile(a.foreground)
	if errors.Is(err, os.ErrNotExist) {
		return connect.NewResponse(&agentv1.ActivityResponse{}), nil
	}
	if err != nil {
		return nil, err
	}
	now := timestamppb.Now()
	return connect.NewResponse(&agentv1.ActivityResponse{Commands: []*agentv1.ForegroundCommand{{Command: string(command), StartTime: now}}, CommandTime: now}), nil
}

func (a *agentControl) Ready(context.Context, *connect.Request[agentv1.ReadyRequest]) (*connect.Response[agentv1.ReadyResponse], error) {
	return connect.NewResponse(&agentv1.ReadyResponse{RunId: a.run}), nil
}

func (a *agentControl) Identify(context.Context, *connect.Request[agentv1.IdentifyRequest]) (*connect.Response[agentv1.IdentifyResponse], error) {
	return connect.NewResponse(&agentv1.IdentifyResponse{}), nil
}

func (a *agentControl) Quiesce(context.Context, *connect.Request[agentv1.QuiesceRequest]) (*connect.Response[agentv1.QuiesceResponse], error) {
	return connect.NewResponse(&agentv1.QuiesceResponse{}), nil
}

func (a *agentControl) Unquiesce(context.Context, *connect.Request[agentv1.UnquiesceRequest]) (*connect.Response[agentv1.UnquiesceResponse], error) {
	return connect.NewResponse(&agentv1.UnquiesceResponse{}), nil
}

func (a *agentControl) Shutdown(context.Context, *connect.Request[agentv1.ShutdownRequest]) (*connect.Response[agentv1.ShutdownResponse], error) {
	return connect.NewResponse(&agentv1.ShutdownResponse{}), nil
}

// control is a small control plane for one node: it keeps what is wanted, and what it was told.
type control struct {
	linkv1connect.UnimplementedJoinServiceHandler
	linkv1connect.UnimplementedNodeLinkHandler
	t      *testing.T
	ca     *auth.CA
	node   carrel.NodeID
	keys   [][]byte
	signer *auth.TicketSigner
	server *http.Server
	addr   string

	mu       sync.Mutex // guards what follows
	changed  chan struct{}
	revision int64
	runs     map[string]*linkv1.DesiredRun
	epochs   map[string]int64 // newest of each box
	deleted  map[string]bool
	doomed   map[string]bool
	chores   []*linkv1.Chore
	unneeded []string                                 // digests of images
	held     map[string]*linkv1.CommitSnapshotRequest // committed snapshots
	newest   map[string]string                        // of each box
	reports  map[string][]*linkv1.RunReport
	ended    map[string]bool
	done     []*linkv1.ChoreReport
	facts    *linkv1.NodeFacts
	signals  map[string]map[string]*linkv1.ActivitySignal // of each run, by kind
	refuse   string                                       // reason to refuse the next commit with
	lose     int                                          // answers to commits that get lost
	broken   error                                        // what everything is answered with
	cut      chan struct{}
	problems []string
}

func newControl(t *testing.T) *control {
	t.Helper()
	root, err := auth.NewCAKey("c1", time.Now())
	require.NoError(t, err)
	ca, err := auth.NewCA("c1", []auth.CAKey{root})
	require.NoError(t, err)
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	c := &control{
		t: t, ca: ca, node: carrel.NewNodeID(), keys: [][]byte{public}, signer: auth.NewTicketSigner(private), changed: make(chan struct{}), cut: make(chan struct{}), revision: 1,
		runs: map[string]*linkv1.DesiredRun{}, epochs: map[string]int64{}, deleted: map[string]bool{}, doomed: map[string]bool{},
		held: map[string]*linkv1.CommitSnapshotRequest{}, newest: map[string]string{}, reports: map[string][]*linkv1.RunReport{}, ended: map[string]bool{},
		signals: map[string]map[string]*linkv1.ActivitySignal{},
	}
	cert, err := ca.Issue(auth.Peer{Role: auth.PeerControl}, auth.Names{}, time.Now())
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle(linkv1connect.NewJoinServiceHandler(c))
	mux.Handle(linkv1connect.NewNodeLinkHandler(c))
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	c.server = &http.Server{Handler: mux, Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven,
	}}
	c.addr = "https://" + l.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = c.server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		_ = c.server.Close()
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		require.Empty(t, c.problems)
	})
	return c
}

func (c *control) Join(ctx context.Context, r *connect.Request[linkv1.JoinRequest]) (*connect.Response[linkv1.JoinResponse], error) {
	role := auth.PeerRole(r.Msg.GetRole())
	if role == auth.PeerNode && r.Msg.GetToken() != "secret" {
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("wrong token"))
	}
	if role == auth.PeerProxy && r.Msg.GetNodeId() != string(c.node) {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("wrong node"))
	}
	cert, err := c.ca.SignCSR([]byte(r.Msg.GetCsrPem()), auth.Peer{Role: role, ID: string(c.node)}, auth.Names{}, time.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&linkv1.JoinResponse{Id: string(c.node), CertificatePem: string(cert), CaPem: string(c.ca.PEM()), ClusterId: "c1", TicketKeys: c.keys}), nil
}

// with changes control under its mutex, and wakes the node's watch.
func (c *control) with(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.touch()
}

func (c *control) touch() { // needs mu
	c.revision++
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *control) set() *linkv1.DesiredSet { // needs mu
	s := &linkv1.DesiredSet{ClusterId: "c1", NodeId: string(c.node), Incarnation: 1, Revision: c.revision, TicketKeys: c.keys, Chores: c.chores, DropImages: c.unneeded}
	for id, r := range c.runs {
		if !c.ended[id] {
			s.Runs = append(s.Runs, r)
		}
	}
	for id := range c.doomed {
		s.DropSnapshots = append(s.DropSnapshots, id)
	}
	s = proto.CloneOf(s)
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		c.problems = append(c.problems, err.Error())
	}
	sum := sha256.Sum256(body)
	s.Checksum = sum[:]
	return s
}

func (c *control) WatchDesired(ctx context.Context, _ *connect.Request[linkv1.WatchDesiredRequest], s *connect.ServerStream[linkv1.DesiredSet]) error {
	for {
		c.mu.Lock()
		set, changed, cut, broken := c.set(), c.changed, c.cut, c.broken
		c.mu.Unlock()
		if broken != nil {
			return broken
		}
		if err := s.Send(set); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-cut:
			return errors.New("cut")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *control) Report(_ context.Context, r *connect.Request[linkv1.ReportRequest]) (*connect.Response[linkv1.ReportResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil, c.broken
	}
	changed := false
	for _, p := range r.Msg.GetRuns() {
		list := c.reports[p.GetRunId()]
		if len(list) > 0 && list[len(list)-1].GetSequence() >= p.GetSequence() {
			continue
		}
		if c.ended[p.GetRunId()] {
			c.problems = append(c.problems, fmt.Sprintf("run %s is %s after it had ended", p.GetRunId(), p.GetPhase()))
		}
		c.reports[p.GetRunId()] = append(list, p)
		if carrel.Phase(p.GetPhase()).Ended() {
			c.ended[p.GetRunId()] = true
			changed = true
		}
	}
	for _, p := range r.Msg.GetChores() {
		if p.GetDone() {
			c.done = append(c.done, p)
			for i, chore := range c.chores {
				if chore.GetId() == p.GetChoreId() {
					c.chores = append(c.chores[:i:i], c.chores[i+1:]...)
					changed = true
					break
				}
			}
		}
	}
	for _, id := range r.Msg.GetDroppedSnapshots() {
		delete(c.doomed, id)
		delete(c.held, id)
		changed = true
	}
	if f := r.Msg.GetFacts(); f != nil {
		c.facts = f
	}
	for _, a := range r.Msg.GetActivities() {
		if c.signals[a.GetRunId()] == nil {
			c.signals[a.GetRunId()] = map[string]*linkv1.ActivitySignal{}
		}
		for _, s := range a.GetSignals() {
			c.signals[a.GetRunId()][s.GetKind()] = s
		}
	}
	if changed {
		c.touch()
	}
	return connect.NewResponse(&linkv1.ReportResponse{}), nil
}

func (c *control) CommitSnapshot(_ context.Context, r *connect.Request[linkv1.CommitSnapshotRequest]) (*connect.Response[linkv1.CommitSnapshotResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil, c.broken
	}
	m := r.Msg
	answer := &linkv1.CommitSnapshotResponse{Accepted: true}
	_, known := c.held[m.GetSnapshotId()]
	switch {
	case known:
	case c.refuse != "":
		answer = &linkv1.CommitSnapshotResponse{Reason: c.refuse}
		c.refuse = ""
	case c.deleted[m.GetBoxId()]:
		answer = &linkv1.CommitSnapshotResponse{Reason: "box_deleted"}
	case m.GetEpoch() != c.epochs[m.GetBoxId()]:
		answer = &linkv1.CommitSnapshotResponse{Reason: "stale_epoch"}
	case c.ended[m.GetRunId()]:
		answer = &linkv1.CommitSnapshotResponse{Reason: "run_ended"}
	default:
		c.held[m.GetSnapshotId()] = m
		if old := c.newest[m.GetBoxId()]; old != "" {
			c.doomed[old] = true
		}
		c.newest[m.GetBoxId()] = m.GetSnapshotId()
		c.touch()
	}
	if c.lose > 0 {
		c.lose--
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the answer is lost"))
	}
	return connect.NewResponse(answer), nil
}

// world is a control plane, and a node process that is started again whenever it ends.
type world struct {
	t       *testing.T
	dir     string
	control *control
	client  *http.Client
	config  childConfig

	failpoints failpoint.Dir

	mu       sync.Mutex // guards what follows
	child    *exec.Cmd
	stopping bool
	restarts int
	keeper   sync.WaitGroup
}

// newWorld starts a node with steps armed: NAME=ACTION, separated by commas.
func newWorld(t *testing.T, armed string) *world {
	t.Helper()
	w := &world{t: t, dir: shortTempDir(t), control: newControl(t)}
	token := filepath.Join(w.dir, "token")
	require.NoError(t, os.WriteFile(token, []byte("secret\n"), 0o600))
	ca := filepath.Join(w.dir, "ca.pem")
	require.NoError(t, os.WriteFile(ca, w.control.ca.PEM(), 0o600))
	w.failpoints = failpoint.Dir(filepath.Join(w.dir, "failpoints"))
	require.NoError(t, os.Mkdir(string(w.failpoints), 0o700))
	for entry := range strings.SplitSeq(armed, ",") {
		if name, action, ok := strings.Cut(entry, "="); ok {
			require.NoError(t, w.failpoints.Arm(name, action))
		}
	}
	w.config = childConfig{Dir: w.dir, ControlURL: w.control.addr, CAFile: ca, Token: token, Verbose: os.Getenv("CARREL_TEST_VERBOSE") != ""}
	w.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", w.config.testSocket())
	}}, Timeout: 10 * time.Second}
	t.Cleanup(func() {
		w.stop(syscall.SIGTERM)
		w.client.CloseIdleConnections()
		_ = syscall.Unmount(filepath.Join(w.dir, "data", "pool"), 0)
	})
	w.start()
	return w
}

// shortTempDir has a path that is short enough for Unix sockets.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cn")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func (w *world) start() {
	w.t.Helper()
	data, err := json.Marshal(w.config)
	require.NoError(w.t, err)
	path := filepath.Join(w.dir, "child.json")
	require.NoError(w.t, os.WriteFile(path, data, 0o600))
	w.mu.Lock()
	w.stopping = false
	w.mu.Unlock()
	w.keeper.Go(func() {
		for {
			w.mu.Lock()
			if w.stopping {
				w.mu.Unlock()
				return
			}
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), childVariable+"="+path, failpoint.Variable+"=@"+string(w.failpoints))
			child.Stderr = os.Stderr
			child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := child.Start(); err != nil {
				w.mu.Unlock()
				w.t.Error(err)
				return
			}
			w.child = child
			w.mu.Unlock()
			_ = child.Wait()
			w.mu.Lock()
			w.restarts++
			w.mu.Unlock()
		}
	})
}

func (w *world) stop(s syscall.Signal) {
	w.mu.Lock()
	w.stopping = true
	if w.child != nil && w.child.Process != nil {
		_ = w.child.Process.Signal(s)
	}
	w.mu.Unlock()
	w.keeper.Wait()
}

// patience bounds every wait for a node, on a machine that has much else to do.
const patience = 3 * time.Minute

// eventually waits for something that the node does.
func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			w.t.Fatalf("this did not come to be: %s\n%s", what, w.dump())
		}
		pollWait()
	}
}

// pollWait is the pause between two looks.
func pollWait() { <-time.After(3 * time.Millisecond) }

func (w *world) dump() string {
	w.control.mu.Lock()
	defer w.control.mu.Unlock()
	var b strings.Builder
	for id, r := range w.control.runs {
		fmt.Fprintf(&b, "run %s order %s generation %d ended %t\n", id, r.GetOrder(), r.GetGeneration(), w.control.ended[id])
		for _, p := range w.control.reports[id] {
			fmt.Fprintf(&b, "  %d %s gen %d %s %s %s %s\n", p.GetSequence(), p.GetPhase(), p.GetGeneration(), p.GetReason(), p.GetMessage(), p.GetFailedOrder(), p.GetSnapshotId())
		}
	}
	return b.String()
}

// machine asks about the fake machine of a run, again while the node process is being started.
func (w *world) machine(method, path, body string) string {
	w.t.Helper()
	var out string
	var last error
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		req, err := http.NewRequestWithContext(w.t.Context(), method, "http://test/"+path, strings.NewReader(body))
		require.NoError(w.t, err)
		resp, err := w.client.Do(req)
		if err != nil {
			last = err
			pollWait()
			continue
		}
		data, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		out = string(data)
		require.Equal(w.t, http.StatusOK, resp.StatusCode, "%s %s: %s", method, path, out)
		return out
	}
	require.NoError(w.t, last)
	return out
}
