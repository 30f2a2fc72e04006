package store

import (
	"context"

	"carrel.dev/carrel/internal/carrel"
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
}

// CreateBox makes a box that is wanted running, and its operation. A name that is in use is refused with
// CodeExists, reason box_name_taken; a repeated request gives the first operation.
func (s *Store) CreateBox(ctx context.Context, scope Scope, box NewBox) (*Operation, error) {
	panic("not yet")
}

// GetBox reads one box by id.
func (s *Store) GetBox(ctx context.Context, scope Scope, id carrel.BoxID) (*Box, error) {
	panic("not yet")
}

// ResolveBox finds a box by its id, by the id of one of its runs, or by its name in org. A name means the box
// that has it now, else the newest that is being deleted.
func (s *Store) ResolveBox(ctx context.Context, scope Scope, org carrel.OrgID, ref string) (*Box, error) {
	panic("not yet")
}

// ListBoxes is a list to ask for.
type ListBoxes struct {
	Org         carrel.OrgID // empty: every organisation of the scope
	State       []carrel.State
	Template    string
	Owner       carrel.UserID
	Name        string
	Labels      map[string]string
	OrderBy     string // name, create_time, update_time, each with " desc" if wanted; empty: create_time desc
	ShowDeleted bool
	Page        Page
}

// ListBoxes gives one page and the token of the next, empty at the end. Pages neither repeat nor skip a box
// when others are made meanwhile.
func (s *Store) ListBoxes(ctx context.Context, scope Scope, list ListBoxes) ([]*Box, string, error) {
	panic("not yet")
}

// UpdateBox changes what is not nil.
type UpdateBox struct {
	Box       carrel.BoxID
	ETag      string // if set: refused with CodeAborted when the box has another one
	Name      *string
	Labels    *map[string]string
	Env       *map[string]string
	Resources *carrel.Resources
	// RaiseBoot makes a live run or remembered memory of older settings restart. Without it, new env and
	// resources hold from the next cold start.
	RaiseBoot bool
	// Check runs on the locked box; its error refuses the update.
	Check func(*Box) error
}

// UpdateBox changes the fields of a box and gives the box as it is then.
func (s *Store) UpdateBox(ctx context.Context, scope Scope, update UpdateBox) (*Box, error) {
	panic("not yet")
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
	panic("not yet")
}

// ChangedBoxes gives the boxes that changed since an earlier answer, deleted ones too, and the mark for the next
// call. With since 0 it gives every box that is not deleted. A box may be given again without having
// changed (compare Touched); none is left out. Org and box, where not empty, narrow it.
func (s *Store) ChangedBoxes(ctx context.Context, scope Scope, org carrel.OrgID, box carrel.BoxID, since int64) ([]*Box, int64, error) {
	panic("not yet")
}

// GetRun reads one run.
func (s *Store) GetRun(ctx context.Context, scope Scope, id carrel.RunID) (*Run, error) {
	panic("not yet")
}

// ListEvents gives a page of the events of a box, newest first.
func (s *Store) ListEvents(ctx context.Context, scope Scope, box carrel.BoxID, page Page) ([]Event, string, error) {
	panic("not yet")
}
