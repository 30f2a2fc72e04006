package reconcile

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/storetest"
)

// assignedAt notes when the reconciler says, right after the commit, that a run was assigned.
type assignedAt struct {
	slog.Handler
	at chan time.Time
}

func (h assignedAt) Enabled(context.Context, slog.Level) bool { return true }
func (h assignedAt) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h assignedAt) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "run assigned" {
		h.at <- r.Time
	}
	return nil
}

// From the answer of the create, which is its commit, to the commit of the run.
func TestAssignLatency(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	p := w.join("a", 1)
	p.facts.MemoryBytes, p.facts.CPUMillis = 1024*carrel.GiB, 1<<40
	p.facts.DiskBytes, p.facts.DiskFreeBytes = 1<<50, 1<<50
	p.beat()
	w.start(p)
	h := assignedAt{quiet.Handler(), make(chan time.Time, 16)}
	const poll = 20 * time.Second
	w.reconciler(func(c *Config) { c.Logger, c.Poll = slog.New(h), poll })
	var took []time.Duration
	for n := range 120 {
		id := w.create("box-" + string(rune('a'+n%26)) + "-" + string(rune('a'+n/26)))
		committed := time.Now()
		select {
		case at := <-h.at:
			took = append(took, at.Sub(committed))
		case <-time.After(patience):
			require.Fail(t, "no run was assigned")
		}
		w.state(id, carrel.StateRunning)
	}
	took = took[20:] // until everything is warm
	slices.Sort(took)
	median, p95 := took[len(took)/2], took[len(took)*95/100]
	t.Logf("from the commit of the create to the commit of its run: median %s, p95 %s, worst %s", median, p95, took[len(took)-1])
	require.Less(t, median, poll/4, "a create must not wait for a poll")
}
