package proxy_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/leftover"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/tunnel"
)

func TestMain(m *testing.M) { os.Exit(leftover.Main(m)) }

const key = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// agent is a small agent: it checks the preface, serves ControlService, and echoes on every tcp target.
type agent struct {
	agentv1connect.UnimplementedControlServiceHandler
	listener net.Listener
	run      atomic.Value // string
	quiet    atomic.Int64
	broken   atomic.Value // string: what is answered instead
	readyErr atomic.Pointer[connect.Error]
	wait     sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
	inner    chan net.Conn
}

func newAgent(t *testing.T, run carrel.RunID) *agent {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := &agent{listener: l, conns: map[net.Conn]struct{}{}, inner: make(chan net.Conn)}
	a.run.Store(string(run))
	a.broken.Store("")
	_, handler := agentv1connect.NewControlServiceHandler(a)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: handler, Protocols: protocols}
	a.wait.Go(func() { _ = server.Serve(chanListener{a}) })
	a.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.mu.Lock()
			a.conns[c] = struct{}{}
			a.mu.Unlock()
			a.wait.Go(func() { a.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		close(a.inner)
		_ = server.Close()
		a.mu.Lock()
		for c := range a.conns {
			_ = c.Close()
		}
		a.mu.Unlock()
		a.wait.Wait()
	})
	return a
}

type chanListener struct{ a *agent }

func (l chanListener) Accept() (net.Conn, error) {
	c, ok := <-l.a.inner
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l chanListener) Close() error   { return nil }
func (l chanListener) Addr() net.Addr { return l.a.listener.Addr() }

func (a *agent) serve(c net.Conn) {
	if b, _ := a.broken.Load().(string); b != "" {
		_, _ = io.WriteString(c, b)
		_ = c.Close()
		return
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		_ = c.Close()
		return
	}
	words := strings.Fields(line)
	if len(words) != 3 || words[1] != key {
		_, _ = io.WriteString(c, "err wrong key\n")
		_ = c.Close()
		return
	}
	_, _ = io.WriteString(c, "ok\n")
	switch words[2] {
	case "control":
		defer func() { _ = recover() }() // the listener is closed
		a.inner <- c
	case "tcp/localhost:98": // takes nothing
	case "tcp/localhost:99": // sends without being asked, then closes
		_, _ = c.Write(make([]byte, 8<<20))
		_ = c.Close()
	default:
		_, _ = io.Copy(c, r)
		_, _ = io.WriteString(c, "end")
		_ = c.Close()
	}
}

func (a *agent) Ready(context.Context, *connect.Request[agentv1.ReadyRequest]) (*connect.Response[agentv1.ReadyResponse], error) {
	if err := a.readyErr.Load(); err != nil {
		return nil, err
	}
	run, _ := a.run.Load().(string)
	return connect.NewResponse(&agentv1.ReadyResponse{RunId: run}), nil
}

func (a *agent) Quiesce(_ context.Context, r *connect.Request[agentv1.QuiesceRequest]) (*connect.Response[agentv1.QuiesceResponse], error) {
	a.quiet.Store(r.Msg.GetLeaseMillis())
	return connect.NewResponse(&agentv1.QuiesceResponse{}), nil
}

func (a *agent) Unquiesce(context.Context, *connect.Request[agentv1.UnquiesceRequest]) (*connect.Response[agentv1.UnquiesceResponse], error) {
	a.quiet.Store(0)
	return connect.NewResponse(&agentv1.UnquiesceResponse{}), nil
}

// world is a proxy with everything around it.
type world struct {
	t       *testing.T
	dir     string
	node    carrel.NodeID
	ca      *auth.CA
	signer  *auth.TicketSigner
	keys    [][]byte
	client  *proxy.Client
	proxy   *proxy.Proxy
	stop    func()
	gateway *http.Transport
	box     carrel.BoxID
	run     carrel.RunID
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), node: carrel.NewNodeID(), box: carrel.NewBoxID(), run: carrel.NewRunID()}
	root, err := auth.NewCAKey("c1", time.Now())
	require.NoError(t, err)
	w.ca, err = auth.NewCA("c1", []auth.CAKey{root})
	require.NoError(t, err)
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	w.signer, w.keys = auth.NewTicketSigner(private), [][]byte{public}
	w.client = proxy.NewClient(filepath.Join(w.dir, "run", "proxy.sock"))
	t.Cleanup(w.client.Close)
	w.start()
	require.NoError(t, w.client.SetIdentity(t.Context(), w.identity()))
	w.gateway = w.transport(auth.Peer{Role: auth.PeerGateway, ID: string(carrel.NewGatewayID())})
	return w
}

func (w *world) start() {
	w.t.Helper()
	p, err := proxy.New(proxy.Config{
		Socket: filepath.Join(w.dir, "run", "proxy.sock"), NodeUID: os.Getuid(), Dir: filepath.Join(w.dir, "proxy"),
		Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	w.proxy = p
	w.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(w.t, <-done)
	})
	w.t.Cleanup(func() { w.stop() })
}

func (w *world) identity() proxy.Identity {
	w.t.Helper()
	keyPEM, csr, err := auth.NewCSR()
	require.NoError(w.t, err)
	cert, err := w.ca.SignCSR(csr, auth.Peer{Role: auth.PeerProxy, ID: string(w.node)}, auth.Names{}, time.Now())
	require.NoError(w.t, err)
	return proxy.Identity{
		Node: w.node, Cluster: "c1", CertificatePEM: string(cert), KeyPEM: string(keyPEM), CAPEM: string(w.ca.PEM()), TicketKeys: w.keys,
	}
}

func (w *world) transport(peer auth.Peer) *http.Transport {
	w.t.Helper()
	cert, err := w.ca.Issue(peer, auth.Names{}, time.Now())
	require.NoError(w.t, err)
	tr := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{tunnel.Protocol},
		VerifyConnection: auth.VerifyPeer(w.ca.Pool(), "c1", string(w.node), auth.PeerProxy),
	}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func (w *world) route(a *agent) proxy.Route {
	return proxy.Route{Box: w.box, Run: w.run, Epoch: 1, Address: a.listener.Addr().String(), Key: key, Open: true}
}

func (w *world) ticket(change func(*auth.Ticket)) string {
	w.t.Helper()
	t := auth.Ticket{Box: w.box, Org: carrel.NewOrgID(), Epoch: 1, User: carrel.NewUserID(), Scopes: []string{auth.ScopeExec}, Expires: time.Now().Add(time.Minute)}
	if change != nil {
		change(&t)
	}
	text, err := w.signer.Sign(t)
	require.NoError(w.t, err)
	return text
}

// stream is what a CONNECT request opened, or was answered.
type stream struct {
	out    io.WriteCloser
	in     io.ReadCloser
	status int
	reason string
}

// upward closes its own direction alone.
type upward struct{ *tunnel.Conn }

func (u upward) Close() error { return u.CloseWrite() }

func (w *world) connect(target, ticket string) (*stream, error) {
	return w.connectWith(http.Header{proxy.HeaderTarget: {target}, proxy.HeaderTicket: {ticket}})
}

func (w *world) connectWith(header http.Header) (*stream, error) {
	raw, err := net.Dial("tcp", w.proxy.Addr().String())
	if err != nil {
		return nil, err
	}
	conn, err := tunnel.Open(context.Background(), raw, w.gateway.TLSClientConfig, string(w.box), header)
	if refused := new(tunnel.RefusedError); errors.As(err, &refused) {
		var said struct{ Reason, Message string }
		require.NoError(w.t, json.Unmarshal(refused.Body, &said))
		return &stream{status: refused.Status, reason: said.Reason}, nil
	}
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return &stream{out: upward{conn}, in: conn, status: http.StatusOK}, nil
}

func (w *world) open(target string) *stream {
	w.t.Helper()
	s, err := w.connect(target, w.ticket(nil))
	require.NoError(w.t, err)
	require.Equal(w.t, http.StatusOK, s.status, s.reason)
	return s
}

func TestStreamCarriesBytesBothWaysAndHalfCloses(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	s := w.open("agent")
	sent := make([]byte, 5<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = s.out.Write(sent)
		_ = s.out.Close()
	}()
	got, err := io.ReadAll(s.in)
	require.NoError(t, err)
	require.Equal(t, string(sent)+"end", string(got), "after the half-close the rest still came")

	all, err := io.ReadAll(w.open("tcp/localhost:99").in)
	require.NoError(t, err)
	require.Len(t, all, 8<<20)
}

func TestWhatIsRefused(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	foreign, err := func() (string, error) {
		_, private, _ := ed25519.GenerateKey(nil)
		return auth.NewTicketSigner(private).Sign(auth.Ticket{Box: w.box, Org: "o", Epoch: 1, User: "u", Scopes: []string{"exec"}, Expires: time.Now().Add(time.Minute)})
	}()
	require.NoError(t, err)
	for _, c := range []struct {
		name, target, ticket string
		status               int
	}{
		{"no ticket", "agent", "", 401},
		{"a stranger's ticket", "agent", foreign, 401},
		{"an expired ticket", "agent", w.ticket(func(t *auth.Ticket) { t.Expires = time.Now().Add(-time.Minute) }), 401},
		{"another box's ticket", "agent", w.ticket(func(t *auth.Ticket) { t.Box = carrel.NewBoxID() }), 403},
		{"an older epoch", "agent", w.ticket(func(t *auth.Ticket) { t.Epoch = 2 }), 409},
		{"view for a port", "tcp/localhost:80", w.ticket(func(t *auth.Ticket) { t.Scopes = []string{auth.ScopeView} }), 403},
		{"the proxy's own target", "control", w.ticket(nil), 400},
		{"a second word", "tcp/a:1 control", w.ticket(nil), 400},
		{"no target", "", w.ticket(nil), 400},
		{"a long target", "unix/" + strings.Repeat("a", 2000), w.ticket(nil), 400},
	} {
		s, err := w.connect(c.target, c.ticket)
		require.NoError(t, err, c.name)
		require.Equal(t, c.status, s.status, "%s: %s", c.name, s.reason)
	}
	s, err := w.connect("agent", w.ticket(func(t *auth.Ticket) { t.Scopes = []string{auth.ScopeView} }))
	require.NoError(t, err)
	require.Equal(t, 200, s.status, "looking at the agent's service is allowed")

	// Peers that are no gateways of this cluster do not get through the handshake.
	w.gateway = w.transport(auth.Peer{Role: auth.PeerNode, ID: string(carrel.NewNodeID())})
	_, err = w.connect("agent", w.ticket(nil))
	require.Error(t, err)
}

func TestAPortPassOpensItsPortAlone(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	status := func(target string, change func(*auth.PortPass)) int {
		p := auth.PortPass{Box: w.box, Org: carrel.NewOrgID(), Port: 8000, Expires: time.Now().Add(time.Hour)}
		if change != nil {
			change(&p)
		}
		text, err := w.signer.SignPort(p)
		require.NoError(t, err)
		s, err := w.connectWith(http.Header{proxy.HeaderTarget: {target}, proxy.HeaderPortPass: {text}})
		require.NoError(t, err)
		return s.status
	}
	require.Equal(t, 200, status(proxy.PortTarget(8000), nil))
	for _, target := range []string{proxy.PortTarget(8001), "tcp/127.0.0.1:8000", "agent", "unix/@x", "udp/localhost:8000"} {
		require.Equal(t, 403, status(target, nil), target)
	}
	require.Equal(t, 403, status(proxy.PortTarget(8000), func(p *auth.PortPass) { p.Box = carrel.NewBoxID() }))
	require.Equal(t, 401, status(proxy.PortTarget(8000), func(p *auth.PortPass) { p.Expires = time.Now().Add(-time.Minute) }))
}

func TestOtherMethodsAreRefused(t *testing.T) {
	w := newWorld(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.proxy.Addr().String()+"/", nil)
	require.NoError(t, err)
	resp, err := w.gateway.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
}

func TestStreamsEndWithTheirRoute(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	closeAll := map[string]func(){
		"taken away":     func() { require.NoError(t, w.client.RemoveRoute(t.Context(), w.run)) },
		"not in table":   func() { require.NoError(t, w.client.SetRoutes(t.Context(), nil)) },
		"not open":       func() { r := w.route(a); r.Open = false; require.NoError(t, w.client.SetRoute(t.Context(), r)) },
		"quiesced":       func() { require.NoError(t, w.client.Quiesce(t.Context(), w.run, time.Second)) },
		"of a new epoch": func() { r := w.route(a); r.Epoch = 2; require.NoError(t, w.client.SetRoute(t.Context(), r)) },
	}
	for name, cut := range closeAll {
		require.NoError(t, w.client.SetRoutes(t.Context(), []proxy.Route{w.route(a)}))
		require.NoError(t, w.client.Unquiesce(t.Context(), w.run))
		s := w.open("agent")
		_, err := s.out.Write([]byte("x"))
		require.NoError(t, err)
		_, err = io.ReadFull(s.in, make([]byte, 1))
		require.NoError(t, err)
		cut()
		_, err = io.ReadAll(s.in)
		require.Error(t, err, "%s: the stream ended as if all were said", name)
		after, err := w.connect("agent", w.ticket(nil))
		require.NoError(t, err)
		require.NotEqual(t, 200, after.status, name)
		require.Equal(t, name == "quiesced", a.quiet.Load() != 0, "%s: whether the agent is quiet", name)
	}
}

func TestReady(t *testing.T) {
	w := newWorld(t)
	// Nothing listens at first.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	r := proxy.Route{Box: w.box, Run: w.run, Epoch: 1, Address: address, Key: key}
	require.NoError(t, w.client.SetRoute(t.Context(), r))
	err = w.client.Ready(t.Context(), w.run, 30*time.Millisecond)
	require.Equal(t, "agent_silent", carrel.ReasonOf(err))
	require.Equal(t, "no_route", carrel.ReasonOf(w.client.Ready(t.Context(), carrel.NewRunID(), time.Second)))

	// An agent that has just been restored still is in the run before.
	a := newAgent(t, "rbefore0000000000000")
	r.Address = a.listener.Addr().String()
	require.NoError(t, w.client.SetRoute(t.Context(), r))
	require.Equal(t, "agent_silent", carrel.ReasonOf(w.client.Ready(t.Context(), w.run, 50*time.Millisecond)))
	time.AfterFunc(20*time.Millisecond, func() { a.run.Store(string(w.run)) })
	began := time.Now()
	require.NoError(t, w.client.Ready(t.Context(), w.run, time.Minute))
	t.Logf("ready %s after the agent was", time.Since(began)-20*time.Millisecond)

	a.readyErr.Store(connect.NewError(connect.CodeFailedPrecondition, errors.New("no such\x1b user")))
	err = w.client.Ready(t.Context(), w.run, time.Minute)
	require.Equal(t, "startup_failed", carrel.ReasonOf(err))
	require.Contains(t, err.Error(), "no such user")
}

func TestAgentThatDoesNotKeepToTheProtocolHarmsNobody(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	for _, nonsense := range []string{"\n", "err go away\n", "ok", strings.Repeat("o", 1<<20), "HTTP/1.1 200 OK\r\n\r\n"} {
		a.broken.Store(nonsense)
		s, err := w.connect("agent", w.ticket(nil))
		require.NoError(t, err)
		require.GreaterOrEqual(t, s.status, 500)
		require.Error(t, w.client.Quiesce(t.Context(), w.run, 200*time.Millisecond))
		require.Equal(t, "agent_silent", carrel.ReasonOf(w.client.Ready(t.Context(), w.run, 30*time.Millisecond)))
	}
	a.broken.Store("")
	require.NoError(t, w.client.Ready(t.Context(), w.run, time.Minute))
}

func TestServesOnAfterItsOwnRestart(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	for _, f := range []string{"routes.json", "identity.json"} {
		info, err := os.Stat(filepath.Join(w.dir, "proxy", f))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	w.stop()
	w.start()
	require.True(t, w.proxy.Ready())
	w.open("agent")

	// With its files damaged it waits for the node.
	w.stop()
	for _, f := range []string{"routes.json", "identity.json"} {
		require.NoError(t, os.WriteFile(filepath.Join(w.dir, "proxy", f), []byte("{"), 0o600))
	}
	w.start()
	require.False(t, w.proxy.Ready())
	_, err := w.connect("agent", w.ticket(nil))
	require.Error(t, err)
	require.NoError(t, w.client.SetIdentity(t.Context(), w.identity()))
	require.NoError(t, w.client.SetRoutes(t.Context(), []proxy.Route{w.route(a)}))
	w.open("agent")
}

func TestOnlyTheNodesUserIsListenedTo(t *testing.T) {
	dir := t.TempDir()
	p, err := proxy.New(proxy.Config{Socket: dir + "/s", NodeUID: os.Getuid() + 1, Dir: dir, Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	c := proxy.NewClient(dir + "/s")
	defer c.Close()
	require.Equal(t, "proxy_unreachable", carrel.ReasonOf(c.SetRoutes(t.Context(), nil)))
	cancel()
	require.NoError(t, <-done)
}

func TestRoutesAreChecked(t *testing.T) {
	w := newWorld(t)
	good := proxy.Route{Box: w.box, Run: w.run, Epoch: 1, Address: "127.0.0.1:1", Key: key}
	for i, change := range []func(*proxy.Route){
		func(r *proxy.Route) { r.Key = "short" },
		func(r *proxy.Route) { r.Key = strings.Repeat("g", 64) },
		func(r *proxy.Route) { r.Address = "example.org:1" },
		func(r *proxy.Route) { r.Epoch = 0 },
		func(r *proxy.Route) { r.Box = "x" },
	} {
		r := good
		change(&r)
		require.Error(t, w.client.SetRoutes(t.Context(), []proxy.Route{r}), fmt.Sprint(i))
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	var group sync.WaitGroup
	var failed atomic.Int64
	ticket := w.ticket(nil)
	for range 24 {
		group.Go(func() {
			s, err := w.connect("agent", ticket)
			if err != nil || s.status != 200 {
				t.Logf("not opened: %v, %v", err, s)
				failed.Add(1)
				return
			}
			_, _ = s.out.Write([]byte("hello"))
			_ = s.out.Close()
			if got, err := io.ReadAll(s.in); err != nil || string(got) != "helloend" {
				failed.Add(1)
			}
		})
	}
	group.Wait()
	require.Zero(t, failed.Load())
}

// A program that takes nothing costs its own streams: what they hold must never use up what a gateway may have on its way to all boxes.
func TestStreamsThatAreNotReadHoldUpNoOthers(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	free := w.open("agent")
	var written atomic.Int64
	var writers sync.WaitGroup
	defer writers.Wait()
	for range 48 {
		s := w.open("tcp/localhost:98")
		defer s.in.Close()
		writers.Go(func() {
			for chunk := make([]byte, 64<<10); ; {
				n, err := s.out.Write(chunk)
				written.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	answers := make(chan error)
	go func() {
		defer close(answers)
		// Until the others are full: then the kernel takes a little now and again, where it finds room by packing closer.
		for last := int64(-1); written.Load()-last > 48*64<<10; {
			last = written.Load()
			for range 500 {
				_, _ = free.out.Write([]byte("ping"))
				_, err := io.ReadFull(free.in, make([]byte, 4))
				answers <- err
				if err != nil {
					return
				}
			}
		}
	}()
	for {
		select {
		case err, more := <-answers:
			if !more {
				return
			}
			require.NoError(t, err)
		case <-time.After(30 * time.Second):
			_ = free.in.Close()
			t.Fatal("a stream waits for others that are not read")
		}
	}
}
