package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/store"
)

// choreWait is how long a chore waits for a node before it is given up.
const choreWait = time.Hour

// tickChores places chores that have no node, or one that fell silent, on a node that is there: the one with the most room on its
// disk, because that is what building an image takes.
func (r *Reconciler) tickChores(ctx context.Context, lease store.Lease) (bool, error) {
	now := r.cfg.Now()
	chores, err := r.store.DueChores(ctx, now.Add(-OfflineAfter))
	if err != nil {
		return false, fmt.Errorf("reading chores: %w", err)
	}
	if len(chores) == 0 {
		return false, nil
	}
	f, err := r.fleet(ctx, 0)
	if err != nil {
		return false, err
	}
	if err := failpoint.Hit("reconcile/chores/planned"); err != nil {
		return false, err
	}
	for _, c := range chores {
		if err := r.placeChore(ctx, lease, c, planChore(c, now, f), now); err != nil {
			return false, err
		}
	}
	return false, nil
}

// planChore picks the node for a chore, or none.
func planChore(c store.Chore, now time.Time, f *fleet) *machine {
	var best *machine
	for _, m := range f.nodes {
		if !m.online(now) || !m.Schedulable || m.ID == c.Node {
			continue
		}
		if best == nil || m.FreeDiskBytes > best.FreeDiskBytes {
			best = m
		}
	}
	return best
}

func (r *Reconciler) placeChore(ctx context.Context, lease store.Lease, c store.Chore, m *machine, now time.Time) error {
	log := r.cfg.Logger.With("chore", c.ID, "org", c.Org)
	var err error
	step := "assign_chore"
	switch {
	case m != nil:
		if err = r.store.AssignChore(ctx, lease, c.ID, c.Node, m.ID); err == nil {
			log.Info("chore assigned", "node", m.ID, "kind", c.Kind)
		}
	case c.Node == "" && now.Sub(c.CreatedAt) > choreWait:
		step = "fail_chore"
		err = r.store.FailChore(ctx, lease, c.ID, carrel.Failure{
			Reason: carrel.ReasonNoNode, Message: fmt.Sprintf("no node could take the work for %s", choreWait),
			NextStep: "See `carrel node list`: start a node, or make one schedulable, then ask again.", Attempts: 1, At: now,
		})
	default:
		return nil
	}
	result := "done"
	switch {
	case errors.Is(err, store.ErrChanged):
		result, err = "changed", nil
	case err != nil:
		result = "error"
	}
	r.metrics.steps.WithLabelValues(step, result).Inc()
	if err != nil {
		return fmt.Errorf("placing chore %s: %w", c.ID, err)
	}
	return nil
}

// tickPrune forgets what was deleted long ago, a few at a time.
func (r *Reconciler) tickPrune(ctx context.Context, lease store.Lease) (bool, error) {
	const most = 200
	n, err := r.store.Prune(ctx, lease, r.cfg.Now().Add(-r.cfg.Retention), most)
	if err != nil {
		return false, fmt.Errorf("forgetting what was deleted: %w", err)
	}
	return n == most, nil
}
