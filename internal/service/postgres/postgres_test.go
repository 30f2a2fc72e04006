package postgres

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const (
	patience       = time.Minute
	helperVariable = "CARREL_TEST_POSTGRES_DIR"
)

// TestMain is also the helper: a process with a server, to be killed.
func TestMain(m *testing.M) {
	dir := os.Getenv(helperVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := New(config(dir))
	if err == nil {
		go func() {
			<-s.Ready()
			fmt.Println("ready")
		}()
		err = s.Run(context.Background())
	}
	fmt.Println("ended:", err)
	os.Exit(1)
}

func config(dir string) Config {
	return Config{Dir: dir, Password: "pass'word\\ 1", Unsafe: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// place is a short directory that the server's user can reach.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgtest")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func server(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	require.NoError(t, err)
	return s
}

// run starts a server and gives how to end it; the test fails when it ends before.
func run(t *testing.T, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	done := false
	stop = func() {
		t.Helper()
		if done {
			return
		}
		done = true
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(patience):
			require.Fail(t, "it does not end")
		}
		require.Empty(t, s.holders(), "nothing is left")
	}
	t.Cleanup(stop)
	require.Eventually(t, func() bool {
		select {
		case err := <-ended:
			done = true
			require.NoError(t, err, "it ended")
			return true
		default:
		}
		conn, err := pgx.Connect(ctx, s.OwnerURL("carrel"))
		if err != nil {
			return false
		}
		return conn.Close(ctx) == nil
	}, patience, 20*time.Millisecond)
	<-s.Ready()
	return stop
}

func query(t *testing.T, s *Server, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.OwnerURL("carrel"))
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	var value string
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&value))
	return value
}

// keep writes a row that the next start must still have.
func keep(t *testing.T, s *Server) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.OwnerURL("carrel"))
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), "create table if not exists kept (x text); insert into kept values ('here')")
	require.NoError(t, err)
}

const kept = "select x from kept limit 1"

func TestServerKeepsItsDataAndItsPassword(t *testing.T) {
	dir := place(t)
	s := server(t, config(dir))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data.new-half", "data"), 0o700), "a start that was interrupted")
	stop := run(t, s)
	require.NoDirExists(t, filepath.Join(dir, "data.new-half"))
	keep(t, s)
	_, err := pgx.Connect(t.Context(), s.URL(OwnerRole, "wrong", "carrel"))
	require.ErrorContains(t, err, "password authentication failed")
	require.Empty(t, query(t, s, "show listen_addresses"), "no port is open")
	require.Equal(t, "scram-sha-256", query(t, s, "show password_encryption"))
	if os.Geteuid() == 0 {
		info, err := os.Stat(s.data)
		require.NoError(t, err)
		require.Equal(t, uint32(s.uid), info.Sys().(*syscall.Stat_t).Uid)
		require.NotZero(t, s.uid)
		info, err = os.Stat(s.cfg.Dir)
		require.NoError(t, err)
		require.Zero(t, info.Sys().(*syscall.Stat_t).Uid, "the server's user cannot put links where root writes")
	}
	stop()
	require.NoFileExists(t, filepath.Join(s.data, "postmaster.pid"), "it was shut down cleanly")

	changed := config(dir)
	changed.Password = "another"
	s = server(t, changed)
	run(t, s)
	require.Equal(t, "here", query(t, s, kept))
}

func TestSafeSettings(t *testing.T) {
	cfg := config(place(t))
	cfg.Unsafe = false
	s := server(t, cfg)
	run(t, s)
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit", "data_checksums"} {
		require.Equal(t, "on", query(t, s, "show "+setting), setting)
	}
}

func TestTwoServersDoNotShareADirectory(t *testing.T) {
	dir := place(t)
	s := server(t, config(dir))
	run(t, s)
	second := server(t, config(dir))
	require.ErrorContains(t, second.Run(t.Context()), "another process runs the database")
	require.Equal(t, "1", query(t, s, "select 1::text"))
}

func TestServerThatDiesIsSaidAndCanBeRunAgain(t *testing.T) {
	cfg := config(place(t))
	cfg.Unsafe = false // what is committed must survive
	s := server(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-ended:
		require.NoError(t, err)
	}
	keep(t, s)
	pid := postmaster(t, s)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "PostgreSQL ended")
	case <-time.After(patience):
		require.Fail(t, "its death was not noticed")
	}
	run(t, s)
	require.Equal(t, "here", query(t, s, kept))
}

func postmaster(t *testing.T, s *Server) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.data, "postmaster.pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.SplitN(string(text), "\n", 2)[0])
	require.NoError(t, err)
	return pid
}

func TestNextStartTakesOverAfterTheParentWasKilled(t *testing.T) {
	dir := place(t)
	for range 3 {
		helper := exec.Command(os.Args[0])
		helper.Env = append(os.Environ(), helperVariable+"="+dir)
		out, err := helper.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, helper.Start())
		kill := sync.OnceFunc(func() {
			_ = helper.Process.Kill()
			_ = helper.Wait()
		})
		t.Cleanup(kill)
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "ready\n", line)
		s := server(t, config(dir))
		keep(t, s)
		kill()
		stop := run(t, s) // at once: the old server may be shutting down
		require.Equal(t, "here", query(t, s, kept))
		stop()
	}
}

func TestNextStartEndsAServerThatWasLeft(t *testing.T) {
	dir := place(t)
	s := server(t, config(dir))
	run(t, s)()
	left := s.command("postgres", s.settings()...)
	require.NoError(t, left.Start())
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	require.NoError(t, s.awaitAnswer(t.Context()))
	// A session that never ends by itself keeps a slow shutdown waiting, and not ours.
	conn, err := pgx.Connect(t.Context(), s.OwnerURL("carrel"))
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	next := server(t, config(dir))
	run(t, next)
	select {
	case <-ended:
	case <-time.After(patience):
		require.Fail(t, "the server that was left still runs")
	}
	require.NotEqual(t, left.Process.Pid, postmaster(t, next))
}

func TestStalePidFileHarmsNobody(t *testing.T) {
	s := server(t, config(place(t)))
	run(t, s)()
	// The number belongs to somebody else by now, even to a process of the server's user.
	bystander := s.command("sleep", "1000")
	bystander.Path = "/bin/sleep"
	require.NoError(t, bystander.Start())
	defer func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	}()
	pidFile := filepath.Join(s.data, "postmaster.pid")
	for _, content := range []string{fmt.Sprintf("%d\n%s\n", bystander.Process.Pid, s.data), "1\n", "-7\n", "nonsense", ""} {
		require.NoError(t, os.WriteFile(pidFile, []byte(content), 0o600))
		require.NoError(t, s.own(pidFile))
		run(t, s)()
		require.NoError(t, bystander.Process.Signal(syscall.Signal(0)), "the bystander lives")
	}
}

func TestOtherMajorVersionIsRefused(t *testing.T) {
	s := server(t, config(place(t)))
	run(t, s)()
	require.NoError(t, os.WriteFile(filepath.Join(s.data, "PG_VERSION"), []byte("9\n"), 0o600))
	err := s.Run(t.Context())
	require.ErrorContains(t, err, "was made by PostgreSQL 9")
	require.ErrorContains(t, err, "install the Debian package postgresql-9")
}

func TestStartThatIsGivenUpLeavesNothing(t *testing.T) {
	dir := place(t)
	for _, after := range []time.Duration{0, 10 * time.Millisecond, 300 * time.Millisecond} {
		s := server(t, config(dir))
		ctx, cancel := context.WithTimeout(t.Context(), after)
		_ = s.Run(ctx)
		cancel()
		require.Empty(t, s.holders())
	}
	run(t, server(t, config(dir)))
}

func TestConfigurationIsChecked(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no directory": {func(c *Config) { c.Dir = "" }, "Dir and Password"},
		"no password":  {func(c *Config) { c.Password = "" }, "Dir and Password"},
		"two lines":    {func(c *Config) { c.Password = "a\nb" }, "one line"},
		"long socket":  {func(c *Config) { c.SocketDir = "/" + strings.Repeat("x", 90) }, "at most 90 bytes"},
		"odd socket":   {func(c *Config) { c.SocketDir = "/a,b" }, "without ,"},
		"no binaries":  {func(c *Config) { c.BinDir = dir }, "find PostgreSQL"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(dir)
			c.change(&cfg)
			_, err := New(cfg)
			require.ErrorContains(t, err, c.want)
		})
	}
}
