package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
)

// BenchmarkSeal compares the sealing of 256 MiB with what cannot be left out: hashing the same bytes once and syncing
// them. Pair by pair, because the speed of disks wanders; the metrics are medians.
func BenchmarkSeal(b *testing.B) {
	dir := b.TempDir()
	pool, err := disk.Open(b.Context(), disk.Config{Dir: dir, RunDir: filepath.Join(dir, "run"), SizeBytes: 2 * carrel.GiB, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(b, err)
	defer func() { require.NoError(b, pool.Unmount()) }()
	s, err := openSnapshots(filepath.Join(pool.Root(), "snapshots"), pool.Continue, slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	home, err := pool.Golden(b.Context(), 64*carrel.MiB)
	require.NoError(b, err)
	content := make([]byte, 256<<20)
	_, _ = rand.Read(content)
	var ratios, seals, raws []float64
	for b.Loop() {
		b.StopTimer()
		id := carrel.NewSnapshotID()
		tmp, err := s.begin(id)
		require.NoError(b, err)
		require.NoError(b, os.WriteFile(filepath.Join(tmp, "pages.img"), content, 0o600))
		require.NoError(b, disk.Clone(home, filepath.Join(tmp, homeName)))
		b.StartTimer()
		began := time.Now()
		_, err = s.seal(b.Context(), &manifest{Snapshot: id, Kind: carrel.SnapshotMemory}, nil, "", nil)
		require.NoError(b, err)
		seal := time.Since(began).Seconds()
		b.StopTimer()
		require.NoError(b, s.drop(id))

		path := filepath.Join(pool.Root(), "raw")
		require.NoError(b, os.WriteFile(path, content, 0o600))
		began = time.Now()
		f, err := os.Open(path)
		require.NoError(b, err)
		_, err = io.Copy(sha256.New(), f)
		require.NoError(b, err)
		require.NoError(b, unix.Fdatasync(int(f.Fd())))
		raw := time.Since(began).Seconds()
		require.NoError(b, f.Close())
		require.NoError(b, os.Remove(path))
		seals, raws, ratios = append(seals, seal), append(raws, raw), append(ratios, seal/raw)
		b.StartTimer()
	}
	median := func(list []float64) float64 { slices.Sort(list); return list[len(list)/2] }
	b.ReportMetric(median(seals)*1000, "seal-ms")
	b.ReportMetric(median(raws)*1000, "raw-ms")
	b.ReportMetric(median(ratios), "seal/raw")
}

// TestVerifyingGivesWayToAStart promises that what a run's end waits for is cut short by whoever wants the box again, and that a damaged snapshot
// is not taken for a whole one.
func TestVerifyingGivesWayToAStart(t *testing.T) {
	if testing.Short() {
		return // needs root
	}
	dir := t.TempDir()
	pool, err := disk.Open(t.Context(), disk.Config{Dir: dir, RunDir: filepath.Join(dir, "run"), SizeBytes: 384 * carrel.MiB, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer func() { require.NoError(t, pool.Unmount()) }()
	s, err := openSnapshots(filepath.Join(pool.Root(), "snapshots"), pool.Continue, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	home, err := pool.Golden(t.Context(), 64*carrel.MiB)
	require.NoError(t, err)
	id := carrel.NewSnapshotID()
	tmp, err := s.begin(id)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(tmp, "pages.img"), make([]byte, 3<<20), 0o600))
	require.NoError(t, disk.Clone(home, filepath.Join(tmp, homeName)))
	m := &manifest{Snapshot: id, Kind: carrel.SnapshotMemory}
	ref, err := s.seal(t.Context(), m, nil, "", nil)
	require.NoError(t, err)
	worker := func() *worker {
		w := newWorker(&Daemon{snapshots: s, log: slog.New(slog.DiscardHandler)}, &entry{Stage: stageClearing, Snapshot: ref})
		w.sandbox = sandboxFrozen
		return w
	}
	require.NoError(t, worker().verify(t.Context()))

	require.NoError(t, s.verifying.Acquire(t.Context(), 1)) // another run's takes its time
	w := worker()
	verified := make(chan error, 1)
	go func() { verified <- w.verify(t.Context()) }()
	w.hurry()
	require.NoError(t, <-verified)
	destroyed, destroy := context.WithCancelCause(t.Context())
	go func() { verified <- worker().verify(destroyed) }()
	destroy(errSuperseded)
	require.NoError(t, <-verified)
	s.verifying.Release(1)

	fast := m.Files["pages.img"].Fast
	fast[1]++
	require.ErrorIs(t, worker().verify(t.Context()), errSnapshotCorrupt)
	rebooted := worker()
	rebooted.sandbox = sandboxAbsent
	require.NoError(t, rebooted.verify(t.Context()), "it keeps nothing")
	fast[1]--
	require.NoError(t, s.drop(id))
	require.NoError(t, worker().verify(t.Context()), "there is nothing left to verify")
}
