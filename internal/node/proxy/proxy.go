package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/tunnel"
)

// Headers of a CONNECT request.
const (
	HeaderTarget = "Carrel-Target"
	HeaderTicket = "Carrel-Ticket"
	// HeaderPortPass carries the pass of one port instead of a ticket.
	HeaderPortPass = "Carrel-Port-Pass"
	// HeaderGrant carries a user's grant instead of a ticket, and HeaderEpoch the epoch of the run that is meant.
	HeaderGrant = "Carrel-Grant"
	HeaderEpoch = "Carrel-Epoch"
)

const (
	maxTarget        = 1024
	maxHeaders       = 64 << 10 // a grant may be long
	maxStreams       = 8192
	maxStreamsPerRun = 512
	// dialTime is what an agent has to take a stream.
	dialTime = 5 * time.Second
	dialTry  = time.Second
	// writeTry is how long a box may take nothing before it is looked whether the gateway is still there.
	writeTry = 5 * time.Second
	// lingerTime is what a gateway has to take the rest of a stream that the box has ended: a slow reader's time.
	lingerTime = 10 * time.Minute
	copyBuffer = 128 << 10
)

// Config of a proxy.
type Config struct {
	// Socket is where the node speaks to the proxy: the path of a Unix socket in a directory that the
	// proxy's user owns.
	Socket string
	// NodeUID is the user that the node runs as; nobody else is listened to.
	NodeUID int
	// Dir keeps the proxy's copy of routes and identity.
	Dir string
	// Listen is the address of the data plane, HOST:PORT.
	Listen  string
	Now     func() time.Time // nil: time.Now
	Logger  *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

// Proxy is one listening proxy.
type Proxy struct {
	cfg      Config
	log      *slog.Logger
	table    *table
	activity *activity
	socket   *net.UnixListener
	listener net.Listener
	inward   inward
	buffers  sync.Pool
	opened   *prometheus.CounterVec
}

// New opens the sockets, so that Addr is known and nothing that comes from now on is lost.
func New(cfg Config) (*Proxy, error) {
	if cfg.Socket == "" || cfg.Dir == "" || cfg.Listen == "" || cfg.Logger == nil {
		return nil, errors.New("proxy: Socket, Dir, Listen and Logger are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for _, d := range []string{cfg.Dir, filepath.Dir(cfg.Socket)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	p := &Proxy{cfg: cfg, log: cfg.Logger, activity: newActivity(cfg.Now)}
	p.buffers.New = func() any { b := make([]byte, copyBuffer); return &b }
	var errs []error
	p.table, errs = openTable(cfg.Dir)
	for _, err := range errs {
		p.log.Error("what a former process kept cannot be used; the node sends it again", "error", err)
	}
	if err := p.measure(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if err := os.Chmod(cfg.Socket, 0o600); err != nil {
		_ = socket.Close()
		return nil, fmt.Errorf("proxy: %w", err)
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		_ = socket.Close()
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p.socket, p.listener = socket, listener
	return p, nil
}

func (p *Proxy) measure(registry prometheus.Registerer) error {
	p.opened = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "carrel_proxy_streams_total", Help: "Streams that gateways asked for, by what became of them.",
	}, []string{"result"})
	if registry == nil {
		return nil
	}
	gauge := func(name, help string, f func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(f()) })
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		p.opened,
		gauge("carrel_proxy_streams", "Open streams.", func() int { _, n := p.table.count(); return n }),
		gauge("carrel_proxy_routes", "Runs that can be reached.", func() int { n, _ := p.table.count(); return n }),
	} {
		errs = append(errs, registry.Register(c))
	}
	return errors.Join(errs...)
}

// Addr is the address of the data plane, with the port that was chosen.
func (p *Proxy) Addr() net.Addr { return p.listener.Addr() }

// Ready reports whether the node has told the proxy who it is.
func (p *Proxy) Ready() bool { return p.table.currentTLS() != nil }

// Run serves until ctx ends; open streams are cut then.
func (p *Proxy) Run(ctx context.Context) error {
	errorLog := slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)
	group, groupCtx := errgroup.WithContext(ctx)
	data := &http.Server{
		Handler: p.fromGateways(p.serveStream), ErrorLog: errorLog,
		// Each stream begins with a handshake, of which a busy machine may have many to do.
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: maxHeaders,
		BaseContext: func(net.Listener) context.Context { return groupCtx },
	}
	gateways := tunnel.NewListener(p.listener, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.Protocol},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if c := p.table.currentTLS(); c != nil {
				return c, nil
			}
			return nil, errors.New("the node has not told who this proxy is")
		},
	})
	node := &http.Server{
		Handler: p.api(), ErrorLog: errorLog, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	group.Go(func() error { return served(data.Serve(gateways)) })
	group.Go(func() error { return served(node.Serve(ownerListener{p.socket, p.cfg.NodeUID})) })
	group.Go(func() error {
		<-groupCtx.Done()
		_ = node.Close()
		_ = data.Close()
		return nil
	})
	return group.Wait()
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("proxy: %w", err)
}

// serveStream answers one CONNECT: it checks the ticket and joins the stream with the agent.
func (p *Proxy) serveStream(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.URL.Path == "/activity" {
		p.serveActivity(w, r)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	route, target, leave, err := p.admit(r, cancel)
	if err != nil {
		p.answer(w, r, err)
		return
	}
	defer leave()
	dialCtx, stop := context.WithTimeout(ctx, dialTime)
	conn, err := p.dial(dialCtx, route, target)
	stop()
	if err != nil {
		if known := new(refusal); !errors.As(err, &known) {
			err = silent(err)
		}
		p.answer(w, r, err)
		return
	}
	defer conn.Close()
	p.opened.WithLabelValues("opened").Inc()
	gateway, err := tunnel.Accept(w)
	if err != nil {
		p.log.Debug("a gateway went away while a stream was opened", "box", route.Box, "run", route.Run, "error", err)
		return
	}
	p.splice(ctx, gateway, conn)
}

// admit checks a request, and enters the stream into the table.
func (p *Proxy) admit(r *http.Request, cancel context.CancelFunc) (Route, string, func(), error) {
	peer, err := auth.PeerIdentity(r.TLS)
	if err != nil || peer.Role != auth.PeerGateway {
		return Route{}, "", nil, refuse(http.StatusForbidden, "not_a_gateway", "only gateways may connect")
	}
	if r.Method != http.MethodConnect {
		return Route{}, "", nil, refuse(http.StatusMethodNotAllowed, "not_connect", "only CONNECT is served")
	}
	target := r.Header.Get(HeaderTarget)
	scope, err := targetScope(target)
	if err != nil {
		return Route{}, "", nil, err
	}
	ticket, err := p.right(r, target)
	if err != nil {
		return Route{}, "", nil, err
	}
	if string(ticket.Box) != r.Host {
		return Route{}, "", nil, refuse(http.StatusForbidden, "ticket_of_another_box", "the ticket is for another box")
	}
	if !ticket.Has(scope) {
		return Route{}, "", nil, refuse(http.StatusForbidden, "scope_missing", "the ticket does not allow this")
	}
	route, leave, err := p.table.enter(ticket, maxStreams, maxStreamsPerRun, cancel)
	return route, target, leave, err
}

// right verifies what a request shows: a ticket, the pass of one port, which is good for that target alone, or a
// user's grant, which is good for what the route says of the box's organisation. An empty target: the request reaches nothing in the box.
func (p *Proxy) right(r *http.Request, target string) (auth.Ticket, error) {
	refused := func(err error) error {
		e := refuse(http.StatusUnauthorized, carrel.ReasonOf(err), "the ticket is not good (any more)")
		e.cause = err
		return e
	}
	if text := r.Header.Get(HeaderPortPass); text != "" {
		pass, err := p.table.verifier.VerifyPort(text, p.cfg.Now())
		if err != nil {
			return auth.Ticket{}, refused(err)
		}
		if target != "" && target != PortTarget(pass.Port) {
			return auth.Ticket{}, refuse(http.StatusForbidden, "other_port", "the pass is for another port")
		}
		return auth.Ticket{Box: pass.Box, Org: pass.Org, User: pass.User, Scopes: []string{auth.ScopeExec}, Expires: pass.Expires}, nil
	}
	if text := r.Header.Get(HeaderGrant); text != "" {
		grant, err := p.table.verifier.VerifyGrant(text, p.cfg.Now())
		if err != nil {
			return auth.Ticket{}, refused(err)
		}
		return p.granted(grant, carrel.BoxID(r.Host), r.Header.Get(HeaderEpoch))
	}
	ticket, err := p.table.verifier.Verify(r.Header.Get(HeaderTicket), p.cfg.Now())
	if err != nil {
		return auth.Ticket{}, refused(err)
	}
	return ticket, nil
}

// granted is what a grant is good for in one run of a box. A box of an organisation that is not in the grant, and one of which
// the node did not say whose it is, are refused alike.
func (p *Proxy) granted(grant auth.Grant, box carrel.BoxID, epochText string) (auth.Ticket, error) {
	epoch, err := strconv.ParseInt(epochText, 10, 64)
	if err != nil || epoch <= 0 {
		return auth.Ticket{}, refuse(http.StatusBadRequest, "bad_epoch", "a grant comes with the epoch of the run that is meant")
	}
	org, known := p.table.orgOf(box)
	if !known {
		return auth.Ticket{}, refuse(http.StatusNotFound, "no_route", "the box has no run on this node")
	}
	scope := grant.Orgs[org]
	if org == "" || scope == "" {
		return auth.Ticket{}, refuse(http.StatusForbidden, "not_granted", "the grant is not for this box")
	}
	return auth.Ticket{Box: box, Org: org, Epoch: epoch, User: grant.User, Scopes: []string{scope}, Issued: grant.Issued, Expires: grant.Expires}, nil
}

// targetScope is the scope that a target needs. The agent's own service can look and act: which of the two
// a call is, the gateway decides by its method. Everything else acts. The control target is the proxy's alone.
func targetScope(target string) (string, error) {
	bad := refuse(http.StatusBadRequest, "bad_target", "the target is not agent, session, jupyter, port/PORT, tcp/HOST:PORT, unix/PATH, udp/HOST:PORT or accept/ID")
	if len(target) > maxTarget {
		return "", bad
	}
	for _, c := range []byte(target) {
		if c <= ' ' || c >= 0x7f {
			return "", bad // the preface is one line of words
		}
	}
	if target == "agent" {
		return auth.ScopeView, nil
	}
	if target == "session" || target == "jupyter" {
		return auth.ScopeExec, nil
	}
	if _, ok := portOf(target); ok {
		return auth.ScopeExec, nil
	}
	kind, rest, ok := strings.Cut(target, "/")
	if ok && rest != "" && (kind == "tcp" || kind == "unix" || kind == "udp" || kind == "accept") {
		return auth.ScopeExec, nil
	}
	return "", bad
}

func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, err error) {
	reason := "error"
	if known := new(refusal); errors.As(err, &known) {
		reason = known.Reason
	}
	p.opened.WithLabelValues(reason).Inc()
	p.log.Info("a stream was refused", "box", r.Host, "error", err)
	writeError(w, err)
}

// splice copies both ways until both are at their end. The gateway's end of data is passed on as a half-close; the box's end is the end
// of both, when all that it sent was delivered. Whatever else ends it cuts the gateway's stream, so that this is not taken for the end of the data.
func (p *Proxy) splice(ctx context.Context, gateway *tunnel.Conn, box halfConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer gateway.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = gateway.Close()
		_ = box.Close()
	})
	defer stop()
	var up sync.WaitGroup
	up.Go(func() {
		patient := &patientWriter{box, func() bool { return ctx.Err() == nil && !gateway.Gone() }}
		switch err := p.copy(patient, gateway); {
		case err == nil:
			_ = box.CloseWrite()
			gateway.AwaitClose()
		case !errors.Is(err, errNotRead):
			// The box takes no more, and may still have something to say; the gateway's end has to be seen.
			_ = p.copy(io.Discard, gateway)
		}
		_ = box.Close()
	})
	err := p.copy(gateway, box)
	if err == nil && gateway.CloseWrite() == nil {
		_ = box.Close()
		_ = gateway.SetReadDeadline(time.Now().Add(lingerTime))
	} else {
		cancel()
	}
	up.Wait()
}

// patientWriter writes to a box that may take nothing for a long time, as long as somebody is there who wants it to.
type patientWriter struct {
	box    net.Conn
	wanted func() bool
}

func (w *patientWriter) Write(p []byte) (int, error) {
	written := 0
	for {
		if err := w.box.SetWriteDeadline(time.Now().Add(writeTry)); err != nil {
			return written, err
		}
		n, err := w.box.Write(p[written:])
		written += n
		if !errors.Is(err, os.ErrDeadlineExceeded) || !w.wanted() {
			return written, err
		}
	}
}

// errNotRead is part of an error of the side that is read.
var errNotRead = errors.New("read")

// copy moves data until the reader's end.
func (p *Proxy) copy(w io.Writer, r io.Reader) error {
	buffer, ok := p.buffers.Get().(*[]byte)
	if !ok {
		return errors.New("no buffer")
	}
	defer p.buffers.Put(buffer)
	for {
		n, err := r.Read(*buffer)
		if n > 0 {
			if _, err := w.Write((*buffer)[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errNotRead, err)
		}
	}
}
