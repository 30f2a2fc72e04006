package gateway

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/service"
)

// Config of a Gateway.
type Config struct {
	// ControlURL is https://HOST:PORT of control (or of what balances its replicas).
	ControlURL string
	// DataDir keeps the key, the certificate, the routes, the users' grants and the shared secrets; it is made if need be (0700).
	DataDir string
	// CAFile has control's certificate authority (PEM), read when the gateway joins. Empty: whoever answers
	// first is believed, which is only accepted of a control on this machine.
	CAFile string
	// JoinTokenFile has the join token, read when the gateway joins.
	JoinTokenFile string
	// Name and Region are told to control.
	Name, Region string
	// PortDomain is the domain under which ports of boxes are found, as {port}-{box}.PortDomain; empty: "localhost", which needs no DNS.
	PortDomain string
	// PublicURL is the front door's origin as browsers know it, such as https://carrel.example.org; empty: http://, PortDomain and the port by
	// which a request came.
	PublicURL string
	// Version is told to clients in the Server header.
	Version string
	// Streams is how many streams and requests may be under way at once, and Memory how much large messages may take at once, in bytes; each is divided
	// fairly among organisations and users. 0: by what the machine has.
	Streams, Memory int64
	// Ops answers /healthz and /readyz; nil: they do not exist at the front door. /metrics never does.
	Ops http.Handler
	// Verifier checks tickets; the gateway sets its keys. nil: a new one.
	Verifier *auth.TicketVerifier
	// Registry gets the gateway's metrics; nil: none.
	Registry prometheus.Registerer
	Logger   *slog.Logger     // nil: nothing is logged
	Now      func() time.Time // nil: time.Now
}

// Gateway is the front door. Its methods are safe for concurrent use.
type Gateway struct {
	config   Config
	log      *slog.Logger
	now      func() time.Time
	verifier *auth.TicketVerifier

	identity *identityStore
	control  *http.Transport // to control, as this gateway
	users    *http.Transport // to control, for users' requests, as nobody
	url      *url.URL        // of control
	public   *url.URL        // the front door's origin; nil: by each request
	link     linkv1connect.GatewayLinkClient
	routes   *routeTable
	revoked  revokedNodes
	proxies  *proxyPool
	agents   *agentPool
	tokens   *exchanger
	grants   *grantTable
	guards   *guards
	streams  *shares // of streams and requests under way
	memory   *shares // of bytes of large messages
	people   *people
	shared   *secretStore
	waker    *waker
	toucher  *toucher
	auditor  *auditor
	ports    *ports
	jupyter  *jupyterServer
	metrics  *metrics
	handler  http.Handler
}

// New makes a Gateway from what is on disk; it connects to nothing. Handler serves from then on what
// can be served, and Run joins control and follows it.
func New(config Config) (*Gateway, error) {
	u, err := url.Parse(config.ControlURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "the address of control is %q; it must be https://HOST:PORT", config.ControlURL)
	}
	var public *url.URL
	if config.PublicURL != "" {
		if public, err = url.Parse(config.PublicURL); err != nil || public.Scheme != "https" && public.Scheme != "http" || public.Host == "" || strings.Trim(public.Path, "/") != "" {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "the public URL is %q; it must be https://HOST[:PORT]", config.PublicURL)
		}
		public = &url.URL{Scheme: public.Scheme, Host: public.Host}
	}
	if config.PortDomain == "" {
		config.PortDomain = defaultPortDomain
	}
	if config.DataDir == "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "the gateway needs a data directory")
	}
	if err := os.MkdirAll(config.DataDir, 0o700); err != nil {
		return nil, &carrel.Error{Code: carrel.CodeInvalid, Reason: "bad_config", Message: "the gateway's data directory cannot be made: " + err.Error(), Cause: err}
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Verifier == nil {
		config.Verifier = auth.NewTicketVerifier()
	}
	if config.Version == "" {
		config.Version = "dev"
	}
	g := &Gateway{config: config, log: config.Logger, now: config.Now, verifier: config.Verifier, url: u, public: public, metrics: newMetrics(config.Registry)}
	if g.identity, err = openIdentity(config.DataDir, u); err != nil {
		return nil, err
	}
	g.control = g.identity.transport(nil, auth.PeerControl, "")
	g.users = g.identity.transport(nil, auth.PeerControl, "")
	g.users.TLSClientConfig.GetClientCertificate = nil
	g.link = linkv1connect.NewGatewayLinkClient(&http.Client{Transport: g.control}, u.String(),
		connect.WithAcceptCompression("gzip", nil, nil), connect.WithReadMaxBytes(256<<20))
	g.routes = openRoutes(config.DataDir, g.identity.cluster(), g.log)
	g.verifier.SetKeys(g.routes.ticketKeys())
	g.revoked.set(g.routes.revokedPeers())
	g.proxies = newProxyPool(g.identity)
	g.agents = newAgentPool(g)
	g.tokens = newExchanger(g)
	g.grants = openGrants(config.DataDir, g.identity.cluster(), g.log, g.now)
	g.shared = openSecrets(config.DataDir, g.identity.cluster(), g.log)
	g.guards, g.waker, g.toucher, g.auditor = newGuards(), newWaker(), newToucher(g), newAuditor(g)
	g.streams, g.memory = newShares(cmp.Or(config.Streams, roomForStreams())), newShares(cmp.Or(config.Memory, roomForMessages()))
	g.people = newPeople(g)
	g.ports = newPorts(g)
	g.jupyter = newJupyterServer(g)
	g.handler = g.newHandler()
	return g, nil
}

// Handler serves the front door, over HTTP/1.1 and HTTP/2, with TLS or without (by prior knowledge).
// NewServer gives the limits that belong around it.
func (g *Gateway) Handler() http.Handler { return g.handler }

// NewServer is an HTTP server around a Gateway's Handler with the limits of a public port.
func NewServer(handler http.Handler, logger *slog.Logger) *http.Server {
	server := service.NewServer(handler, logger)
	server.HTTP2.MaxReceiveBufferPerConnection = 3 << 20
	server.HTTP2.MaxReceiveBufferPerStream = 1 << 20
	server.HTTP2.PingTimeout = 15 * time.Second
	return server
}

// Ready answers nil when the gateway has joined and knows routes, from control or from disk.
func (g *Gateway) Ready(context.Context) error {
	if g.identity.current() == nil {
		return errors.New("not joined yet")
	}
	if !g.routes.known() {
		return errors.New("no routes yet")
	}
	return nil
}

// Run joins control, follows its routes, renews the certificate and keeps what it learned on disk,
// until ctx ends. It answers nil after a clean end. A control that is away never ends it.
func (g *Gateway) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.followControl(ctx) })
	group.Go(func() error { return g.keepRenewed(ctx) })
	group.Go(func() error { return g.routes.keepSaved(ctx) })
	group.Go(func() error { return g.grants.keepSaved(ctx) })
	group.Go(func() error { return g.keepSecrets(ctx) })
	group.Go(func() error { return g.keepRenewedTickets(ctx) })
	group.Go(func() error { return g.auditor.run(ctx) })
	group.Go(func() error { return g.tidy(ctx) })
	err := group.Wait()
	g.toucher.close()
	g.agents.close()
	g.proxies.close()
	g.control.CloseIdleConnections()
	g.users.CloseIdleConnections()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// tidy gives up connections and cache entries that nobody uses.
func (g *Gateway) tidy(ctx context.Context) error {
	ticker := time.NewTicker(30 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			now := g.now()
			g.agents.tidy(now)
			g.proxies.tidy(g.routes.nodes())
			g.tokens.tidy(now)
			g.people.tidy(now)
			g.ports.recent.tidy(now)
			g.toucher.tidy(now)
		case <-ctx.Done():
			return nil
		}
	}
}
