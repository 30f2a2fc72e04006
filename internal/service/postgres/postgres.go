// Package postgres runs a PostgreSQL server as a child process on a data directory of its own, reachable by a
// Unix socket alone. It knows nothing of what is kept there.
package postgres

import (
	"context"
	"log/slog"
)

// Config of a Server.
type Config struct {
	// Dir holds the data directory "data" and is the server's alone.
	Dir string
	// SocketDir holds the socket; default Dir/socket. Its path must be at most 90 bytes. Other users of the machine reach it if
	// SocketGroup lets them.
	SocketDir string
	// BinDir has initdb and postgres; default: the newest of /usr/lib/postgresql/*/bin.
	BinDir string
	// User is the system user to run as when this process is root; default "postgres".
	User string
	// Password of the superuser "carrel_owner", set at initdb and at each start.
	Password string
	// Unsafe turns off syncing, for tests.
	Unsafe bool
	Logger *slog.Logger
}

// Server is a PostgreSQL server.
type Server struct {
	cfg   Config
	ready chan struct{}
}

// New checks the configuration and finds the binaries.
func New(cfg Config) (*Server, error) { panic("not yet") }

// Run starts the server and returns when it has ended: nil after ctx ended and it shut down, an error when it ended by itself or could
// not start. It may be called once.
func (s *Server) Run(ctx context.Context) error { panic("not yet") }

// Ready is closed when the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// URL connects a role to a database.
func (s *Server) URL(role, password, database string) string { panic("not yet") }

// OwnerURL connects the superuser to a database.
func (s *Server) OwnerURL(database string) string { panic("not yet") }
