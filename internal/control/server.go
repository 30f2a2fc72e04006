package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// startTimeout bounds what New reads from the store; keysPoll is how often rotated keys are looked for.
const (
	startTimeout = 30 * time.Second
	keysPoll     = 30 * time.Second
)

// Config of a Server.
type Config struct {
	// Store must be migrated and bootstrapped (see Bootstrap), with a connection for users' requests.
	Store *store.Store
	// Keyring opens the root keys in the store.
	Keyring *auth.Keyring
	// ClusterName is a name for people in the certificate of the authority; default "carrel".
	ClusterName string
	// JoinTokenFile has a text of at least 20 characters that lets any machine join (what auth.RoleJoinToken makes of
	// it: those of one role), read at each join; empty: only join tokens do.
	JoinTokenFile string
	// Names under which control is reached, for its certificate; default localhost and the loopback addresses.
	Names auth.Names
	// SSHAddress is where users reach the SSH gateway, HOST:PORT; an empty host is that of the front door. Default ":7022".
	SSHAddress string
	// Quotas of users and organisations; zero values are the defaults.
	Quotas Quotas
	// Version of this build, shown in OpenAPI and in the Server header.
	Version string
	// Registerer gets the metrics; nil: nobody does.
	Registerer prometheus.Registerer
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Server is one replica of control.
type Server struct {
	config  Config
	store   *store.Store
	log     *slog.Logger
	now     func() time.Time
	cluster store.Cluster
	keys    atomic.Pointer[keys]
	limiter *limiter
	watches *watchers
	hub     *hub
	reports *reporter
	grants  *granter
	pools   *pools
	metrics *metrics
	handler http.Handler

	streamWrite time.Duration // that one message of a stream may take to be written
	watchCheck  time.Duration // between two looks at whether a watcher still may

	// draining ends when Run does: streams are cut then, so that their clients go to another replica.
	draining context.Context
	drain    context.CancelFunc

	revoked atomic.Pointer[[]string] // ids of removed peers, sorted

	rekeyMu sync.Mutex // guards rekeyed
	rekeyed chan struct{}
}

// New reads the cluster and its keys, and makes the keys at the first start.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Keyring == nil {
		return nil, errors.New("control needs a store and a keyring")
	}
	if cfg.ClusterName == "" {
		cfg.ClusterName = "carrel"
	}
	if len(cfg.Names.DNS) == 0 && len(cfg.Names.IPs) == 0 {
		cfg.Names = auth.Names{DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	}
	cfg.Quotas = cfg.Quotas.withDefaults()
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	if cfg.SSHAddress == "" {
		cfg.SSHAddress = ":7022"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cluster, err := cfg.Store.Cluster(ctx)
	if err != nil {
		return nil, fmt.Errorf("read cluster: %w", err)
	}
	s := &Server{config: cfg, store: cfg.Store, log: cfg.Logger, now: cfg.Now, cluster: cluster, rekeyed: make(chan struct{}), streamWrite: defaultStreamWrite, watchCheck: defaultWatchCheck}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.limiter, s.hub, s.reports, s.watches = newLimiter(s.now), newHub(s), newReporter(s), newWatchers(cfg.Quotas)
	s.grants = newGranter(s)
	s.pools = &pools{read: s.store.Pools, now: s.now}
	if s.metrics, err = newMetrics(s, cfg.Registerer); err != nil {
		return nil, fmt.Errorf("register control's metrics: %w", err)
	}
	loaded, err := s.loadKeys(ctx)
	if err != nil {
		return nil, err
	}
	s.keys.Store(loaded)
	if err := s.refreshRevoked(ctx); err != nil {
		return nil, err
	}
	if s.handler, err = s.routes(); err != nil {
		return nil, err
	}
	return s, nil
}

// Bootstrap makes what the first start needs: the cluster, the organisations, the user admin, and for them the
// API token adminToken, whose text the caller keeps. With an empty adminToken a new one is made; its text is the
// answer, this once. The administrator's former token, if it was another one, is revoked. It may be called again, by any
// number of processes with the same token.
func Bootstrap(ctx context.Context, st *store.Store, adminToken string) (string, store.Bootstrapped, error) {
	secret := auth.NewToken()
	if adminToken != "" {
		var err error
		if secret, err = auth.ParseToken(adminToken); err != nil {
			return "", store.Bootstrapped{}, fmt.Errorf("administrator's token: %w", err)
		}
	}
	made, err := st.Bootstrap(ctx, store.Bootstrap{AdminToken: store.NewToken{ID: secret.ID, Hash: secret.Hash[:]}})
	if err != nil {
		return "", store.Bootstrapped{}, fmt.Errorf("bootstrap: %w", err)
	}
	return secret.Text, made, nil
}

// Handler serves everything on control's TLS listener: the API and the links.
func (s *Server) Handler() http.Handler { return s.handler }

// Run does what goes on in the background until ctx ends: it tells watchers of changes, writes reports that can
// wait, and takes over rotated keys. When it returns, open streams are cut and no report waits any more.
func (s *Server) Run(ctx context.Context) error {
	var all sync.WaitGroup
	all.Go(func() { s.hub.run(ctx) })
	all.Go(func() { s.reports.run(ctx) })
	all.Go(func() { s.watchRootKeys(ctx) })
	all.Go(func() { s.watchRevoked(ctx) })
	all.Go(func() { s.grants.run(ctx) })
	<-ctx.Done()
	s.drain()
	all.Wait()
	return nil
}

func (s *Server) watchRootKeys(ctx context.Context) {
	ticker := time.NewTicker(keysPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if err := s.refreshKeys(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("root keys can't be read", "error", err)
		}
	}
}

// watchKeys gives the keys and a channel that is closed when they, or the removed peers, are no longer the present ones.
func (s *Server) watchKeys() (*keys, <-chan struct{}) {
	s.rekeyMu.Lock()
	defer s.rekeyMu.Unlock()
	return s.keys.Load(), s.rekeyed
}

func (s *Server) keysChanged() {
	s.rekeyMu.Lock()
	defer s.rekeyMu.Unlock()
	close(s.rekeyed)
	s.rekeyed = make(chan struct{})
}

// Ready reports whether this replica can answer: PostgreSQL does.
func (s *Server) Ready(ctx context.Context) error {
	if s.draining.Err() != nil {
		return carrel.Errorf(carrel.CodeUnavailable, "draining", "this server is stopping")
	}
	return s.store.Ping(ctx)
}

// RotateTicketKey puts a new key in the place of the one that signs tickets. Tickets that were given out stay good, and every
// replica takes the new key over within half a minute.
func (s *Server) RotateTicketKey(ctx context.Context) error {
	key, err := s.newRoot(purposeTicket, newSigningRoot)
	if err != nil {
		return err
	}
	if err := s.store.RotateRootKey(ctx, key); err != nil {
		return fmt.Errorf("rotate ticket key: %w", err)
	}
	return s.refreshKeys(ctx)
}
