// Package storetest gives tests a real PostgreSQL: one server for a test binary, one database for each
// test, cloned from a migrated template and emptied between tests. It must not be imported outside tests. Data directories are kept in
// the temporary directory and used again by later test binaries; the server ends with the process.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/service/postgres"
	"carrel.dev/carrel/internal/store"
)

const (
	password  = "storetest"
	startTime = 2 * time.Minute
	maxSlots  = 64
)

// Database is a migrated database of one test's own.
type Database struct {
	ControlURL string
	SystemURL  string
	OwnerURL   string
}

// New gives a store on a database of its own, migrated and bootstrapped, closed at the end of the test.
func New(t testing.TB) *store.Store {
	t.Helper()
	return NewAt(t, time.Now)
}

// NewAt is New with a clock.
func NewAt(t testing.TB, now func() time.Time) *store.Store {
	t.Helper()
	s := NewDatabase(t).Open(t, store.Config{Now: now})
	_, err := s.Bootstrap(t.Context(), store.Bootstrap{})
	require.NoError(t, err)
	return s
}

// Open gives a store on the database, closed at the end of the test. The URLs of cfg are filled in.
func (d Database) Open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	cfg.ControlURL, cfg.SystemURL = d.ControlURL, d.SystemURL
	if cfg.Patience == 0 {
		cfg.Patience = 2 * time.Minute // a slow machine with many at once is no failure of the store
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s, err := store.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

var (
	mu      sync.Mutex // guards shared
	shared  *server
	counter atomic.Int64
)

// server is the PostgreSQL of this process.
type server struct {
	*postgres.Server
	template string
	free     chan string // databases that are empty again
	slot     *os.File
	cancel   context.CancelFunc
	ended    chan error
}

// NewDatabase gives a migrated, empty database. At the end of the test it is emptied and used again.
func NewDatabase(t testing.TB) Database {
	t.Helper()
	srv, err := running()
	require.NoError(t, err)
	var name string
	select {
	case name = <-srv.free:
	default:
		name = fmt.Sprintf("t_%d_%d", os.Getpid(), counter.Add(1))
		require.NoError(t, srv.exec(t.Context(), "postgres", fmt.Sprintf("create database %s template %s", name, srv.template)))
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTime)
		defer cancel()
		if err := srv.exec(ctx, name, empty); err != nil {
			t.Errorf("empty the test's database: %v", err)
			return
		}
		select {
		case srv.free <- name:
		default:
		}
	})
	return Database{
		ControlURL: srv.URL("carrel_control", password, name),
		SystemURL:  srv.URL("carrel_system", password, name),
		OwnerURL:   srv.OwnerURL(name),
	}
}

// empty ends what is still connected and deletes every row: a good deal faster than a new database.
const empty = `do $$
declare
	name text;
begin
	perform pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid();
	set local session_replication_role = replica;
	for name in select tablename from pg_tables where schemaname = 'public' and tablename <> 'goose_db_version' loop
		execute format('delete from %I', name);
	end loop;
end $$`

// Stop ends the server, for a TestMain that looks for leaks. Databases that are asked for later start it again.
func Stop() error {
	mu.Lock()
	defer mu.Unlock()
	if shared == nil {
		return nil
	}
	shared.cancel()
	err := <-shared.ended
	err = errors.Join(err, shared.slot.Close())
	shared = nil
	return err
}

func running() (*server, error) {
	mu.Lock()
	defer mu.Unlock()
	if shared != nil {
		return shared, nil
	}
	dir, slot, err := takeSlot()
	if err != nil {
		return nil, err
	}
	srv, err := start(dir, slot)
	if err != nil {
		// What an interrupted machine left there may be broken: it is worth nothing, so begin anew once.
		if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
			return nil, err
		}
		if srv, err = start(dir, slot); err != nil {
			return nil, errors.Join(err, slot.Close())
		}
	}
	shared = srv
	return srv, nil
}

// takeSlot finds a data directory that no other process uses.
func takeSlot() (string, *os.File, error) {
	root := filepath.Join(os.TempDir(), fmt.Sprintf("carrel-storetest-%d", os.Geteuid()))
	if err := os.MkdirAll(root, 0o711); err != nil {
		return "", nil, err
	}
	info, err := os.Lstat(root)
	if err != nil {
		return "", nil, err
	}
	if !info.IsDir() {
		return "", nil, fmt.Errorf("%s is no directory", root)
	}
	for n := range maxSlots {
		dir := filepath.Join(root, fmt.Sprint(n))
		slot, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return "", nil, err
		}
		if unix.Flock(int(slot.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return dir, slot, nil
		}
		slot.Close()
	}
	return "", nil, fmt.Errorf("all %d places for test databases in %s are taken", maxSlots, root)
}

func start(dir string, slot *os.File) (*server, error) {
	pg, err := postgres.New(postgres.Config{
		Dir: dir, Password: password, Unsafe: true, MaxConnections: 400, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &server{Server: pg, slot: slot, cancel: cancel, ended: make(chan error, 1), free: make(chan string, 256), template: "template_" + store.SchemaHash()}
	go func() { srv.ended <- pg.Run(ctx) }()
	patience := time.NewTimer(startTime)
	defer patience.Stop()
	select {
	case <-pg.Ready():
	case err := <-srv.ended:
		cancel()
		return nil, fmt.Errorf("start PostgreSQL for tests: %w", err)
	case <-patience.C:
		cancel()
		return nil, errors.Join(fmt.Errorf("PostgreSQL for tests did not start in %s", startTime), <-srv.ended)
	}
	if err := srv.prepare(ctx); err != nil {
		cancel()
		return nil, errors.Join(err, <-srv.ended)
	}
	return srv, nil
}

// prepare drops what an earlier process left, and makes the template unless it is there.
func (s *server) prepare(ctx context.Context) error {
	names, err := s.databases(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == s.template {
			continue
		}
		if strings.HasPrefix(name, "t_") || strings.HasPrefix(name, "template_") {
			if err := s.exec(ctx, "postgres", "drop database "+pgx.Identifier{name}.Sanitize()+" with (force)"); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		if name == s.template {
			return nil
		}
	}
	if err := s.exec(ctx, "postgres", "create database template_half"); err != nil {
		return err
	}
	if err := store.Migrate(ctx, s.OwnerURL("template_half")); err != nil {
		return err
	}
	if err := store.SetPasswords(ctx, s.OwnerURL("template_half"), password, password); err != nil {
		return err
	}
	return s.exec(ctx, "postgres", "alter database template_half rename to "+s.template)
}

func (s *server) databases(ctx context.Context) ([]string, error) {
	conn, err := pgx.Connect(ctx, s.OwnerURL("postgres"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, "select datname from pg_database where not datistemplate")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (s *server) exec(ctx context.Context, database, statement string) error {
	conn, err := pgx.Connect(ctx, s.OwnerURL(database))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}
