package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Config of a Store.
type Config struct {
	// ControlURL connects as carrel_control, the role that row-level security holds for. Empty: only methods
	// without a Scope, and SystemScope, can be used (a reconciler).
	ControlURL string
	// SystemURL connects as carrel_system.
	SystemURL string
	// MaxConns of each of the two pools, besides the two connections by which wake-ups come and go; default 16.
	MaxConns int32
	// Patience is how long a statement may take, and half of it how long one waits for a lock, before the caller hears that the database is
	// busy; default 10 s.
	Patience time.Duration
	// CPUOvercommit is how many times the cores of a node are given out; default 4.
	CPUOvercommit float64
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Registerer gets the metrics; nil: nobody does.
	Registerer prometheus.Registerer
}

// Store keeps everything. It is safe for concurrent use.
type Store struct {
	cfg     Config
	log     *slog.Logger
	control *pgxpool.Pool // nil without ControlURL
	system  *pgxpool.Pool
	wake    *waker

	metric  *prometheus.CounterVec
	mu      sync.Mutex // guards commits
	commits map[string]*atomic.Int64
}

// Limits that PostgreSQL keeps for us, so that a lost or stuck process cannot hold locks for ever.
const (
	connectTimeout  = 5 * time.Second
	patience        = 10 * time.Second
	idleInTxTimeout = 30 * time.Second
)

// Open connects. It answers when PostgreSQL does, or with CodeUnavailable.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.SystemURL == "" {
		return nil, errors.New("the store needs SystemURL")
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 16
	}
	if cfg.CPUOvercommit == 0 {
		cfg.CPUOvercommit = 4
	}
	if cfg.CPUOvercommit < 0 || cfg.MaxConns < 0 {
		return nil, errors.New("CPUOvercommit and MaxConns must be above 0")
	}
	if cfg.Patience <= 0 {
		cfg.Patience = patience
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Store{cfg: cfg, log: cfg.Logger, commits: map[string]*atomic.Int64{}}
	s.metric = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "carrel_store_commits_total",
		Help: "Transactions that wrote and were committed, by the method of the store.",
	}, []string{"method"})
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(s.metric); err != nil {
			return nil, fmt.Errorf("register the store's metrics: %w", err)
		}
	}
	var err error
	system := cfg
	system.MaxConns++ // one is kept by the waker
	if s.system, err = openPool(ctx, cfg.SystemURL, system); err != nil {
		return nil, mapError(ctx, fmt.Errorf("connect as the system role: %w", err))
	}
	if cfg.ControlURL != "" {
		if s.control, err = openPool(ctx, cfg.ControlURL, cfg); err != nil {
			s.system.Close()
			return nil, mapError(ctx, fmt.Errorf("connect as the control role: %w", err))
		}
	}
	s.wake = newWaker(s.log, s.system, cfg.SystemURL)
	return s, nil
}

func openPool(ctx context.Context, url string, own Config) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the address of the database: %w", err)
	}
	cfg.MaxConns = own.MaxConns
	cfg.MaxConnIdleTime = 5 * time.Minute
	cfg.ConnConfig.ConnectTimeout = connectTimeout
	params := cfg.ConnConfig.RuntimeParams
	params["application_name"] = "carrel"
	params["timezone"] = "UTC"
	params["statement_timeout"] = millis(own.Patience)
	params["lock_timeout"] = millis(own.Patience / 2)
	params["idle_in_transaction_session_timeout"] = millis(idleInTxTimeout)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

func millis(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

// Close ends every connection and waits for what the store runs.
func (s *Store) Close() {
	s.wake.close()
	if s.control != nil {
		s.control.Close()
	}
	s.system.Close()
	if s.cfg.Registerer != nil {
		s.cfg.Registerer.Unregister(s.metric)
	}
}

// Ping says whether PostgreSQL answers.
func (s *Store) Ping(ctx context.Context) error {
	for _, pool := range []*pgxpool.Pool{s.system, s.control} {
		if pool == nil {
			continue
		}
		if err := pool.Ping(ctx); err != nil {
			return mapError(ctx, fmt.Errorf("ping the database: %w", err))
		}
	}
	return nil
}

// Commits gives how many transactions each method has committed since the start. Those that only read do not count.
func (s *Store) Commits() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := make(map[string]int64, len(s.commits))
	for method, n := range s.commits {
		counts[method] = n.Load()
	}
	return counts
}

func (s *Store) countCommit(method string) {
	s.metric.WithLabelValues(method).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.commits[method]
	if !ok {
		n = &atomic.Int64{}
		s.commits[method] = n
	}
	n.Add(1)
}

// pool gives the connections that a scope may use.
func (s *Store) pool(scope Scope) (*pgxpool.Pool, error) {
	if scope.system {
		return s.system, nil
	}
	if s.control == nil {
		return nil, errors.New("this process has no connection for requests of users")
	}
	return s.control, nil
}
