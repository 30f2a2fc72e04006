package store

import (
	"context"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// AcquireLease takes the lease if it is free, ended, or held by the same holder (then with a new term). False:
// somebody else has it, and the lease says who and until when.
func (s *Store) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, bool, error) {
	panic("not yet")
}

// RenewLease makes it last ttl from now, or answers ErrLeaseLost.
func (s *Store) RenewLease(ctx context.Context, lease Lease, ttl time.Duration) (Lease, error) {
	panic("not yet")
}

// ReleaseLease lets others have it at once. A lease that is lost already is no error.
func (s *Store) ReleaseLease(ctx context.Context, lease Lease) error { panic("not yet") }

// DueBoxes gives the boxes of a shard (0 ≤ shard < shards) for which a reconciler may have something to do now, longest
// waiting first, at most limit.
func (s *Store) DueBoxes(ctx context.Context, shard, shards, limit int) ([]*Box, error) {
	panic("not yet")
}

// NextDue is when the next box of the shard becomes due; zero: none is waiting.
func (s *Store) NextDue(ctx context.Context, shard, shards int) (time.Time, error) {
	panic("not yet")
}

// BoxesOnSilentNodes gives the boxes with a live run on a node that was last seen before a time, at most limit.
func (s *Store) BoxesOnSilentNodes(ctx context.Context, before time.Time, limit int) ([]*Box, error) {
	panic("not yet")
}

// Nodes gives every node with what is free on it and which images it holds, by name.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) { panic("not yet") }

// AssignRun is a run to make, with the box as the caller saw it.
type AssignRun struct {
	Box        carrel.BoxID
	Node       carrel.NodeID
	Epoch      int64 // of the box as it was seen
	Generation int64 // of the box as it was seen
	// Snapshot to begin from: the newest of the box, on this node. Empty: the box has none.
	Snapshot   carrel.SnapshotID
	WithMemory bool
	// Message of the event, such as why this node was taken; empty: a plain one.
	Message string
}

// AssignResult is one answer of AssignRuns.
type AssignResult struct {
	Run   carrel.RunID
	Epoch int64
	Err   error // ErrChanged, or ErrNoRoom; the others are not affected
}

// AssignRun makes the next run of a box on a node: only under the lease, if the box wants to run and is as it was seen, and if the
// node is schedulable and has the image, the snapshot and the capacity. It raises the node's revision.
func (s *Store) AssignRun(ctx context.Context, lease Lease, a AssignRun) (carrel.RunID, error) {
	panic("not yet")
}

// AssignRuns is AssignRun for several boxes in one transaction. The error concerns all of them.
func (s *Store) AssignRuns(ctx context.Context, lease Lease, as []AssignRun) ([]AssignResult, error) {
	panic("not yet")
}

// RecordFailure writes the reconciler's verdict on a box as it was seen (touched). A transient failure is due again at
// RetryAt, a permanent one with the next change. ErrChanged: the box changed since.
func (s *Store) RecordFailure(ctx context.Context, lease Lease, box carrel.BoxID, touched int64, f carrel.Failure) error {
	panic("not yet")
}

// Settle says that nothing is to be done for the box as it was seen, until nextDue (zero: until it changes).
// With clearFailure its failure is history. ErrChanged: the box changed since.
func (s *Store) Settle(ctx context.Context, lease Lease, box carrel.BoxID, touched int64, clearFailure bool, nextDue time.Time) error {
	panic("not yet")
}

// RetireMemory gives up the memory of a box's newest snapshot for good; its files stay.
func (s *Store) RetireMemory(ctx context.Context, lease Lease, box carrel.BoxID, snapshot carrel.SnapshotID) error {
	panic("not yet")
}

// PurgeBox makes a box whose deletion was asked for, and which has no live run, deleted: its snapshots are doomed.
func (s *Store) PurgeBox(ctx context.Context, lease Lease, box carrel.BoxID) error { panic("not yet") }

// DueChores gives the chores that are not finished and not placed, or placed on a node that was last seen before a time.
func (s *Store) DueChores(ctx context.Context, silentBefore time.Time) ([]Chore, error) {
	panic("not yet")
}

// AssignChore places a chore that the caller saw on node was (empty: not placed) on a node.
func (s *Store) AssignChore(ctx context.Context, lease Lease, chore carrel.ChoreID, was, node carrel.NodeID) error {
	panic("not yet")
}

// FailChore ends a chore that cannot be done, and its image.
func (s *Store) FailChore(ctx context.Context, lease Lease, chore carrel.ChoreID, f carrel.Failure) error {
	panic("not yet")
}

// Prune forgets what was deleted before a time: boxes with their runs, events and operations, tokens that have
// ended, and join tokens. At most limit boxes; it answers how many.
func (s *Store) Prune(ctx context.Context, lease Lease, before time.Time, limit int) (int, error) {
	panic("not yet")
}
