package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// openOperation writes the operation of a request, or finds that of the same request before.
func (t *tx) openOperation(ctx context.Context, request Request, op Operation) (*Operation, error) {
	op.ID, op.CreatedBy, op.CreatedAt = carrel.NewOperationID(), t.scope.User, t.now
	n, err := t.InsertOperation(ctx, db.InsertOperationParams{
		ID: op.ID, OrgID: op.Org, Verb: op.Verb, TargetID: op.TargetID, TargetName: op.TargetName, Generation: op.Generation,
		CreatedBy: op.CreatedBy, CreatedAt: op.CreatedAt, Method: request.Method, RequestID: request.ID, RequestHash: request.Hash,
	})
	if err != nil {
		return nil, fmt.Errorf("open the operation: %w", err)
	}
	if n == 1 {
		return &op, nil
	}
	old, err := t.OperationByRequest(ctx, op.Org, op.CreatedBy, request.Method, request.ID)
	if err != nil {
		return nil, fmt.Errorf("find the operation of the request: %w", err)
	}
	if err := replayed(request, old.RequestHash); err != nil {
		return nil, err
	}
	return &Operation{
		ID: old.ID, Org: old.OrgID, Verb: old.Verb, TargetID: old.TargetID, TargetName: old.TargetName, Generation: old.Generation,
		CreatedBy: old.CreatedBy, CreatedAt: old.CreatedAt.UTC(), Replayed: true,
	}, nil
}

// fillOperations reads what the status of operations is computed from.
func (t *tx) fillOperations(ctx context.Context, ops []*Operation) error {
	var boxIDs, imageIDs []string
	oldest := map[string]int64{} // generation that is asked for, by box
	for _, op := range ops {
		switch carrel.IDKind(op.TargetID) {
		case 'b':
			boxIDs = append(boxIDs, op.TargetID)
			if g, ok := oldest[op.TargetID]; !ok || op.Generation < g {
				oldest[op.TargetID] = op.Generation
			}
		case 'i':
			imageIDs = append(imageIDs, op.TargetID)
		}
	}
	boxes := map[string]*Box{}
	runs := map[string][]carrel.RunView{}
	if len(boxIDs) > 0 {
		list, err := t.boxes(ctx, "where b.id = any ($1)", boxIDs)
		if err != nil {
			return err
		}
		for _, b := range list {
			boxes[string(b.ID)] = b
		}
		// Only runs that answered this generation or a later one can say anything of the request.
		generation := int64(0)
		if len(oldest) == 1 {
			generation = oldest[boxIDs[0]]
		}
		rows, err := t.RunsOfBoxes(ctx, boxIDs, generation)
		if err != nil {
			return fmt.Errorf("read runs: %w", err)
		}
		for _, r := range rows {
			run := carrel.RunView{
				ID: r.ID, NodeID: r.NodeID, Epoch: r.Epoch, BootGeneration: r.BootGeneration, WithMemory: r.WithMemory, Phase: r.Phase,
				Generation: r.Generation, Reason: r.Reason, Message: r.Message, Transient: r.Transient, FailedOrder: r.FailedOrder,
			}
			if err := decode(r.Phases, &run.Phases, "phases"); err != nil {
				return err
			}
			runs[string(r.BoxID)] = append(runs[string(r.BoxID)], run)
		}
	}
	images := map[string]*Image{}
	if len(imageIDs) > 0 {
		rows, err := t.ImagesByID(ctx, imageIDs)
		if err != nil {
			return fmt.Errorf("read images: %w", err)
		}
		for _, r := range rows {
			image, err := imageOf(imageRow(r))
			if err != nil {
				return err
			}
			images[string(image.ID)] = &image
		}
	}
	for _, op := range ops {
		op.Box, op.Runs, op.Image = boxes[op.TargetID], runs[op.TargetID], images[op.TargetID]
	}
	return nil
}

// GetOperation reads one operation with all that its status is computed from.
func (s *Store) GetOperation(ctx context.Context, scope Scope, id carrel.OperationID) (*Operation, error) {
	var op *Operation
	err := s.read(ctx, "GetOperation", scope, func(t *tx) error {
		r, err := t.GetOperation(ctx, id)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("operation", string(id))
		}
		if err != nil {
			return err
		}
		op = &Operation{
			ID: r.ID, Org: r.OrgID, Verb: r.Verb, TargetID: r.TargetID, TargetName: r.TargetName, Generation: r.Generation,
			CreatedBy: r.CreatedBy, CreatedAt: r.CreatedAt.UTC(),
		}
		return t.fillOperations(ctx, []*Operation{op})
	})
	return op, err
}

// ListOperations gives a page of operations, newest first. Org and target (id of a box or image), where not
// empty, narrow it.
func (s *Store) ListOperations(ctx context.Context, scope Scope, org carrel.OrgID, target string, page Page) ([]*Operation, string, error) {
	kind := "operations " + string(org) + " " + target
	size, before, err := page.numbered(kind)
	if err != nil {
		return nil, "", err
	}
	var ops []*Operation
	next := ""
	err = s.read(ctx, "ListOperations", scope, func(t *tx) error {
		ops, next = nil, ""
		rows, err := t.ListOperations(ctx, string(org), target, before, int32(size)+1)
		if err != nil {
			return err
		}
		for i, r := range rows {
			if i == size {
				next = numberedToken(kind, rows[i-1].Number)
				break
			}
			ops = append(ops, &Operation{
				ID: r.ID, Org: r.OrgID, Verb: r.Verb, TargetID: r.TargetID, TargetName: r.TargetName, Generation: r.Generation,
				CreatedBy: r.CreatedBy, CreatedAt: r.CreatedAt.UTC(),
			})
		}
		return t.fillOperations(ctx, ops)
	})
	return ops, next, err
}

// ListAudit gives the newest entries of an organisation (empty: of the platform), newest first, at most limit.
func (s *Store) ListAudit(ctx context.Context, scope Scope, org carrel.OrgID, limit int) ([]AuditEntry, error) {
	var entries []AuditEntry
	err := s.read(ctx, "ListAudit", scope, func(t *tx) error {
		entries = nil
		rows, err := t.ListAudit(ctx, org, int32(limit))
		for _, r := range rows {
			entries = append(entries, AuditEntry{At: r.At.UTC(), Org: r.OrgID, Actor: r.Actor, Method: r.Method, Target: r.Target, Detail: r.Detail})
		}
		return err
	})
	return entries, err
}
