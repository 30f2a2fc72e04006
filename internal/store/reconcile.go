package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// AcquireLease takes the lease if it is free, ended, or held by the same holder (then with a new term). False:
// somebody else has it, and the lease says who and until when.
func (s *Store) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, bool, error) {
	var lease Lease
	taken := false
	err := s.write(ctx, "AcquireLease", SystemScope(), func(t *tx) error {
		r, err := t.TakeLease(ctx, name, holder, t.now.Add(ttl), t.now)
		taken = err == nil
		if errors.Is(err, pgx.ErrNoRows) {
			r, err = t.GetLease(ctx, name)
		}
		lease = Lease{Name: r.Name, Holder: r.Holder, Term: r.Term, Expires: r.ExpiresAt.UTC()}
		return err
	})
	return lease, taken && err == nil, err
}

// RenewLease makes it last ttl from now, or answers ErrLeaseLost.
func (s *Store) RenewLease(ctx context.Context, lease Lease, ttl time.Duration) (Lease, error) {
	err := s.write(ctx, "RenewLease", SystemScope(), func(t *tx) error {
		renewed := t.now.Add(ttl)
		n, err := t.RenewLease(ctx, db.RenewLeaseParams{ExpiresAt: renewed, Name: lease.Name, Holder: lease.Holder, Term: lease.Term, Now: t.now})
		if err == nil && n == 0 {
			return ErrLeaseLost
		}
		lease.Expires = renewed
		return err
	})
	return lease, err
}

// ReleaseLease lets others have it at once. A lease that is lost already is no error.
func (s *Store) ReleaseLease(ctx context.Context, lease Lease) error {
	return s.write(ctx, "ReleaseLease", SystemScope(), func(t *tx) error {
		return t.ReleaseLease(ctx, t.now, lease.Name, lease.Holder, lease.Term)
	})
}

// DueBoxes gives the boxes of a shard (0 ≤ shard < shards ≤ 256) for which a reconciler may have something to do now, longest
// waiting first, at most limit.
func (s *Store) DueBoxes(ctx context.Context, shard, shards, limit int) ([]*Box, error) {
	var boxes []*Box
	err := s.read(ctx, "DueBoxes", SystemScope(), func(t *tx) (err error) {
		boxes, err = t.boxes(ctx, "where b.next_due <= $1 and b.shard % $2 = $3 order by b.next_due limit $4", t.now, shards, shard, limit)
		return err
	})
	return boxes, err
}

// NextDue is when the next box of the shard becomes due; zero: none is waiting.
func (s *Store) NextDue(ctx context.Context, shard, shards int) (time.Time, error) {
	var due time.Time
	err := s.read(ctx, "NextDue", SystemScope(), func(t *tx) error {
		at, err := t.NextDue(ctx, int32(shards), int32(shard))
		if errors.Is(err, pgx.ErrNoRows) {
			due = time.Time{}
			return nil
		}
		due = at.UTC()
		return err
	})
	return due, err
}

// BoxesOnSilentNodes gives the boxes with a live run on a node that was last seen before a time, at most limit.
func (s *Store) BoxesOnSilentNodes(ctx context.Context, before time.Time, limit int) ([]*Box, error) {
	var boxes []*Box
	err := s.read(ctx, "BoxesOnSilentNodes", SystemScope(), func(t *tx) (err error) {
		boxes, err = t.boxes(ctx, `where b.id in (
			select live.box_id from runs live join nodes n on n.id = live.node_id
			where live.ended_at is null and n.last_seen < $1 order by live.box_id limit $2
		) order by b.id`, before, limit)
		return err
	})
	return boxes, err
}

// Nodes gives every node with what is free on it and which images it holds, by name.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) {
	var nodes []Node
	err := s.read(ctx, "Nodes", SystemScope(), func(t *tx) (err error) {
		if nodes, err = t.nodes(ctx, ""); err != nil {
			return err
		}
		prebuilds, err := t.prebuilds(ctx)
		if err != nil {
			return err
		}
		for i := range nodes {
			for _, p := range prebuilds {
				if p.Node == nodes[i].ID && p.Snapshot != "" {
					nodes[i].Prebuilds = append(nodes[i].Prebuilds, p)
				}
			}
		}
		return nil
	})
	return nodes, err
}

// nodes reads one node, or all of them.
func (t *tx) nodes(ctx context.Context, id carrel.NodeID) ([]Node, error) {
	rows, err := t.NodesWithUse(ctx, string(id))
	if err != nil {
		return nil, fmt.Errorf("read nodes: %w", err)
	}
	nodes := make([]Node, len(rows))
	for i, r := range rows {
		n := Node{
			ID: r.ID, Name: r.Name, Region: r.Region, Schedulable: r.Schedulable, FactsAt: timeOf(r.FactsAt), LastSeen: r.LastSeen.UTC(),
			Revision: r.Revision, CreatedAt: r.CreatedAt.UTC(), RemovedAt: timeOf(r.RemovedAt), Runs: int(r.Runs), Waking: int(r.Waking), UsedCPUMillis: r.CpuMillis, UsedMemoryBytes: r.MemoryBytes,
			ReservedDiskBytes: r.DiskBytes,
		}
		if err := decode(r.Facts, &n.Facts, "a node's facts"); err != nil {
			return nil, err
		}
		n.Facts.Images = r.Images
		n.FreeCPUMillis = int64(float64(n.Facts.CPUMillis)*t.s.cfg.CPUOvercommit) - n.UsedCPUMillis
		n.FreeMemoryBytes = n.Facts.MemoryBytes - n.UsedMemoryBytes
		n.FreeDiskBytes = min(n.Facts.DiskBytes-n.ReservedDiskBytes, n.Facts.DiskFreeBytes)
		nodes[i] = n
	}
	return nodes, nil
}

// RecordFailure writes the reconciler's verdict on a box as it was seen (touched). A transient failure is due again at
// RetryAt, a permanent one with the next change. ErrChanged: the box changed since.
func (s *Store) RecordFailure(ctx context.Context, lease Lease, box carrel.BoxID, touched int64, f carrel.Failure) error {
	return s.writeSeen(ctx, "RecordFailure", lease, box, touched, func(t *tx, b *Box) error {
		var due *time.Time
		if f.Transient {
			due = timePtr(f.RetryAt)
		}
		t.wake(TopicWatch)
		if f.Reason == carrel.ReasonNoRoom || b.Purpose != carrel.PurposeUser {
			t.wake(TopicPrepare) // a warm pool may give way
		}
		if b.Failure == nil || b.Failure.Reason != f.Reason || b.Failure.Generation != f.Generation || b.Failure.Transient != f.Transient {
			if err := t.event(ctx, b.Org, b.ID, "", "failed", f.Message, "reconcile"); err != nil {
				return err
			}
		}
		return t.SetFailure(ctx, box, encode(f), due, t.now)
	})
}

// Settle says that nothing is to be done for the box as it was seen, until nextDue (zero: until it changes).
// With clearFailure its failure is history. ErrChanged: the box changed since.
func (s *Store) Settle(ctx context.Context, lease Lease, box carrel.BoxID, touched int64, clearFailure bool, nextDue time.Time) error {
	return s.writeSeen(ctx, "Settle", lease, box, touched, func(t *tx, b *Box) error {
		if clearFailure {
			t.wake(TopicWatch)
			return t.SetFailure(ctx, box, nil, timePtr(nextDue), t.now)
		}
		return t.SetNextDue(ctx, box, timePtr(nextDue), t.now)
	})
}

// writeSeen writes under the lease to a box that must be as the caller saw it.
func (s *Store) writeSeen(ctx context.Context, method string, lease Lease, box carrel.BoxID, touched int64, fn func(*tx, *Box) error) error {
	return s.write(ctx, method, SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		b, err := t.lockBox(ctx, box)
		if carrel.CodeOf(err) == carrel.CodeNotFound || err == nil && b.Touched != touched {
			return ErrChanged
		}
		if err != nil {
			return err
		}
		return fn(t, b)
	})
}

// RetireMemory gives up the memory of a box's newest snapshot for good; its files stay. ErrChanged: that is not its newest
// snapshot, or the box has a live run.
func (s *Store) RetireMemory(ctx context.Context, lease Lease, box carrel.BoxID, snapshot carrel.SnapshotID) error {
	return s.write(ctx, "RetireMemory", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		b, err := t.lockBox(ctx, box)
		if err != nil {
			return err
		}
		if b.Live() || b.Snapshot == nil || b.Snapshot.ID != snapshot {
			return ErrChanged
		}
		if !b.HasMemory() {
			return nil
		}
		if b.Next() != carrel.ActRetireMemory {
			return ErrChanged // a resume came between the plan and this
		}
		if _, err := t.RetireMemory(ctx, t.now, snapshot, box); err != nil {
			return fmt.Errorf("retire the memory: %w", err)
		}
		b.Snapshot.MemoryRetired = true
		if err := t.event(ctx, b.Org, box, "", "memory_retired", "the memory was given up; the files stay", "reconcile"); err != nil {
			return err
		}
		return t.SetNextDue(ctx, box, t.dueAfter(&b.BoxView), t.now)
	})
}

// PurgeBox makes a box whose deletion was asked for, and which has no live run, deleted: its snapshots are doomed. It may be called
// again. ErrChanged: the box is not like that.
func (s *Store) PurgeBox(ctx context.Context, lease Lease, box carrel.BoxID) error {
	return s.write(ctx, "PurgeBox", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		b, err := t.lockBox(ctx, box)
		if err != nil {
			return err
		}
		if b.Deleted {
			return nil
		}
		if b.Intent != carrel.IntentDeleted || b.Live() {
			return ErrChanged
		}
		nodes, err := t.DoomSnapshots(ctx, t.now, box, "")
		if err != nil {
			return fmt.Errorf("doom the snapshots: %w", err)
		}
		for _, node := range nodes {
			t.raise(node)
		}
		if err := t.event(ctx, b.Org, box, "", "deleted", "the box was deleted", "reconcile"); err != nil {
			return err
		}
		if err := t.raiseHolders(ctx, b.ImageDigest); err != nil {
			return err
		}
		t.wake(TopicWatch)
		t.wake(TopicBoxes) // its room is free
		return t.SetDeleted(ctx, &t.now, box)
	})
}

// DueChores gives the chores that are not finished and not placed, or placed on a node that was last seen before a time.
func (s *Store) DueChores(ctx context.Context, silentBefore time.Time) ([]Chore, error) {
	var chores []Chore
	err := s.read(ctx, "DueChores", SystemScope(), func(t *tx) error {
		chores = nil
		rows, err := t.DueChores(ctx, silentBefore)
		for _, r := range rows {
			chores = append(chores, choreOf(choreRow(r)))
		}
		return err
	})
	return chores, err
}

// AssignChore places a chore that the caller saw on node was (empty: not placed) on a node.
func (s *Store) AssignChore(ctx context.Context, lease Lease, chore carrel.ChoreID, was, node carrel.NodeID) error {
	return s.write(ctx, "AssignChore", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		c, err := t.LockChore(ctx, chore)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrChanged
		}
		if err != nil {
			return fmt.Errorf("lock the chore: %w", err)
		}
		if c.FinishedAt != nil || nodeOf(c.NodeID) != was {
			return ErrChanged
		}
		if was != "" {
			t.raise(was)
		}
		t.raise(node)
		t.wake(TopicImages)
		return t.PlaceChore(ctx, chore, &node, &t.now)
	})
}

// FailChore ends a chore that cannot be done, and its image.
func (s *Store) FailChore(ctx context.Context, lease Lease, chore carrel.ChoreID, f carrel.Failure) error {
	return s.write(ctx, "FailChore", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		return t.endChore(ctx, "", ChoreReport{Chore: chore, Done: true, ErrorReason: f.Reason, ErrorMessage: f.Message}, f.NextStep)
	})
}

// failedImageKept is how long an image that could not be made is listed: long enough to be seen, and nothing refers to it.
const failedImageKept = 24 * time.Hour

// Prune forgets what was deleted before a time: boxes with their runs, events and operations, tokens that have
// ended, and join tokens; and images that failed a day ago, whose operations stay. At most limit of each; it answers how many boxes. Nodes that
// hold images that nothing needs are told once more.
func (s *Store) Prune(ctx context.Context, lease Lease, before time.Time, limit int) (int, error) {
	n := 0
	err := s.write(ctx, "Prune", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		boxes, err := t.PrunableBoxes(ctx, &before, int32(limit))
		if err != nil {
			return fmt.Errorf("find what can be forgotten: %w", err)
		}
		n = len(boxes)
		ids := toStrings(boxes)
		slices.Sort(ids)
		return errors.Join(t.PruneOperations(ctx, ids), t.PruneBoxes(ctx, ids), t.PruneTokens(ctx, &before), t.PruneJoinTokens(ctx, before),
			t.pruneImages(ctx, t.now.Add(-failedImageKept), limit), t.raiseUnneeded(ctx))
	})
	return n, err
}

// pruneImages forgets images that failed before a time.
func (t *tx) pruneImages(ctx context.Context, before time.Time, limit int) error {
	images, err := t.PrunableImages(ctx, &before, int32(limit))
	if err != nil || len(images) == 0 {
		return err
	}
	return t.forgetImages(ctx, toStrings(images))
}

// forgetImages deletes images and their chores, after it wrote down what their operations tell.
func (t *tx) forgetImages(ctx context.Context, ids []string) error {
	rows, err := t.OperationsOn(ctx, ids)
	if err != nil {
		return fmt.Errorf("read the operations of images: %w", err)
	}
	ops := make([]*Operation, len(rows))
	for i, r := range rows {
		if ops[i], err = operationOf(r); err != nil {
			return err
		}
	}
	if err := t.fillOperations(ctx, ops); err != nil {
		return err
	}
	for _, op := range ops {
		if err := t.settle(ctx, op, op.Status()); err != nil {
			return err
		}
	}
	return errors.Join(t.PruneChores(ctx, ids), t.PruneImages(ctx, ids))
}
