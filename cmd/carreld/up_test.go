package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

// A port that another program has is said at once, with the flag that helps, and not by roles that fail again and again.
func TestAPortInUseIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	address := l.Addr().String()
	err = awaitFree(t.Context(), newProgress(io.Discard), address, "--http", 0)
	require.Equal(t, "address_in_use", carrel.ReasonOf(err))
	require.ErrorContains(t, err, address)
	require.ErrorContains(t, err, "--http")

	err = awaitFree(t.Context(), newProgress(io.Discard), "192.0.2.1:1", "--ssh", time.Minute)
	require.Equal(t, "bad_address", carrel.ReasonOf(err))
}

// Who asks for a smaller pool than there is, is told that it stays.
func TestAPoolIsNeverMadeSmaller(t *testing.T) {
	dir := t.TempDir()
	asked := func(size string) int64 {
		kept, err := keptPool(NodeConfig{Dir: dir, PoolSize: size})
		require.NoError(t, err)
		return kept
	}
	require.Zero(t, asked("1GiB"), "there is none yet")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pool.xfs"), nil, 0o600))
	require.NoError(t, os.Truncate(filepath.Join(dir, "pool.xfs"), 2*carrel.GiB))
	require.Equal(t, 2*carrel.GiB, asked("1GiB"))
	require.Zero(t, asked("2GiB"))
	require.Zero(t, asked("3GiB"))
	require.Zero(t, asked(""))
}

// The roles of an `up` that was killed are waited for.
func TestAPortThatBecomesFreeIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	said := make(chan struct{})
	out := &progress{w: writerFunc(func(p []byte) (int, error) {
		select {
		case <-said:
		default:
			close(said)
		}
		return len(p), nil
	}), terminal: true}
	ended := make(chan error, 1)
	go func() { ended <- awaitFree(t.Context(), out, l.Addr().String(), "--http", time.Hour) }()
	<-said
	require.NoError(t, l.Close())
	require.NoError(t, <-ended)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
