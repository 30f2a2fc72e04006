package store

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config of a Store.
type Config struct {
	// ControlURL connects as carrel_control, the role that row-level security holds for. Empty: only methods
	// without a Scope, and SystemScope, can be used (a reconciler).
	ControlURL string
	// SystemURL connects as carrel_system.
	SystemURL string
	// MaxConns of each of the two pools; default 16.
	MaxConns int32
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
	cfg Config
}

// Open connects. It answers when PostgreSQL does, or with CodeUnavailable.
func Open(ctx context.Context, cfg Config) (*Store, error) { panic("not yet") }

// Close ends every connection and waits for what the store runs.
func (s *Store) Close() { panic("not yet") }

// Ping says whether PostgreSQL answers.
func (s *Store) Ping(ctx context.Context) error { panic("not yet") }

// Commits gives how many transactions each method has committed, reads apart.
func (s *Store) Commits() map[string]int64 { panic("not yet") }

// Migrate brings the schema up to date, as its owner. Any number of processes may call it at once.
func Migrate(ctx context.Context, ownerURL string) error { panic("not yet") }

// SetPasswords lets the roles carrel_control and carrel_system log in with passwords, as the owner.
func SetPasswords(ctx context.Context, ownerURL, controlPassword, systemPassword string) error {
	panic("not yet")
}
