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

// openOperation writes the operation of a request, or finds that of the same request before.
func (t *tx) openOperation(ctx context.Context, request Request, op Operation) (*Operation, error) {
	op.ID, op.CreatedBy, op.CreatedAt = carrel.NewOperationID(), t.scope.User, t.now
	n, err := t.InsertOperation(ctx, db.InsertOperationParams{
		ID: op.ID, OrgID: op.Org, Verb: op.Verb, TargetID: op.TargetID, TargetName: op.TargetName, Generation: op.Generation,
		BootGeneration: op.BootGeneration, CreatedBy: op.CreatedBy, CreatedAt: op.CreatedAt, Method: request.Method,
		RequestID: request.ID, RequestHash: request.Hash,
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
	first, err := operationOf(old)
	if err != nil {
		return nil, err
	}
	first.Replayed = true
	return first, nil
}

// FormerOperation is the operation of an earlier request of the scope's user with this id and method; nil if there is none. Where request has a
// hash, one with another content is refused.
func (s *Store) FormerOperation(ctx context.Context, scope Scope, org carrel.OrgID, request Request) (*Operation, error) {
	if err := request.check(); err != nil || request.ID == "" {
		return nil, err
	}
	var op *Operation
	err := s.read(ctx, "FormerOperation", scope, func(t *tx) error {
		op = nil
		former, err := t.OperationByRequest(ctx, org, scope.User, request.Method, request.ID)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err == nil && request.Hash != nil {
			err = replayed(request, former.RequestHash)
		}
		if err != nil {
			return err
		}
		if op, err = operationOf(former); err != nil {
			return err
		}
		return t.fillOperations(ctx, []*Operation{op})
	})
	return op, err
}

func operationOf(r db.Operation) (*Operation, error) {
	op := &Operation{
		ID: r.ID, Org: r.OrgID, Verb: r.Verb, TargetID: r.TargetID, TargetName: r.TargetName, Generation: r.Generation,
		BootGeneration: r.BootGeneration, CreatedBy: r.CreatedBy, CreatedAt: r.CreatedAt.UTC(),
	}
	if len(r.Settled) > 0 {
		op.Settled = &carrel.OperationStatus{}
	}
	return op, decode(r.Settled, op.Settled, "how an operation ended")
}

// settleOperations writes down how the requests before next ended, where the change of intent that next is about to make would
// have that forgotten. It gives the runs that next's own status is computed from. The box is still as it was before.
func (t *tx) settleOperations(ctx context.Context, next *Operation, box *Box) ([]carrel.RunView, error) {
	rows, err := t.UnsettledOperations(ctx, string(box.ID))
	if err != nil {
		return nil, fmt.Errorf("read open operations: %w", err)
	}
	ops := make([]*Operation, len(rows))
	since := next.CreatedAt
	for i, r := range rows {
		if ops[i], err = operationOf(r); err != nil {
			return nil, err
		}
		if ops[i].CreatedAt.Before(since) {
			since = ops[i].CreatedAt
		}
	}
	runs, err := t.runsSince(ctx, map[string]time.Time{string(box.ID): since})
	if err != nil {
		return nil, err
	}
	for _, op := range ops {
		if op.ID == next.ID {
			continue
		}
		status, write := carrel.Settle(op.View(), &box.BoxView, runs[string(box.ID)], next.Verb, t.now)
		if !write {
			continue
		}
		if err := t.settle(ctx, op, status); err != nil {
			return nil, err
		}
	}
	return runs[string(box.ID)], nil
}

func (t *tx) settle(ctx context.Context, op *Operation, status carrel.OperationStatus) error {
	if err := t.SettleOperation(ctx, op.ID, encode(status)); err != nil {
		return fmt.Errorf("write how operation %s ended: %w", op.ID, err)
	}
	op.Settled = &status
	return nil
}

// clockSkew is how far the clocks of replicas may be apart for runs to be found by time.
const clockSkew = time.Minute

// runsSince reads the runs of boxes that were not over at a time, oldest first: no other can say anything of a request that
// was made then.
func (t *tx) runsSince(ctx context.Context, since map[string]time.Time) (map[string][]carrel.RunView, error) {
	ids := sortedKeys(since)
	times := make([]time.Time, len(ids))
	for i, id := range ids {
		times[i] = since[id].Add(-clockSkew)
	}
	rows, err := t.RunsOfBoxes(ctx, ids, times)
	if err != nil {
		return nil, fmt.Errorf("read runs: %w", err)
	}
	runs := map[string][]carrel.RunView{}
	for _, r := range rows {
		run := carrel.RunView{
			ID: r.ID, NodeID: r.NodeID, Epoch: r.Epoch, BootGeneration: r.BootGeneration, WithMemory: r.WithMemory, Phase: r.Phase,
			Generation: r.Generation, Reason: r.Reason, Message: r.Message, Transient: r.Transient, FailedOrder: r.FailedOrder,
		}
		if err := decode(r.Phases, &run.Phases, "phases"); err != nil {
			return nil, err
		}
		runs[r.BoxID] = append(runs[r.BoxID], run)
	}
	return runs, nil
}

// fillOperations reads what the status of operations is computed from.
func (t *tx) fillOperations(ctx context.Context, ops []*Operation) error {
	var imageIDs []string
	since := map[string]time.Time{} // the oldest request that is asked about, by box
	for _, op := range ops {
		switch carrel.IDKind(op.TargetID) {
		case 'b':
			if at, ok := since[op.TargetID]; !ok || op.CreatedAt.Before(at) {
				since[op.TargetID] = op.CreatedAt
			}
		case 'i':
			imageIDs = append(imageIDs, op.TargetID)
		}
	}
	boxes := map[string]*Box{}
	runs := map[string][]carrel.RunView{}
	if len(since) > 0 {
		list, err := t.boxes(ctx, "where b.id = any ($1)", sortedKeys(since))
		if err != nil {
			return err
		}
		for _, b := range list {
			boxes[string(b.ID)] = b
		}
		if runs, err = t.runsSince(ctx, since); err != nil {
			return err
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
		if op, err = operationOf(r); err != nil {
			return err
		}
		return t.fillOperations(ctx, []*Operation{op})
	})
	return op, err
}

// ListOperations says which operations are wanted: those that all fields that are not empty agree with.
type ListOperations struct {
	Org    carrel.OrgID
	Target string // id of a box or image
	Image  string // name of images
	Page   Page
}

// ListOperations gives a page of operations, newest first.
func (s *Store) ListOperations(ctx context.Context, scope Scope, list ListOperations) ([]*Operation, string, error) {
	kind := "operations " + string(list.Org) + " " + list.Target + " " + list.Image
	size, before, err := list.Page.numbered(kind)
	if err != nil {
		return nil, "", err
	}
	var ops []*Operation
	next := ""
	err = s.read(ctx, "ListOperations", scope, func(t *tx) error {
		ops, next = nil, ""
		rows, err := t.ListOperations(ctx, db.ListOperationsParams{
			Org: string(list.Org), Target: list.Target, Image: list.Image, Before: before, PageSize: int32(size) + 1,
		})
		if err != nil {
			return err
		}
		for i, r := range rows {
			if i == size {
				next = numberedToken(kind, rows[i-1].Number)
				break
			}
			op, err := operationOf(r)
			if err != nil {
				return err
			}
			ops = append(ops, op)
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
