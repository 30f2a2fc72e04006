package service

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// startSupervisor runs a supervisor until the test ends and waits for it.
func startSupervisor(t *testing.T) (*Supervisor, context.Context, *sync.WaitGroup, context.CancelFunc) {
	t.Helper()
	s, err := NewSupervisor(slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	top, stopTop := context.WithCancel(context.Background())
	ctx, cancel := context.WithCancel(top)
	keepers := &sync.WaitGroup{}
	top2 := &errgroup.Group{}
	top2.Go(func() error { return s.Run(top) })
	t.Cleanup(func() {
		cancel()
		keepers.Wait()
		stopTop()
		require.NoError(t, top2.Wait())
	})
	return s, ctx, keepers, cancel
}

func output(t *testing.T) (*os.File, func() string) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f, func() string {
		data, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		return string(data)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, time.Minute, 5*time.Millisecond, what)
}

func TestChildIsStartedAgainAndEndedWithItsSupervisor(t *testing.T) {
	s, ctx, keepers, cancel := startSupervisor(t)
	file, read := output(t)
	keepers.Go(func() {
		s.Keep(ctx, Child{Name: "c", Args: []string{"/bin/sh", "-c", "echo began $$; exit 3"}, Output: file})
	})
	eventually(t, "three starts", func() bool { return strings.Count(read(), "began") >= 3 })
	cancel()
	keepers.Wait()
}

func TestTheLastWordsOfAChildAreTold(t *testing.T) {
	said := &lockedText{}
	s, err := NewSupervisor(slog.New(slog.NewTextHandler(said, nil)))
	require.NoError(t, err)
	top, stopTop := context.WithCancel(context.Background())
	ctx, cancel := context.WithCancel(top)
	var running, keeping sync.WaitGroup
	running.Go(func() { _ = s.Run(top) })
	file, _ := output(t)
	_, err = file.WriteString("of an earlier life\n")
	require.NoError(t, err)
	keeping.Go(func() {
		s.Keep(ctx, Child{Name: "c", Args: []string{"/bin/sh", "-c", "echo first; echo the pool does not fit >&2; exit 1"}, Output: file})
	})
	eventually(t, "a warning", func() bool { return strings.Contains(said.String(), "started again") })
	cancel()
	keeping.Wait()
	stopTop()
	running.Wait()
	require.Contains(t, said.String(), `last_words="the pool does not fit"`)
	require.NotContains(t, said.String(), "earlier life")
}

// lockedText may be read while it is written.
type lockedText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestStubbornChildIsGoneAfterKeepReturns(t *testing.T) {
	s, ctx, keepers, cancel := startSupervisor(t)
	file, read := output(t)
	keepers.Go(func() {
		s.Keep(ctx, Child{Name: "c", Args: []string{"/bin/sh", "-c", "trap 'echo asked; exit 0' TERM; echo $$; while :; do sleep 0.05; done"}, Output: file})
	})
	eventually(t, "start", func() bool { return strings.Contains(read(), "\n") })
	pid := strings.Fields(read())[0]
	cancel()
	keepers.Wait()
	require.Contains(t, read(), "asked")
	_, err := os.Stat("/proc/" + pid)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestOrphansAreReaped(t *testing.T) {
	s, ctx, keepers, _ := startSupervisor(t)
	file, read := output(t)
	keepers.Go(func() {
		// The inner shell ends at once, its background child lives on as an orphan and then ends.
		s.Keep(ctx, Child{Name: "c", Args: []string{"/bin/sh", "-c", "sh -c '(sleep 0.1; exit 7) & echo $!'; sleep 600"}, Output: file})
	})
	eventually(t, "start", func() bool { return strings.Contains(read(), "\n") })
	pid, err := strconv.Atoi(strings.Fields(read())[0])
	require.NoError(t, err)
	eventually(t, "the orphan is reaped", func() bool {
		_, err := os.Stat("/proc/" + strconv.Itoa(pid))
		return os.IsNotExist(err)
	})
}

func TestSecretIsMadeOnceAndIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	first, err := EnsureSecret(path, -1, -1)
	require.NoError(t, err)
	require.Len(t, first, 43)
	second, err := EnsureSecret(path, -1, -1)
	require.NoError(t, err)
	require.Equal(t, first, second)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte(" "), 3), 0o600))
	_, err = EnsureSecret(path, -1, -1)
	require.ErrorContains(t, err, "empty")
}
