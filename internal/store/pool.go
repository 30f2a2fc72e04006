package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// Pool is the warm pool of a template.
type Pool struct {
	Org   carrel.OrgID // of the template
	Name  string
	Size  int // wanted
	Ready int // waiting to be taken
}

// Pools gives every pool that is wanted.
func (s *Store) Pools(ctx context.Context) ([]Pool, error) {
	var pools []Pool
	err := s.read(ctx, "Pools", SystemScope(), func(t *tx) error {
		pools = nil
		rows, err := t.PoolsOf(ctx)
		for _, r := range rows {
			pools = append(pools, Pool{Org: r.TemplateOrg, Name: r.Name, Size: int(r.Size), Ready: int(r.Ready)})
		}
		return err
	})
	return pools, err
}

// SetPool says how many prepared boxes of a template shall wait, from 0 to carrel.MaxPool. Any scope but a platform one is told that
// there is no such template.
func (s *Store) SetPool(ctx context.Context, scope Scope, org carrel.OrgID, name string, size int) error {
	if err := platformOnly(scope, "template", name); err != nil {
		return err
	}
	return s.write(ctx, "SetPool", systemFor(scope), func(t *tx) error {
		if err := t.PutPool(ctx, org, name, int32(size)); err != nil {
			return fmt.Errorf("write the pool: %w", err)
		}
		t.wake(TopicPrepare)
		return t.audit(ctx, org, name, fmt.Sprint("pool ", size))
	})
}

// poolNodeSilence is how long the node of a prepared box may be silent for the box to be taken.
const poolNodeSilence = 20 * time.Second

// TakeBox makes a prepared box that waits the box that is asked for: it becomes the user's, and its node is told. The answer is nil when
// none like it waits; then CreateBox makes one. Errors are those of CreateBox.
func (s *Store) TakeBox(ctx context.Context, scope Scope, recipe string, box NewBox) (*Operation, error) {
	if err := box.Request.check(); err != nil {
		return nil, err
	}
	var op *Operation
	// Prepared boxes belong to the system organisation. Whether the user may have one was decided.
	err := s.write(ctx, "CreateBox", systemFor(scope), func(t *tx) error {
		op = nil
		id, err := t.PooledBox(ctx, recipe, encode(box.Resources), t.now.Add(-poolNodeSilence))
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find a prepared box: %w", err)
		}
		taken, err := t.box(ctx, id)
		if err != nil {
			return err
		}
		if taken.Run == nil || taken.Purpose != carrel.PurposePool || taken.ImageDigest != box.ImageDigest {
			return nil
		}
		op, err = t.openOperation(ctx, box.Request, Operation{
			Org: box.Org, Verb: carrel.VerbCreate, TargetID: string(id), TargetName: box.Name, Generation: taken.Generation + 1,
		})
		if err != nil {
			return err
		}
		if op.Replayed {
			return t.fillOperations(ctx, []*Operation{op})
		}
		if err := t.checkBoxes(ctx, box); err != nil {
			return err
		}
		if err := t.handOver(ctx, taken, scope.User, box); err != nil {
			return err
		}
		if op.Box, err = t.box(ctx, id); err != nil {
			return err
		}
		if look := t.lookAfter(op.Box); !look.IsZero() {
			return t.SetLook(ctx, db.SetLookParams{BoxID: id, OrgID: box.Org, Due: &look, Now: t.now})
		}
		return nil
	})
	return op, err
}

// handOver writes a prepared box as the user's. What was before is nobody's business: its events and use are forgotten.
func (t *tx) handOver(ctx context.Context, taken *Box, owner carrel.UserID, box NewBox) error {
	id, run := taken.ID, taken.Run
	if err := errors.Join(t.ForgetEvents(ctx, id), t.ForgetActivity(ctx, id)); err != nil {
		return fmt.Errorf("forget what was: %w", err)
	}
	_, err := t.ClaimBox(ctx, db.ClaimBoxParams{
		ID: id, OrgID: box.Org, OwnerID: owner, Name: box.Name, TemplateID: box.TemplateID, Labels: encodeMap(box.Labels), Env: encodeMap(box.Env),
		Idle: encode(box.Idle), IntentBy: t.actor(), Now: t.now,
	})
	if violates(err, "boxes_name") {
		return nameTaken(box.Name)
	}
	if err != nil {
		return fmt.Errorf("hand over the box: %w", err)
	}
	row, err := t.GetRun(ctx, run.ID)
	if err != nil {
		return fmt.Errorf("read the run: %w", err)
	}
	var spec RunSpec
	if err := decode(row.Spec, &spec, "a run's spec"); err != nil {
		return err
	}
	spec.BoxName, spec.Env = box.Name, box.Env
	// It runs for its user when its node has told the agent whose it is, and says so.
	phases := []carrel.PhaseAt{
		{Phase: carrel.PhaseAssigned, At: t.now, Generation: taken.Generation}, {Phase: carrel.PhaseStarting, At: t.now, Generation: taken.Generation},
	}
	if err := t.ClaimRun(ctx, db.ClaimRunParams{ID: run.ID, OrgID: box.Org, Spec: encode(spec), Phases: encode(phases), Now: t.now}); err != nil {
		return fmt.Errorf("hand over the run: %w", err)
	}
	t.raise(run.NodeID)
	t.wake(TopicWatch)
	t.wake(TopicPrepare)
	if err := t.event(ctx, box.Org, id, "", "created", "the box was created", t.actor()); err != nil {
		return err
	}
	if err := t.event(ctx, box.Org, id, run.ID, "placed", "taken from the warm pool of its template", "carrel"); err != nil {
		return err
	}
	return t.audit(ctx, box.Org, string(id), box.Name)
}
