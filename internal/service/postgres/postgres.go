// Package postgres runs a PostgreSQL server as a child process on a data directory of its own, reachable by a
// Unix socket alone. It knows nothing of what is kept there. Words: the owner is the superuser role that
// makes schemas; a holder is a process of some PostgreSQL server that works on the data directory.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// OwnerRole is the superuser.
const OwnerRole = "carrel_owner"

const (
	maxSocketDir = 90 // bytes; a socket's path has room for 107
	maxLog       = 10 << 20
	// fastStop is how long a server has to shut down; quitStop how long to end without writing anything more, which
	// loses nothing: the next start replays its log.
	fastStop = 30 * time.Second
	quitStop = 5 * time.Second
	poll     = 20 * time.Millisecond
)

// Config of a Server.
type Config struct {
	// Dir holds the data directory "data" and is the server's alone. The user that the server runs as must be able to
	// reach it.
	Dir string
	// SocketDir holds the socket; default Dir/socket. Its path has at most 90 bytes. Every user of the machine who can reach it may
	// connect; who gets in is said by passwords (SCRAM).
	SocketDir string
	// BinDir has initdb and postgres; default: of /usr/lib/postgresql/*/bin the one that the data directory was made with, else the
	// newest.
	BinDir string
	// User is the system user to run as when this process is root; default "postgres".
	User string
	// Password of the superuser carrel_owner. Another one than at the last start replaces it.
	Password string
	// Database is made if it is missing; default "carrel".
	Database string
	// MaxConnections; default 100.
	MaxConnections int
	// Unsafe turns off syncing, for tests: what a crash of the machine leaves is worthless.
	Unsafe bool
	// Logger; default slog.Default(). The server's own log is Dir/postgres.log.
	Logger *slog.Logger
}

// Server is a PostgreSQL server.
type Server struct {
	cfg       Config
	log       *slog.Logger
	data      string
	uid, gid  int // -1: as this process
	ready     chan struct{}
	readyOnce sync.Once
}

// New checks the configuration and finds the binaries.
func New(cfg Config) (*Server, error) {
	if cfg.Dir == "" || cfg.Password == "" {
		return nil, errors.New("postgres: Dir and Password are needed")
	}
	if strings.ContainsAny(cfg.Password, "\n\x00") {
		return nil, errors.New("postgres: the password must be one line")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	cfg.Dir = dir
	if cfg.SocketDir == "" {
		cfg.SocketDir = filepath.Join(cfg.Dir, "socket")
	}
	if len(cfg.SocketDir) > maxSocketDir || !filepath.IsAbs(cfg.SocketDir) || strings.ContainsAny(cfg.SocketDir, ",'\\") {
		return nil, fmt.Errorf("postgres: %q cannot hold the socket: it must be an absolute path of at most %d bytes without , ' and \\", cfg.SocketDir, maxSocketDir)
	}
	if cfg.User == "" {
		cfg.User = "postgres"
	}
	if cfg.Database == "" {
		cfg.Database = "carrel"
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 100
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{cfg: cfg, log: cfg.Logger, data: filepath.Join(cfg.Dir, "data"), uid: -1, gid: -1, ready: make(chan struct{})}
	if os.Geteuid() == 0 {
		u, err := user.Lookup(cfg.User)
		if err != nil {
			return nil, fmt.Errorf("postgres: root cannot run PostgreSQL, and there is no user %q to run it as; install the Debian package postgresql: %w", cfg.User, err)
		}
		if s.uid, err = strconv.Atoi(u.Uid); err == nil {
			s.gid, err = strconv.Atoi(u.Gid)
		}
		if err != nil {
			return nil, fmt.Errorf("postgres: the ids of user %s: %w", cfg.User, err)
		}
	}
	if s.cfg.BinDir == "" {
		if s.cfg.BinDir, err = s.findBinaries(); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := os.Stat(filepath.Join(s.cfg.BinDir, name)); err != nil {
			return nil, fmt.Errorf("postgres: find PostgreSQL: %w", err)
		}
	}
	return s, nil
}

// findBinaries takes those of the version that the data directory needs, else the newest.
func (s *Server) findBinaries() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	major := func(dir string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		return n
	}
	dirs = slices.DeleteFunc(dirs, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "postgres"))
		return err != nil || major(dir) == 0
	})
	if len(dirs) == 0 {
		return "", errors.New("postgres: PostgreSQL is not installed (looked for /usr/lib/postgresql/*/bin/postgres); install the Debian package postgresql")
	}
	slices.SortFunc(dirs, func(a, b string) int { return major(b) - major(a) })
	if made, err := s.dataVersion(); err == nil {
		for _, dir := range dirs {
			if strconv.Itoa(major(dir)) == made {
				return dir, nil
			}
		}
	}
	return dirs[0], nil
}

// dataVersion is the major version that made the data directory.
func (s *Server) dataVersion() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.data, "PG_VERSION"))
	return strings.TrimSpace(string(text)), err
}

// Ready is closed when the server answered for the first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// URL connects a role to a database.
func (s *Server) URL(role, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(role, password), Path: "/" + database, RawQuery: url.Values{"host": {s.cfg.SocketDir}}.Encode()}
	return u.String()
}

// OwnerURL connects the superuser to a database.
func (s *Server) OwnerURL(database string) string { return s.URL(OwnerRole, s.cfg.Password, database) }

// Run starts the server and returns when it has ended: nil after ctx ended and it shut down, an error when it ended by itself or could
// not start. It may be called again after that. A server that an earlier process left running on the same data directory
// is shut down first. The server is told to shut down when this process dies.
func (s *Server) Run(ctx context.Context) error {
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	return nil
}

func (s *Server) run(ctx context.Context) error {
	if err := s.prepareDirs(); err != nil {
		return err
	}
	lock, err := s.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.takeOver(ctx); err != nil {
		return err
	}
	if err := s.initialize(ctx); err != nil {
		return err
	}
	if err := s.checkVersion(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(s.hba(), []byte("# Written by Carrel at every start.\nlocal all all scram-sha-256\n"), 0o644); err != nil {
		return fmt.Errorf("write pg_hba.conf: %w", err)
	}
	for attempt := 0; ; attempt++ {
		err := s.serve(ctx)
		if !isBadPassword(err) || attempt > 0 {
			return err
		}
		s.log.Info("the owner's password changed; setting it")
		if err := s.setPassword(ctx); err != nil {
			return err
		}
	}
}

func isBadPassword(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "28P01" || pg.Code == "28000")
}

func (s *Server) hba() string { return filepath.Join(s.cfg.Dir, "pg_hba.conf") }

// prepareDirs makes the directories. Dir can be passed through, so that other users reach the socket in it. It stays ours: as
// root we never write where the server's user could have put a link.
func (s *Server) prepareDirs() error {
	for _, dir := range []string{s.cfg.Dir, s.cfg.SocketDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the directory: %w", err)
		}
		if err := os.Chmod(dir, 0o711); err != nil {
			return fmt.Errorf("set the mode: %w", err)
		}
	}
	if err := s.own(s.cfg.SocketDir); err != nil {
		return err
	}
	// A restored copy may belong to somebody else.
	info, err := os.Stat(s.data)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if s.uid < 0 || int(info.Sys().(*syscall.Stat_t).Uid) == s.uid {
		return nil
	}
	return filepath.WalkDir(s.data, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, s.uid, s.gid)
	})
}

func (s *Server) own(path string) error {
	if s.uid < 0 {
		return nil
	}
	if err := os.Lchown(path, s.uid, s.gid); err != nil {
		return fmt.Errorf("give to user %s: %w", s.cfg.User, err)
	}
	return nil
}

// lock keeps two Carrels from one directory: they would shut down each other's server.
func (s *Server) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another process runs the database in %s: %w", s.cfg.Dir, err)
	}
	return f, nil
}

// command makes a command that runs as the server's user, with nothing of our environment.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.cfg.BinDir, name), args...) //nolint:noctx // a server is shut down, never killed
	cmd.Dir = s.cfg.Dir
	cmd.Env = []string{"PATH=" + s.cfg.BinDir + ":/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.uid >= 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.gid)}
	}
	return cmd
}

// output runs a command to its end, or kills it when ctx ends, and gives what it wrote. The exit status may be taken by a process-wide
// reaper of orphans, so callers look at what was written too.
func output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var text strings.Builder
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	if errors.Is(err, syscall.ECHILD) {
		err = nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return text.String(), err
}

// initialize makes the data directory if there is none. It is made beside, and moved when it is complete.
func (s *Server) initialize(ctx context.Context) error {
	halves, err := filepath.Glob(filepath.Join(s.cfg.Dir, "data.new-*"))
	if err != nil {
		return err
	}
	for _, half := range halves {
		if err := os.RemoveAll(half); err != nil {
			return fmt.Errorf("remove a half-made data directory: %w", err)
		}
	}
	if _, err := os.Stat(s.data); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fresh, err := os.MkdirTemp(s.cfg.Dir, "data.new-")
	if err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	defer os.RemoveAll(fresh)
	password := filepath.Join(fresh, "password")
	if err := os.WriteFile(password, []byte(s.cfg.Password+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the password: %w", err)
	}
	for _, path := range []string{password, fresh} {
		if err := s.own(path); err != nil {
			return err
		}
	}
	made := filepath.Join(fresh, "data")
	args := []string{"-D", made, "-U", OwnerRole, "--pwfile", password, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--data-checksums"}
	if s.cfg.Unsafe {
		args = append(args, "--no-sync")
	}
	text, err := output(ctx, s.command("initdb", args...))
	if err == nil && !strings.Contains(text, "Success.") {
		err = errors.New("initdb did not succeed")
	}
	if err != nil {
		return fmt.Errorf("make the data directory: %w: %s", err, lastLines(text, 6))
	}
	if err := os.Rename(made, s.data); err != nil {
		return fmt.Errorf("move the data directory to its place: %w", err)
	}
	dir, err := os.Open(s.cfg.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// checkVersion refuses data of another major version: PostgreSQL cannot read it.
func (s *Server) checkVersion(ctx context.Context) error {
	made, err := s.dataVersion()
	if err != nil {
		return fmt.Errorf("read the version of the data directory: %w", err)
	}
	text, err := output(ctx, s.command("postgres", "-V"))
	if err != nil {
		return fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	fields := strings.Fields(text) // postgres (PostgreSQL) 15.18 (Debian …)
	if len(fields) < 3 {
		return fmt.Errorf("PostgreSQL does not say its version: %q", text)
	}
	if have, _, _ := strings.Cut(fields[2], "."); have != made {
		return fmt.Errorf("the data in %s was made by PostgreSQL %s, and %s has PostgreSQL %s, which cannot read it; install the Debian package postgresql-%s, or move the data with pg_upgrade",
			s.data, made, s.cfg.BinDir, have, made)
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// settings of the server: a small database that must never lose a commit.
func (s *Server) settings() []string {
	values := map[string]string{
		"listen_addresses":           "",
		"hba_file":                   s.hba(),
		"unix_socket_directories":    s.cfg.SocketDir,
		"unix_socket_permissions":    "0777", // the directory and the passwords decide
		"max_connections":            strconv.Itoa(s.cfg.MaxConnections),
		"password_encryption":        "scram-sha-256",
		"shared_buffers":             "128MB",
		"synchronous_commit":         "on",
		"wal_level":                  "replica", // base backups work without a restart
		"max_wal_senders":            "2",
		"wal_compression":            "on",
		"max_wal_size":               "512MB",
		"min_wal_size":               "64MB",
		"jit":                        "off",
		"autovacuum_naptime":         "20s",
		"huge_pages":                 "off",
		"timezone":                   "UTC",
		"log_timezone":               "UTC",
		"log_line_prefix":            "%m [%p] %u ",
		"log_min_duration_statement": "1000",
		"log_checkpoints":            "off",
		// Values of parameters may be secrets.
		"log_parameter_max_length":          "0",
		"log_parameter_max_length_on_error": "0",
		"logging_collector":                 "off",
		"restart_after_crash":               "on",
	}
	if s.cfg.Unsafe {
		for _, off := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
			values[off] = "off"
		}
		values["shared_buffers"] = "64MB"
		values["log_min_duration_statement"] = "-1"
	}
	args := []string{"-D", s.data}
	for name, value := range values {
		args = append(args, "-c", name+"="+value)
	}
	return args
}

// serve runs the server once.
func (s *Server) serve(ctx context.Context) error {
	logs, err := s.openLog()
	if err != nil {
		return err
	}
	defer logs.Close()
	from, err := logs.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := s.command("postgres", s.settings()...)
	cmd.Stdout, cmd.Stderr = logs, logs
	// A fast shutdown when we die. The signal comes when the thread that forked ends, so that thread is kept.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
	started, ended := make(chan error, 1), make(chan error, 1)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		if errors.Is(err, syscall.ECHILD) {
			err = nil // a reaper of orphans took the status
		}
		ended <- err
	})
	if err := <-started; err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	failed := func(err error) error {
		if err == nil {
			err = errors.New("it ended by itself")
		}
		return fmt.Errorf("PostgreSQL ended: %w: %s", err, lastLines(readFrom(logs.Name(), from), 4))
	}
	answering := make(chan error, 1)
	probing, stop := context.WithCancel(ctx)
	defer stop()
	waiting.Go(func() { answering <- s.awaitAnswer(probing) })
	select {
	case err := <-ended:
		stop()
		return failed(err)
	case err := <-answering:
		if err != nil {
			s.stop(cmd.Process, ended)
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	s.readyOnce.Do(func() { close(s.ready) })
	s.log.Info("PostgreSQL answers", "pid", cmd.Process.Pid)
	select {
	case err := <-ended:
		return failed(err)
	case <-ctx.Done():
		s.stop(cmd.Process, ended)
		return nil
	}
}

func (s *Server) openLog() (*os.File, error) {
	path := filepath.Join(s.cfg.Dir, "postgres.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, fmt.Errorf("move the log away: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return f, nil
}

func readFrom(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return ""
	}
	data, _ := io.ReadAll(io.LimitReader(f, 64<<10))
	return string(data)
}

// awaitAnswer tries until the server answers, then sees to the database. After a crash the server replays its log first, however long
// that takes: whoever waits decides when to give up.
func (s *Server) awaitAnswer(ctx context.Context) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		err := s.ensureDatabase(ctx)
		if err == nil || ctx.Err() != nil || isBadPassword(err) {
			return err
		}
		var pg *pgconn.PgError
		if errors.As(err, &pg) && !strings.HasPrefix(pg.Code, "57P") {
			return err // it answers, and something is wrong
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) ensureDatabase(ctx context.Context) error {
	cfg, err := pgx.ParseConfig(s.OwnerURL("postgres"))
	if err != nil {
		return err
	}
	cfg.ConnectTimeout = 5 * time.Second
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var there bool
	if err := conn.QueryRow(ctx, "select exists (select 1 from pg_database where datname = $1)", s.cfg.Database).Scan(&there); err != nil || there {
		return err
	}
	_, err = conn.Exec(ctx, "create database "+pgx.Identifier{s.cfg.Database}.Sanitize()+" template template0 encoding 'UTF8'")
	return err
}

// stop ends the child, harder and harder.
func (s *Server) stop(p *os.Process, ended <-chan error) {
	for _, step := range []struct {
		signal  syscall.Signal
		patient time.Duration
	}{{syscall.SIGINT, fastStop}, {syscall.SIGQUIT, quitStop}, {syscall.SIGKILL, time.Minute}} {
		_ = p.Signal(step.signal)
		timer := time.NewTimer(step.patient)
		select {
		case err := <-ended:
			timer.Stop()
			s.log.Info("PostgreSQL ended", "error", err)
			return
		case <-timer.C:
			s.log.Warn("PostgreSQL does not end", "signal", step.signal.String())
		}
	}
}

// setPassword sets the owner's password without asking for the old one.
func (s *Server) setPassword(ctx context.Context) error {
	cmd := s.command("postgres", "--single", "-D", s.data, "-c", "log_parameter_max_length=0", "postgres")
	quoted := "'" + strings.ReplaceAll(s.cfg.Password, "'", "''") + "'"
	cmd.Stdin = strings.NewReader("set standard_conforming_strings = on;\nalter role " + OwnerRole + " password " + quoted + ";\n")
	text, err := output(ctx, cmd)
	if err == nil && strings.Contains(text, "ERROR") {
		err = errors.New("PostgreSQL refused it")
	}
	if err != nil {
		return fmt.Errorf("set the owner's password: %w", err)
	}
	return nil
}
