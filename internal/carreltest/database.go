package carreltest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/service/postgres"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

const (
	databaseName     = "carrel"
	databasePassword = "carreltest"
	// manyConnections is more than all replicas of a ring open together.
	manyConnections = 300
)

// startPostgres makes a PostgreSQL of the ring's own, with a migrated database.
func (s *Stack) startPostgres() {
	t := s.t
	config := postgres.Config{
		Dir: s.path("postgres"), Password: databasePassword, Database: databaseName, Unsafe: true, MaxConnections: manyConnections, Logger: s.log,
	}
	var url func(role string) string
	s.Postgres = &Part{name: "postgres", begin: func() (*life, error) {
		server, err := postgres.New(config)
		if err != nil {
			return nil, err
		}
		url = func(role string) string { return server.URL(role, databasePassword, databaseName) }
		l := newLife()
		l.run("PostgreSQL", server.Run)
		ready, cancel := context.WithTimeout(l.ctx, Patience)
		defer cancel()
		select {
		case <-server.Ready():
			return l, nil
		case <-ready.Done():
			return nil, errors.Join(errors.New("PostgreSQL did not start"), l.end(false))
		}
	}}
	require.NoError(t, s.Postgres.Start())
	s.atEnd(s.Postgres)
	s.db = storetest.Database{ControlURL: url("carrel_control"), SystemURL: url("carrel_system"), OwnerURL: url(postgres.OwnerRole)}
	require.NoError(t, store.Migrate(t.Context(), s.db.OwnerURL))
	require.NoError(t, store.SetPasswords(t.Context(), s.db.OwnerURL, databasePassword, databasePassword))
}

// socketName is that of PostgreSQL's socket in its directory.
const socketName = ".s.PGSQL.5432"

// socketOf is the path of the socket that a URL leads to.
func socketOf(databaseURL string) (string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Query().Get("host") == "" {
		return "", fmt.Errorf("the URL of the database names no directory of a socket: %w", err)
	}
	return filepath.Join(u.Query().Get("host"), socketName), nil
}

// through leads a URL over a wire.
func through(databaseURL string, w *Wire) string {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return databaseURL // socketOf has parsed it
	}
	query := u.Query()
	query.Set("host", filepath.Dir(w.Addr()))
	u.RawQuery = query.Encode()
	return u.String()
}

// openStore opens the database for a part's life. Every connection goes over a wire of its own, which is cut when the part is
// killed.
func (s *Stack) openStore(l *life, name string, forUsers bool) (*store.Store, error) {
	wire, err := newWire("unix", s.path("wires", name, socketName), s.databases)
	if err != nil {
		return nil, err
	}
	l.after = append(l.after, wire.close)
	l.sever = append(l.sever, wire.Down)
	config := store.Config{SystemURL: through(s.db.SystemURL, wire), Logger: s.log}
	if forUsers {
		config.ControlURL = through(s.db.ControlURL, wire)
	}
	st, err := store.Open(l.ctx, config)
	if err != nil {
		return nil, err
	}
	l.after = append(l.after, st.Close)
	return st, nil
}
