package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/store"
)

// policyBatch is how many policies one tick looks at.
const policyBatch = 500

// tickPolicies looks at the policies that are due: what carrel.DecideIdle answers is made true, each change in one transaction that
// looks again whether everything is still as it was; for the others it is written when to look next.
func (r *Reconciler) tickPolicies(ctx context.Context, lease store.Lease) (bool, error) {
	boxes, err := r.store.DuePolicies(ctx, policyBatch)
	if err != nil {
		return false, fmt.Errorf("reading due policies: %w", err)
	}
	looks, acts := planPolicies(boxes, r.cfg.Now())
	if err := failpoint.Hit("reconcile/policies/planned"); err != nil {
		return false, err
	}
	if err := r.store.LookLater(ctx, lease, looks); err != nil {
		return false, fmt.Errorf("writing when to look at policies: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, a := range acts {
		g.Go(func() error { return r.policyOutcome(a, r.store.ApplyPolicy(gctx, lease, a.box, a.act)) })
	}
	if err := g.Wait(); err != nil {
		return false, err
	}
	return len(boxes) == policyBatch, nil
}

// policyStep is a change that a policy makes.
type policyStep struct {
	box *store.PolicyBox
	act carrel.PolicyAct
}

// planPolicies decides for many boxes. It is a pure function.
func planPolicies(boxes []*store.PolicyBox, now time.Time) (looks []store.PolicyLook, acts []policyStep) {
	for _, b := range boxes {
		d := carrel.DecideIdle(b.View(), now)
		if d.Act != nil {
			acts = append(acts, policyStep{b, *d.Act})
			continue
		}
		looks = append(looks, store.PolicyLook{Box: b, Next: d.Look})
	}
	return looks, acts
}

// policyOutcome counts and logs a change; only what concerns more than this box is an error of the tick.
func (r *Reconciler) policyOutcome(s policyStep, err error) error {
	result := "done"
	switch {
	case err == nil:
		r.cfg.Logger.Info("policy applied", "box", s.box.ID, "org", s.box.Org, "rule", string(s.act.Rule), "intent", string(s.act.Intent), "message", s.act.Message)
	case errors.Is(err, store.ErrChanged):
		result, err = "changed", nil // it is still due
	case errors.Is(err, store.ErrLeaseLost):
		result = "lease_lost"
	default:
		result, err = "error", fmt.Errorf("policy of box %s: %w", s.box.ID, err)
	}
	r.metrics.steps.WithLabelValues("policy", result).Inc()
	return err
}
