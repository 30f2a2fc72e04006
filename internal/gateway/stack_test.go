package gateway_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/gateway"
	"carrel.dev/carrel/internal/tunnel"
)

const (
	testToken     = "carrel_good"
	testJoinToken = "join-me"
	testUser      = carrel.UserID("u0000000000000000001")
	testOrg       = carrel.OrgID("o0000000000000000001")
)

// stack is a gateway between fakes that speak the real protocols: control over mutual TLS, a node's
// proxy over CONNECT, and an agent.
type stack struct {
	t         *testing.T
	ca        *auth.CA
	caFile    string
	joinFile  string
	dir       string
	signer    *auth.TicketSigner
	verifier  *auth.TicketVerifier
	keys      [][]byte
	control   *fakeControl
	controlAt string
	proxy     *fakeProxy
	agent     *fakeAgent
	gateway   *gateway.Gateway
	url       string
	conns     *cutter // between client and gateway
	change    []func(*gateway.Config)

	box  carrel.BoxID
	node carrel.NodeID

	stopControl func()
	stopGateway func()
}

func newStack(t *testing.T, change ...func(*gateway.Config)) *stack {
	t.Helper()
	s := &stack{t: t, change: change, dir: t.TempDir(), box: carrel.NewBoxID(), node: carrel.NewNodeID(), conns: &cutter{}, agent: newFakeAgent()}
	root, err := auth.NewCAKey("testcluster", time.Now())
	require.NoError(t, err)
	s.ca, err = auth.NewCA("testcluster", []auth.CAKey{root})
	require.NoError(t, err)
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	s.signer = auth.NewTicketSigner(private)
	s.keys = [][]byte{public}
	s.verifier = auth.NewTicketVerifier()
	s.verifier.SetKeys([]ed25519.PublicKey{public})
	s.caFile = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(s.caFile, s.ca.PEM(), 0o600))
	s.joinFile = filepath.Join(t.TempDir(), "join")
	require.NoError(t, os.WriteFile(s.joinFile, []byte(testJoinToken+"\n"), 0o600))

	s.proxy = newFakeProxy(t, s, s.agent)
	s.control = &fakeControl{stack: s, routes: map[carrel.BoxID]*linkv1.Route{}, changed: make(chan struct{}), goOn: make(chan struct{}), state: carrelv1.State_STATE_RUNNING}
	s.control.routes[s.box] = s.route(1)
	s.startControl()
	s.startGateway()
	return s
}

func (s *stack) route(epoch int64) *linkv1.Route {
	return &linkv1.Route{BoxId: string(s.box), RunId: string(carrel.NewRunID()), Epoch: epoch, NodeId: string(s.node), ProxyAddress: s.proxy.address}
}

func (s *stack) startControl() {
	cert, err := s.ca.Issue(auth.Peer{Role: auth.PeerControl}, auth.Names{}, time.Now())
	require.NoError(s.t, err)
	address := s.controlAt
	if address == "" {
		address = "127.0.0.1:0"
	}
	var listener net.Listener
	require.Eventually(s.t, func() bool { listener, err = net.Listen("tcp", address); return err == nil }, within, 20*time.Millisecond)
	s.controlAt = listener.Addr().String()
	s.stopControl = serveTLS(s.t, listener, s.control.handler(), cert, s.ca.Pool(), tls.VerifyClientCertIfGiven)
}

// serveTLS serves HTTP/2 over TLS and answers with a function that cuts everything off.
func serveTLS(t *testing.T, l net.Listener, h http.Handler, cert tls.Certificate, pool *x509.CertPool, clients tls.ClientAuthType) func() {
	server := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), TLSConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: clients, NextProtos: []string{"h2"},
	}}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }()
	stop := sync.OnceFunc(func() { server.Close(); <-done })
	t.Cleanup(stop)
	return stop
}

func (s *stack) startGateway() {
	config := gateway.Config{
		ControlURL: "https://" + s.controlAt, DataDir: s.dir, CAFile: s.caFile, JoinTokenFile: s.joinFile, Name: "front", Version: "1.2.3",
		Logger: slog.New(slog.NewTextHandler(testLog{s.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, change := range s.change {
		change(&config)
	}
	g, err := gateway.New(config)
	require.NoError(s.t, err)
	s.gateway = g
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(s.t, err)
	s.url = "http://" + listener.Addr().String()
	server := gateway.NewServer(g.Handler(), slog.New(slog.DiscardHandler))
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	s.stopGateway = sync.OnceFunc(func() {
		server.Close()
		<-served
		cancel()
		require.NoError(s.t, <-ended)
	})
	s.t.Cleanup(s.stopGateway)
	require.Eventually(s.t, func() bool { return g.Ready(ctx) == nil }, within, 10*time.Millisecond)
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

func (s *stack) client() *client.Client {
	c, err := client.New(client.Config{Context: client.Context{URL: s.url, Token: testToken}, Dial: s.conns.dial})
	require.NoError(s.t, err)
	s.t.Cleanup(c.Close)
	return c
}

func (s *stack) ticket(change func(*auth.Ticket)) string {
	t := auth.Ticket{Box: s.box, Org: testOrg, Epoch: 1, User: testUser, Scopes: []string{auth.ScopeExec}, Expires: time.Now().Add(5 * time.Minute)}
	if change != nil {
		change(&t)
	}
	text, err := s.signer.Sign(t)
	require.NoError(s.t, err)
	return text
}

// processes is the raw service with a bearer.
func (s *stack) processes(bearer string) carrelv1connect.ProcessServiceClient {
	c, err := client.New(client.Config{Context: client.Context{URL: s.url, Token: bearer}})
	require.NoError(s.t, err)
	s.t.Cleanup(c.Close)
	return c.Processes
}

// cutter dials and cuts.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
	dials atomic.Int64
}

func (c *cutter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		c.dials.Add(1)
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// fakeControl is as much of control as a gateway speaks to.
type fakeControl struct {
	linkv1connect.UnimplementedJoinServiceHandler
	linkv1connect.UnimplementedGatewayLinkHandler
	carrelv1connect.UnimplementedBoxServiceHandler
	carrelv1connect.UnimplementedUserServiceHandler
	stack *stack

	mu         sync.Mutex
	routes     map[carrel.BoxID]*linkv1.Route
	revoked    []string
	changed    chan struct{}
	state      carrelv1.State
	tickets    int
	exchanges  int
	ticketLife time.Duration // of exchanged tickets; zero: what tickets of the stack have
	joins      int
	headers    http.Header // of the last WhoAmI
	users      access
	goOn       chan struct{}
}

func (c *fakeControl) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(linkv1connect.NewJoinServiceHandler(c))
	mux.Handle(linkv1connect.NewGatewayLinkHandler(c))
	mux.Handle(carrelv1connect.NewBoxServiceHandler(c))
	mux.Handle(carrelv1connect.NewUserServiceHandler(c))
	mux.HandleFunc("/v1/slow", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-End")
		for _, part := range []string{"one\n", "two\n"} {
			_, _ = io.WriteString(w, part)
			_ = http.NewResponseController(w).Flush()
			if part == "one\n" {
				select { // goes on when the client has seen the first part
				case <-c.goOn:
				case <-r.Context().Done():
				}
			}
		}
		w.Header().Set("X-End", "yes")
	})
	mux.HandleFunc("/v1/peer", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, len(r.TLS.PeerCertificates))
	})
	return mux
}

func (c *fakeControl) setRoute(r *linkv1.Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routes[carrel.BoxID(r.GetBoxId())] = r
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeControl) Join(_ context.Context, req *connect.Request[linkv1.JoinRequest]) (*connect.Response[linkv1.JoinResponse], error) {
	if req.Msg.GetToken() != testJoinToken || req.Msg.GetRole() != "gateway" {
		return nil, connect.NewError(connect.CodeUnauthenticated, nil)
	}
	c.mu.Lock()
	c.joins++
	c.mu.Unlock()
	return c.sign(carrel.NewGatewayID(), req.Msg.GetCsrPem())
}

func (c *fakeControl) sign(id carrel.GatewayID, csr string) (*connect.Response[linkv1.JoinResponse], error) {
	cert, err := c.stack.ca.SignCSR([]byte(csr), auth.Peer{Role: auth.PeerGateway, ID: string(id)}, auth.Names{}, time.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&linkv1.JoinResponse{
		Id: string(id), CertificatePem: string(cert), CaPem: string(c.stack.ca.PEM()), ClusterId: "testcluster", TicketKeys: c.stack.keys,
	}), nil
}

func (c *fakeControl) WatchRoutes(ctx context.Context, _ *connect.Request[linkv1.WatchRoutesRequest], out *connect.ServerStream[linkv1.RoutesUpdate]) error {
	full := true
	for {
		c.mu.Lock()
		update := &linkv1.RoutesUpdate{Full: full, TicketKeys: c.stack.keys, RevokedPeers: c.revoked}
		c.users.fill(update)
		for _, r := range c.routes {
			update.Routes = append(update.Routes, r)
		}
		changed := c.changed
		c.mu.Unlock()
		if err := out.Send(update); err != nil {
			return err
		}
		full = false
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *fakeControl) ExchangeToken(_ context.Context, req *connect.Request[linkv1.ExchangeTokenRequest]) (*connect.Response[linkv1.ExchangeTokenResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exchanges++
	if req.Msg.GetToken() != testToken || c.users.refuse {
		return nil, connect.NewError(connect.CodeUnauthenticated, carrel.Errorf(carrel.CodeUnauthorized, "bad_token", "bad token"))
	}
	r := c.routes[c.stack.box]
	text := c.stack.ticket(func(t *auth.Ticket) {
		t.Epoch, t.Scopes = r.GetEpoch(), []string{req.Msg.GetScope()}
		if c.ticketLife > 0 {
			t.Expires = time.Now().Add(c.ticketLife)
		}
	})
	return connect.NewResponse(&linkv1.ExchangeTokenResponse{Ticket: text, BoxId: string(c.stack.box), Route: r}), nil
}

func (c *fakeControl) Renew(_ context.Context, req *connect.Request[linkv1.RenewRequest]) (*connect.Response[linkv1.JoinResponse], error) {
	return c.sign(carrel.NewGatewayID(), req.Msg.GetCsrPem())
}

func (c *fakeControl) CreateTicket(context.Context, *connect.Request[carrelv1.CreateTicketRequest]) (*connect.Response[carrelv1.Ticket], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tickets++
	if c.routes[c.stack.box].GetGone() {
		return nil, wireError(carrel.Errorf(carrel.CodePrecondition, client.ReasonBoxNotRunning, "the box is paused"))
	}
	epoch := c.routes[c.stack.box].GetEpoch()
	expires := time.Now().Add(5 * time.Minute)
	return connect.NewResponse(&carrelv1.Ticket{
		Ticket: c.stack.ticket(func(t *auth.Ticket) { t.Epoch = epoch; t.Expires = expires }),
		BoxId:  string(c.stack.box), ExpireTime: timestamppb.New(expires),
	}), nil
}

func (c *fakeControl) GetBox(context.Context, *connect.Request[carrelv1.GetBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return connect.NewResponse(&carrelv1.Box{Id: string(c.stack.box), Name: "mybox", State: c.state}), nil
}

func (c *fakeControl) WhoAmI(_ context.Context, req *connect.Request[carrelv1.WhoAmIRequest]) (*connect.Response[carrelv1.WhoAmIResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers = req.Header().Clone()
	if shown := req.Header().Get("Authorization"); shown != "" && shown != "Bearer "+testToken {
		return nil, connect.NewError(connect.CodeUnauthenticated, carrel.Errorf(carrel.CodeUnauthorized, "bad_token", "bad token"))
	}
	return connect.NewResponse(&carrelv1.WhoAmIResponse{User: &carrelv1.User{Id: string(testUser), Name: "ada"}}), nil
}

// fakeProxy is a node's proxy: it checks what the real one checks and splices.
type fakeProxy struct {
	stack   *stack
	address string
	epoch   atomic.Int64
	refused atomic.Int64
	agent   *fakeAgent

	mu    sync.Mutex
	inner []net.Conn
}

func newFakeProxy(t *testing.T, s *stack, agent *fakeAgent) *fakeProxy {
	p := &fakeProxy{stack: s, agent: agent}
	p.epoch.Store(1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.address = listener.Addr().String()
	cert, err := s.ca.Issue(auth.Peer{Role: auth.PeerProxy, ID: string(s.node)}, auth.Names{}, time.Now())
	require.NoError(t, err)

	inside, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: agent.handler(), Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(inside) }()
	t.Cleanup(func() { server.Close(); <-done })

	front := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.connect(w, r, inside.Addr().String()) }),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = front.Serve(tunnel.NewListener(listener, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: s.ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
			NextProtos: []string{tunnel.Protocol},
		}))
	}()
	t.Cleanup(func() { front.Close(); <-served })
	return p
}

func (p *fakeProxy) connect(w http.ResponseWriter, r *http.Request, agent string) {
	peer, err := auth.PeerIdentity(r.TLS)
	if err != nil || peer.Role != auth.PeerGateway || r.Method != http.MethodConnect || r.Header.Get("Carrel-Target") != "agent" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	t, err := p.right(r)
	switch {
	case err != nil:
		w.WriteHeader(http.StatusUnauthorized)
		return
	case string(t.Box) != r.Host:
		w.WriteHeader(http.StatusForbidden)
		return
	case t.Epoch != p.epoch.Load():
		p.refused.Add(1)
		w.WriteHeader(http.StatusConflict)
		return
	}
	conn, err := net.Dial("tcp", agent)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer conn.Close()
	p.mu.Lock()
	p.inner = append(p.inner, conn)
	p.mu.Unlock()
	stream, err := tunnel.Accept(w)
	if err != nil {
		return
	}
	defer stream.Close()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, err := io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
		if err == nil {
			stream.AwaitClose()
		}
		conn.Close()
	}()
	if _, err := io.Copy(stream, conn); err == nil {
		_ = stream.CloseWrite()
	} else {
		stream.Close()
	}
	conn.Close()
	<-copied
}

// cut closes every connection to the agent, as a snapshot does.
func (p *fakeProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.inner {
		c.Close()
	}
	p.inner = nil
}
