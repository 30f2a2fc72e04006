package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/store"
)

// fleetAge is how old a read of the nodes may be for a placement. It may be wrong by then: AssignRun checks everything again, and
// nothing is called impossible without a fresh read.
const fleetAge = 2 * time.Second

// writers is how many steps of one tick are written at a time.
const writers = 4

// fleetCache keeps the newest read of the nodes, so that a create costs no read of them.
type fleetCache struct {
	mu    sync.Mutex // guards nodes and at
	nodes []store.Node
	at    time.Time
}

// fleet gives the nodes as they were at most age ago.
func (r *Reconciler) fleet(ctx context.Context, age time.Duration) (*fleet, error) {
	c := &r.fleets
	c.mu.Lock()
	nodes, at := c.nodes, c.at
	c.mu.Unlock()
	if age > 0 && !at.IsZero() && time.Since(at) < age {
		return newFleet(nodes), nil
	}
	at = time.Now()
	nodes, err := r.store.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading nodes: %w", err)
	}
	c.mu.Lock()
	if at.After(c.at) {
		c.nodes, c.at = nodes, at
	}
	c.mu.Unlock()
	return newFleet(nodes), nil
}

// tickBoxes does the next step for the boxes of a shard that are due.
func (r *Reconciler) tickBoxes(ctx context.Context, lease store.Lease, shard int) (bool, error) {
	boxes, err := r.store.DueBoxes(ctx, shard, r.cfg.Shards, r.cfg.Batch)
	if err != nil {
		return false, fmt.Errorf("reading due boxes: %w", err)
	}
	if len(boxes) == 0 {
		return false, nil
	}
	f, err := r.fleet(ctx, fleetAge)
	if err != nil {
		return false, err
	}
	steps, unplaced := r.plan(boxes, f)
	if unplaced {
		if f, err = r.fleet(ctx, 0); err != nil {
			return false, err
		}
		steps, _ = r.plan(boxes, f)
	}
	if err := failpoint.Hit("reconcile/boxes/planned"); err != nil {
		return false, err
	}
	refused, err := r.apply(ctx, lease, steps)
	if err != nil {
		return false, err
	}
	if len(refused) > 0 {
		if err := r.placeAgain(ctx, lease, refused); err != nil {
			return false, err
		}
	}
	if err := failpoint.Hit("reconcile/boxes/applied"); err != nil {
		return false, err
	}
	return len(boxes) == r.cfg.Batch, nil
}

// placeAgain places boxes that their node refused, being fuller than an older read said, by a new read. What is refused even so
// is a failure like any other.
func (r *Reconciler) placeAgain(ctx context.Context, lease store.Lease, refused []step) error {
	f, err := r.fleet(ctx, 0)
	if err != nil {
		return err
	}
	var boxes []*store.Box
	for _, s := range refused {
		boxes = append(boxes, s.box)
	}
	steps, _ := r.plan(boxes, f)
	if refused, err = r.apply(ctx, lease, steps); err != nil {
		return err
	}
	for n, s := range refused {
		m := f.byID[s.assign.Node]
		refused[n] = fail(s.box, carrel.ReasonNoRoom, fmt.Sprintf("%s had room and then had none any more", m.Name), "", r.cfg.Now())
	}
	_, err = r.apply(ctx, lease, refused)
	return err
}

// plan decides for many boxes, and reports whether one of them cannot be placed.
func (r *Reconciler) plan(boxes []*store.Box, f *fleet) (steps []step, unplaced bool) {
	now := r.cfg.Now()
	for _, b := range boxes {
		s := planBox(b, now, f)
		unplaced = unplaced || s.unplaced
		steps = append(steps, s)
	}
	return steps, unplaced
}

// apply writes the steps: every run to be made in one transaction, the others a few at a time. What changed meanwhile is left: it
// is due again by that very change. Refused are the assignments for which a node had less room than was thought.
func (r *Reconciler) apply(ctx context.Context, lease store.Lease, steps []step) (refused []step, err error) {
	var assigns []store.AssignRun
	var assigned []step
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, s := range steps {
		if s.kind == stepAssign {
			assigns = append(assigns, s.assign)
			assigned = append(assigned, s)
		}
	}
	if len(assigns) > 0 {
		g.Go(func() error {
			var err error
			refused, err = r.assign(gctx, lease, assigns, assigned)
			return err
		})
	}
	for _, s := range steps {
		if s.kind == stepAssign {
			continue
		}
		g.Go(func() error { return r.outcome(s, r.write(gctx, lease, s)) })
	}
	err = g.Wait()
	return refused, err
}

// write is one transaction.
func (r *Reconciler) write(ctx context.Context, lease store.Lease, s step) error {
	b := s.box
	switch s.kind {
	case stepFail:
		return r.store.RecordFailure(ctx, lease, b.ID, b.Touched, s.failure)
	case stepRetire:
		return r.store.RetireMemory(ctx, lease, b.ID, b.Snapshot.ID)
	case stepPurge:
		return r.store.PurgeBox(ctx, lease, b.ID)
	}
	return r.store.Settle(ctx, lease, b.ID, b.Touched, s.clear, s.due)
}

// outcome counts and logs a step; only what concerns more than this box is an error of the tick.
func (r *Reconciler) outcome(s step, err error) error {
	log := r.cfg.Logger.With("box", s.box.ID, "org", s.box.Org, "step", string(s.kind))
	result := "done"
	switch {
	case err == nil:
		if s.kind == stepFail {
			log.Info("box failed", "reason", s.failure.Reason, "message", s.failure.Message, "transient", s.failure.Transient, "attempts", s.failure.Attempts)
		} else if s.kind != stepSettle {
			log.Info("box step", "generation", s.box.Generation)
		}
	case errors.Is(err, store.ErrChanged):
		result, err = "changed", nil
	case errors.Is(err, store.ErrLeaseLost):
		result = "lease_lost"
	default:
		result, err = "error", fmt.Errorf("step %s of box %s: %w", s.kind, s.box.ID, err)
	}
	r.metrics.steps.WithLabelValues(string(s.kind), result).Inc()
	return err
}

// assign makes runs. When a node turned out to be full the read of the nodes is forgotten, so that the box is placed anew.
func (r *Reconciler) assign(ctx context.Context, lease store.Lease, assigns []store.AssignRun, steps []step) (refused []step, err error) {
	results, err := r.store.AssignRuns(ctx, lease, assigns)
	if err != nil {
		r.metrics.steps.WithLabelValues(string(stepAssign), "error").Inc()
		if errors.Is(err, store.ErrLeaseLost) {
			return nil, err
		}
		return nil, fmt.Errorf("assigning %d runs: %w", len(assigns), err)
	}
	now := r.cfg.Now()
	for n, result := range results {
		s := steps[n]
		log := r.cfg.Logger.With("box", s.box.ID, "org", s.box.Org, "node", s.assign.Node)
		switch {
		case result.Err == nil:
			r.metrics.steps.WithLabelValues(string(stepAssign), "done").Inc()
			if s.box.Run == nil || s.box.Run.AnsweredGeneration() < s.box.Generation {
				r.metrics.lag.Observe(now.Sub(s.box.IntentAt).Seconds())
			}
			log.Info("run assigned", "run", result.Run, "epoch", result.Epoch, "snapshot", s.assign.Snapshot, "memory", s.assign.WithMemory, "prebuild", s.assign.Clone)
		case errors.Is(result.Err, store.ErrNoRoom):
			r.metrics.steps.WithLabelValues(string(stepAssign), "no_room").Inc()
			r.fleets.forget()
			refused = append(refused, s)
		case errors.Is(result.Err, store.ErrChanged):
			r.metrics.steps.WithLabelValues(string(stepAssign), "changed").Inc()
		default:
			r.metrics.steps.WithLabelValues(string(stepAssign), "error").Inc()
			log.Warn("run not assigned", "error", result.Err)
		}
	}
	return refused, nil
}

func (c *fleetCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
}
