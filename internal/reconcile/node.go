package reconcile

import (
	"context"
	"fmt"
	"time"

	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/store"
)

// verdict is what a reconciler thinks of the nodes.
type verdict struct {
	silent []*machine // long enough to say so
	// mass: more than a tenth of the nodes fell silent at once. Then it is likelier that control or the network is at
	// fault, and nothing is concluded from silence.
	mass bool
}

// judge looks for nodes that fell silent. healthySince is since when this reconciler's own reads have succeeded without a
// break: a silence is believed only after a whole window of them, because heartbeats travel through the same database.
func judge(f *fleet, now, healthySince time.Time) verdict {
	var v verdict
	if now.Sub(healthySince) < OfflineAfter {
		return v
	}
	heard, unexpected := 0, 0
	for _, m := range f.nodes {
		if m.FactsAt.IsZero() {
			continue
		}
		if m.online(now) {
			heard++
			continue
		}
		v.silent = append(v.silent, m)
		if m.RemovedAt.IsZero() { // that of a removed one was to be expected
			heard, unexpected = heard+1, unexpected+1
		}
	}
	v.mass = unexpected > max(1, heard/10)
	return v
}

// nodeWatch looks for nodes that fell silent.
type nodeWatch struct {
	r            *Reconciler
	healthySince time.Time // since when its reads succeed; zero: the last one did not
	mass         bool
}

// begin forgets what an older lease knew: somebody else watched in between.
func (w *nodeWatch) begin() { w.healthySince = time.Time{} }

func (w *nodeWatch) tick(ctx context.Context, lease store.Lease) (bool, error) {
	r := w.r
	f, err := r.fleet(ctx, 0)
	if err != nil {
		w.healthySince = time.Time{}
		return false, err
	}
	now := r.cfg.Now()
	if w.healthySince.IsZero() {
		w.healthySince = now
	}
	v := judge(f, now, w.healthySince)
	r.metrics.silent.Set(float64(len(v.silent)))
	r.metrics.mass.Set(0)
	if v.mass {
		r.metrics.mass.Set(1)
		if !w.mass {
			r.cfg.Logger.Warn("many nodes are silent at once, so nothing is concluded from it", "nodes", len(v.silent))
		}
	}
	w.mass = v.mass
	if v.mass || len(v.silent) == 0 {
		return false, nil
	}
	boxes, err := r.store.BoxesOnSilentNodes(ctx, now.Add(-OfflineAfter), r.cfg.Batch)
	if err != nil {
		return false, fmt.Errorf("reading boxes on silent nodes: %w", err)
	}
	var steps []step
	for _, b := range boxes {
		m := f.byID[b.Run.NodeID]
		if m == nil {
			continue
		}
		if s := planSilent(b, now, m); s != nil {
			steps = append(steps, *s)
		}
	}
	if err := failpoint.Hit("reconcile/nodes/planned"); err != nil {
		return false, err
	}
	_, err = r.apply(ctx, lease, steps)
	return false, err
}
