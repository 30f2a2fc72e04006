package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// NewBox is what CreateBox makes. Everything is validated and complete.
type NewBox struct {
	Request     Request
	Org         carrel.OrgID
	Name        string
	TemplateID  carrel.TemplateID // pinned
	ImageDigest string
	Resources   carrel.Resources
	Labels      map[string]string
	Env         map[string]string
	Region      string
	Idle        carrel.IdlePolicy // what differs from the template's
	// MaxBoxes is how many boxes Org may have, this one included; 0: any number. Requests at the same moment do not see
	// each other, so a few more may be let in.
	MaxBoxes int
}

// CreateBox makes a box that is wanted running, and its operation. A name that is in use is refused with
// CodeExists, reason box_name_taken, one box too many with CodeExhausted, reason too_many_boxes, and a template whose image was
// deleted with CodePrecondition, reason image_deleted; a repeated request gives the first operation.
func (s *Store) CreateBox(ctx context.Context, scope Scope, box NewBox) (*Operation, error) {
	if err := box.Request.check(); err != nil {
		return nil, err
	}
	id := carrel.NewBoxID()
	var op *Operation
	err := s.write(ctx, "CreateBox", scope, func(t *tx) error {
		var err error
		op, err = t.openOperation(ctx, box.Request, Operation{
			Org: box.Org, Verb: carrel.VerbCreate, TargetID: string(id), TargetName: box.Name, Generation: 1,
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
		_, err = t.InsertBox(ctx, db.InsertBoxParams{
			ID: id, OrgID: box.Org, TemplateID: box.TemplateID, Name: box.Name, OwnerID: scope.User, ImageDigest: box.ImageDigest,
			Resources: encode(box.Resources), DiskBytes: box.Resources.DiskBytes(), Labels: encodeMap(box.Labels), Env: encodeMap(box.Env),
			Region: box.Region, Idle: encode(box.Idle), IntentBy: t.actor(), Now: t.now,
		})
		if violates(err, "boxes_name") {
			return nameTaken(box.Name)
		}
		if lacksImage(err) {
			return carrel.Errorf(carrel.CodePrecondition, "image_deleted", "the image of this version of the template was deleted; use the newest version of the template, or push it again with an image that is there (`carrel image list`)")
		}
		if err != nil {
			return fmt.Errorf("insert the box: %w", err)
		}
		if err := t.event(ctx, box.Org, id, "", "created", "the box was created", t.actor()); err != nil {
			return err
		}
		if err := t.audit(ctx, box.Org, string(id), box.Name); err != nil {
			return err
		}
		t.wake(TopicBoxes)
		t.wake(TopicWatch)
		if op.Box, err = t.box(ctx, id); err != nil {
			return err
		}
		if look := t.lookAfter(op.Box); !look.IsZero() { // it has a time to live
			return t.SetLook(ctx, db.SetLookParams{BoxID: id, OrgID: box.Org, Due: &look, Now: t.now})
		}
		return nil
	})
	return op, err
}

func (t *tx) checkBoxes(ctx context.Context, box NewBox) error {
	if box.MaxBoxes <= 0 {
		return nil
	}
	n, err := t.CountBoxes(ctx, box.Org, int32(min(box.MaxBoxes, math.MaxInt32)))
	if err != nil {
		return fmt.Errorf("count the boxes: %w", err)
	}
	if n >= int64(box.MaxBoxes) {
		return carrel.Errorf(carrel.CodeExhausted, "too_many_boxes", "the organisation has %d boxes, and no more may be; delete one that nobody needs, or ask an operator to raise the limit", n)
	}
	return nil
}

func nameTaken(name string) error {
	e := carrel.Errorf(carrel.CodeExists, "box_name_taken", "there is a box called %q already; take another name, or delete that box first", name)
	e.Metadata = map[string]string{"name": name}
	return e
}

// GetBox reads one box by id.
func (s *Store) GetBox(ctx context.Context, scope Scope, id carrel.BoxID) (*Box, error) {
	var box *Box
	err := s.read(ctx, "GetBox", scope, func(t *tx) (err error) {
		box, err = t.box(ctx, id)
		return err
	})
	return box, err
}

// ResolveBox finds a box by its id, by the id of one of its runs, or by its name in org. A name means the box
// that has it now, else the newest that is being deleted.
func (s *Store) ResolveBox(ctx context.Context, scope Scope, org carrel.OrgID, ref string) (*Box, error) {
	var box *Box
	err := s.read(ctx, "ResolveBox", scope, func(t *tx) (err error) {
		id := carrel.BoxID(ref)
		switch carrel.IDKind(ref) {
		case 'b':
		case 'r':
			id, err = t.BoxOfRun(ctx, carrel.RunID(ref))
		default:
			id, err = t.BoxOfName(ctx, org, ref)
		}
		if err == nil {
			box, err = t.box(ctx, id)
		}
		if err == nil && box.Purpose != carrel.PurposeUser {
			box, err = nil, pgx.ErrNoRows
		}
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("box", ref)
		}
		return err
	})
	return box, err
}

// UpdateBox changes what is not nil. New env and resources hold from the next start that is not from memory.
type UpdateBox struct {
	Box       carrel.BoxID
	ETag      string // if set: refused with CodeAborted when the box has another one
	Name      *string
	Labels    *map[string]string
	Env       *map[string]string
	Resources *carrel.Resources
	Idle      *carrel.IdlePolicy
	// Check runs on the locked box; its error refuses the update.
	Check func(*Box) error
}

// UpdateBox changes the fields of a box and gives the box as it is then.
func (s *Store) UpdateBox(ctx context.Context, scope Scope, update UpdateBox) (*Box, error) {
	var box *Box
	err := s.write(ctx, "UpdateBox", scope, func(t *tx) error {
		var err error
		if box, err = t.lockBox(ctx, update.Box); err != nil {
			return err
		}
		if err := checkBox(box, update.ETag, update.Check); err != nil {
			return err
		}
		if box.Intent == carrel.IntentDeleted {
			return carrel.Errorf(carrel.CodePrecondition, "box_deleted", "the box %q is being deleted and cannot be changed any more", box.Name)
		}
		setIf(&box.Name, update.Name)
		setIf(&box.Labels, update.Labels)
		setIf(&box.Env, update.Env)
		setIf(&box.Resources, update.Resources)
		setIf(&box.Idle, update.Idle)
		_, err = t.UpdateBox(ctx, db.UpdateBoxParams{
			ID: box.ID, Name: box.Name, Labels: encodeMap(box.Labels), Env: encodeMap(box.Env), Resources: encode(box.Resources),
			DiskBytes: box.Resources.DiskBytes(), NextDue: t.dueAfter(&box.BoxView), UpdatedAt: t.now, Idle: encode(box.Idle),
		})
		if violates(err, "boxes_name") {
			return nameTaken(box.Name)
		}
		if err != nil {
			return fmt.Errorf("update the box: %w", err)
		}
		if update.Idle != nil {
			if box.Live() {
				t.raise(box.Run.NodeID) // it measures against the threshold
			}
			if err := t.lookNow(ctx, box); err != nil {
				return err
			}
		}
		if err := t.audit(ctx, box.Org, string(box.ID), box.Name); err != nil {
			return err
		}
		box, err = t.box(ctx, box.ID)
		return err
	})
	return box, err
}

func setIf[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func checkBox(box *Box, etag string, check func(*Box) error) error {
	if etag != "" && etag != box.ETag {
		return carrel.Errorf(carrel.CodeAborted, "box_changed", "the box %q was changed by somebody else meanwhile; read it again and repeat what is still wanted", box.Name)
	}
	if check != nil {
		return check(box)
	}
	return nil
}

// SetIntent is a verb on a box.
type SetIntent struct {
	Request Request
	Box     carrel.BoxID
	Verb    carrel.Verb
	Intent  carrel.Intent
	// Restart raises the boot generation: whatever lives is booted anew.
	Restart bool
	// Cold gives up the memory of a paused box, and raises the boot generation too.
	Cold bool
	ETag string // if set: refused with CodeAborted when the box has another one
	// Check runs on the locked box; its error refuses the verb.
	Check func(*Box) error
}

// SetIntent writes what the user wants now, raises the generation, and raises the revision of the node of the
// live run, in one transaction. A repeated request gives the first operation.
func (s *Store) SetIntent(ctx context.Context, scope Scope, set SetIntent) (*Operation, error) {
	if err := set.Request.check(); err != nil {
		return nil, err
	}
	var op *Operation
	err := s.write(ctx, "SetIntent", scope, func(t *tx) error {
		box, err := t.lockBox(ctx, set.Box)
		if err != nil {
			return err
		}
		opened := Operation{Org: box.Org, Verb: set.Verb, TargetID: string(box.ID), TargetName: box.Name, Generation: box.Generation + 1}
		if set.Restart || set.Cold {
			opened.BootGeneration = box.BootGeneration + 1
		}
		op, err = t.openOperation(ctx, set.Request, opened)
		if err != nil {
			return err
		}
		if op.Replayed {
			return t.fillOperations(ctx, []*Operation{op})
		}
		if err := checkBox(box, set.ETag, set.Check); err != nil {
			return err
		}
		if box.Intent == carrel.IntentDeleted && set.Intent != carrel.IntentDeleted {
			return carrel.Errorf(carrel.CodePrecondition, "box_deleted", "the box %q is being deleted; that cannot be taken back", box.Name)
		}
		runs, err := t.settleOperations(ctx, op, box)
		if err != nil {
			return err
		}
		wasIdle := box.markedIdle()
		box.Intent, box.IntentBy, box.IdleSince, box.IntentAt = set.Intent, t.actor(), time.Time{}, t.now
		box.Generation++
		if set.Restart || set.Cold {
			box.BootGeneration++
		}
		if set.Cold && box.HasMemory() {
			if _, err := t.RetireMemory(ctx, t.now, box.Snapshot.ID, box.ID); err != nil {
				return fmt.Errorf("give up the memory: %w", err)
			}
			box.Snapshot.MemoryRetired = true
		}
		if box.Live() {
			t.raise(box.Run.NodeID)
		}
		if err := t.setIntent(ctx, box); err != nil {
			return err
		}
		if wasIdle {
			if err := t.lookNow(ctx, box); err != nil {
				return err
			}
		}
		if err := t.event(ctx, box.Org, box.ID, "", "asked", string(set.Verb)+" was asked for", t.actor()); err != nil {
			return err
		}
		if err := t.audit(ctx, box.Org, string(box.ID), string(set.Verb)+" "+box.Name); err != nil {
			return err
		}
		if status := carrel.StatusOf(op.View(), &box.BoxView, runs); status.Done {
			if err := t.settle(ctx, op, status); err != nil {
				return err
			}
		}
		return t.fillOperations(ctx, []*Operation{op})
	})
	return op, err
}

// ChangedBoxes gives the boxes that changed since an earlier answer, deleted ones too, and the mark for the next
// call. With since 0 it gives every box that is not deleted. A box may be given again without having
// changed (compare Touched); none is left out. Org and box, where not empty, narrow it.
func (s *Store) ChangedBoxes(ctx context.Context, scope Scope, org carrel.OrgID, box carrel.BoxID, since int64) ([]*Box, int64, error) {
	var boxes []*Box
	var mark int64
	err := s.read(ctx, "ChangedBoxes", scope, func(t *tx) (err error) {
		from, next, err := t.mark(ctx, since)
		if err != nil {
			return err
		}
		mark = next
		boxes, err = t.boxes(ctx, `where b.purpose = '' and ($1 = '' or b.org_id = $1) and ($2 = '' or b.id = $2)
			and (b.changed_xid >= $3 or $3 = 0) and ($3 > 0 or b.deleted_at is null) order by b.id`, string(org), string(box), from)
		return err
	})
	return boxes, mark, err
}

// mark gives the oldest transaction that was not over when t's snapshot was taken: whatever t does not see has
// this number or a later one. An older mark from before the database was restored means: everything.
func (t *tx) mark(ctx context.Context, since int64) (from, mark int64, err error) {
	var next int64
	err = t.raw.QueryRow(ctx, `select pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint`).Scan(&mark, &next)
	if err != nil {
		return 0, 0, fmt.Errorf("read the mark of changes: %w", err)
	}
	if since > next {
		since = 0
	}
	return since, mark, nil
}

// GetRun reads one run.
func (s *Store) GetRun(ctx context.Context, scope Scope, id carrel.RunID) (*Run, error) {
	var run *Run
	err := s.read(ctx, "GetRun", scope, func(t *tx) error {
		r, err := t.GetRun(ctx, id)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("run", string(id))
		}
		if err != nil {
			return err
		}
		run = &Run{
			RunView: carrel.RunView{
				ID: r.ID, NodeID: r.NodeID, Epoch: r.Epoch, BootGeneration: r.BootGeneration, WithMemory: r.WithMemory, Phase: r.Phase,
				Generation: r.Generation, Reason: r.Reason, Message: r.Message, Transient: r.Transient, FailedOrder: r.FailedOrder,
			},
			Org: r.OrgID, Box: r.BoxID, From: r.FromSnapshot, Saved: r.SavedSnapshot, StartedFrom: r.StartedFrom, Notice: r.Notice,
			CreatedAt: r.CreatedAt.UTC(), EndedAt: timeOf(r.EndedAt),
		}
		return errors.Join(decode(r.Phases, &run.Phases, "phases"), decode(r.Spec, &run.Spec, "a run's spec"))
	})
	return run, err
}

// ListEvents gives a page of the events of a box, newest first.
func (s *Store) ListEvents(ctx context.Context, scope Scope, box carrel.BoxID, page Page) ([]Event, string, error) {
	size, before, err := page.numbered("events " + string(box))
	if err != nil {
		return nil, "", err
	}
	var events []Event
	var next string
	err = s.read(ctx, "ListEvents", scope, func(t *tx) error {
		events, next = nil, ""
		if _, err := t.box(ctx, box); err != nil {
			return err
		}
		rows, err := t.ListEvents(ctx, box, before, int32(size)+1)
		if err != nil {
			return err
		}
		for i, r := range rows {
			if i == size {
				next = numberedToken("events "+string(box), rows[i-1].Number)
				break
			}
			events = append(events, Event{ID: r.ID, Org: r.OrgID, Box: r.BoxID, Run: r.RunID, At: r.At.UTC(), Kind: r.Kind, Message: r.Message, Actor: r.Actor})
		}
		return nil
	})
	return events, next, err
}
