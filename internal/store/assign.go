package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// AssignRun is a run to make, with the box as the caller saw it.
type AssignRun struct {
	Box        carrel.BoxID
	Node       carrel.NodeID
	Epoch      int64 // of the box as it was seen
	Generation int64 // of the box as it was seen
	// Snapshot to begin from: the newest of the box, on this node. Empty: the box has none.
	Snapshot   carrel.SnapshotID
	WithMemory bool
	// Clone is the snapshot of a prebuild on this node, with whose memory a box begins that has no snapshot of its own. Empty: it
	// begins fresh.
	Clone carrel.SnapshotID
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
	results, err := s.AssignRuns(ctx, lease, []AssignRun{a})
	if err != nil {
		return "", err
	}
	return results[0].Run, results[0].Err
}

// AssignRuns is AssignRun for several boxes in one transaction. The error concerns all of them.
func (s *Store) AssignRuns(ctx context.Context, lease Lease, as []AssignRun) ([]AssignResult, error) {
	if len(as) == 0 {
		return nil, nil
	}
	var results []AssignResult
	err := s.write(ctx, "AssignRun", SystemScope(), func(t *tx) error {
		results = make([]AssignResult, len(as))
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		var boxIDs, nodeIDs []string
		for _, a := range as {
			boxIDs = append(boxIDs, string(a.Box))
			nodeIDs = append(nodeIDs, string(a.Node))
		}
		slices.Sort(nodeIDs)
		nodeIDs = slices.Compact(nodeIDs)
		if _, err := t.LockBoxes(ctx, boxIDs); err != nil {
			return fmt.Errorf("lock the boxes: %w", err)
		}
		clones, err := t.lockClones(ctx, as)
		if err != nil {
			return err
		}
		// The node's row orders everything that takes room on it, so the sums below are true until the commit.
		if _, err := t.LockNodes(ctx, nodeIDs); err != nil {
			return fmt.Errorf("lock the nodes: %w", err)
		}
		cluster, err := t.cluster(ctx)
		if err != nil {
			return err
		}
		list, err := t.boxes(ctx, "where b.id = any ($1)", boxIDs)
		if err != nil {
			return err
		}
		boxes := map[carrel.BoxID]*Box{}
		for _, b := range list {
			boxes[b.ID] = b
		}
		nodes := map[carrel.NodeID]*Node{}
		for _, id := range nodeIDs {
			found, err := t.nodes(ctx, carrel.NodeID(id))
			if err != nil {
				return err
			}
			if len(found) == 1 {
				nodes[found[0].ID] = &found[0]
			}
		}
		for i, a := range as {
			results[i], err = t.assign(ctx, cluster, a, boxes[a.Box], nodes[a.Node], clones[a.Clone])
			if err != nil {
				return fmt.Errorf("assign box %s: %w", a.Box, err)
			}
			delete(boxes, a.Box) // a second assignment of the same box sees one that changed
		}
		return nil
	})
	return results, err
}

// assign makes one run if box and node are as they must be. Both are locked; the node is kept true for those that follow.
func (t *tx) assign(ctx context.Context, cluster Cluster, a AssignRun, b *Box, n *Node, clone db.LockClonesRow) (AssignResult, error) {
	refuse := func(err error, why string) (AssignResult, error) {
		return AssignResult{Err: fmt.Errorf("%w: %s", err, why)}, nil
	}
	switch {
	case b == nil:
		return refuse(ErrChanged, "the box is gone or was assigned already")
	case b.Epoch != a.Epoch || b.Generation != a.Generation:
		return refuse(ErrChanged, "the box has another epoch or generation")
	case b.Next() != carrel.ActAssign && b.Next() != carrel.ActRetry:
		return refuse(ErrChanged, "the box has a live run or is not wanted running")
	case (b.Snapshot == nil) != (a.Snapshot == ""):
		return refuse(ErrChanged, "the box has another snapshot")
	case b.Snapshot != nil && (b.Snapshot.ID != a.Snapshot || b.Snapshot.NodeID != a.Node):
		return refuse(ErrChanged, "the box has another snapshot, or has it on another node")
	case a.WithMemory && (!b.HasMemory() || b.Snapshot.BootGeneration < b.BootGeneration):
		return refuse(ErrChanged, "the snapshot's memory cannot be used")
	case a.Clone != "" && (b.Snapshot != nil || !b.Cloneable || clone.ID != a.Clone || clone.NodeID != a.Node || clone.Recipe != b.Recipe):
		return refuse(ErrChanged, "the box cannot begin from this prebuild")
	case n == nil || !n.Schedulable || n.FactsAt.IsZero():
		return refuse(ErrNoRoom, "the node takes no runs")
	}
	spec, err := t.runSpec(ctx, a, b)
	if err != nil {
		return AssignResult{}, err
	}
	if !slices.Contains(n.Facts.Images, spec.ImageDigest) {
		return refuse(ErrNoRoom, "the node does not hold the image")
	}
	disk := b.Resources.DiskBytes()
	if b.HomeNode == n.ID && b.Purpose != carrel.PurposePrebuild {
		disk = 0 // it is reserved already
	}
	switch {
	case spec.Resources.MemoryBytes > n.FreeMemoryBytes:
		return refuse(ErrNoRoom, "memory")
	case spec.Resources.CPUMillis > n.FreeCPUMillis:
		return refuse(ErrNoRoom, "cpu")
	case disk > 0 && disk > n.FreeDiskBytes:
		return refuse(ErrNoRoom, "disk")
	}
	n.FreeMemoryBytes -= spec.Resources.MemoryBytes
	n.FreeCPUMillis -= spec.Resources.CPUMillis
	n.FreeDiskBytes -= disk

	run, from := carrel.NewRunID(), a.Snapshot
	if a.Clone != "" {
		from = a.Clone
	}
	// Epochs are ordered by (incarnation, n): those of a later incarnation are above all earlier ones.
	epoch := max(b.Epoch, (cluster.Incarnation-1)<<40) + 1
	err = t.InsertRun(ctx, db.InsertRunParams{
		ID: run, OrgID: b.Org, BoxID: b.ID, NodeID: n.ID, Epoch: epoch, BootGeneration: b.BootGeneration, Spec: encode(spec),
		CpuMillis: spec.Resources.CPUMillis, MemoryBytes: spec.Resources.MemoryBytes, FromSnapshot: from, WithMemory: a.WithMemory,
		CreatedAt: t.now, Generation: b.Generation,
		Phases: encode([]carrel.PhaseAt{{Phase: carrel.PhaseAssigned, At: t.now, Generation: b.Generation}}),
	})
	if err != nil {
		return AssignResult{}, fmt.Errorf("insert the run: %w", err)
	}
	b.Run = &carrel.RunView{ID: run, NodeID: n.ID, Epoch: epoch, BootGeneration: b.BootGeneration, Phase: carrel.PhaseAssigned, Generation: b.Generation}
	err = t.SetPlaced(ctx, db.SetPlacedParams{ID: b.ID, Epoch: epoch, HomeNode: &n.ID, NextDue: t.dueAfter(&b.BoxView), UpdatedAt: t.now})
	if err != nil {
		return AssignResult{}, fmt.Errorf("place the box: %w", err)
	}
	message := a.Message
	if message == "" {
		message = "the box was placed on node " + n.Name
	}
	t.raise(n.ID)
	return AssignResult{Run: run, Epoch: epoch}, t.event(ctx, b.Org, b.ID, run, "placed", message, "reconcile")
}

// runSpec is what the run will be like: the box as it is now, or for a run with memory, exactly what the memory
// was taken of.
func (t *tx) runSpec(ctx context.Context, a AssignRun, b *Box) (RunSpec, error) {
	var spec RunSpec
	if a.WithMemory {
		data, err := t.RunSpec(ctx, a.Snapshot)
		if err != nil {
			return spec, fmt.Errorf("read the spec of the snapshot's run: %w", err)
		}
		err = decode(data, &spec, "a run's spec")
		spec.BoxName, spec.Clone, spec.Prepare = b.Name, false, nil
		return spec, err
	}
	row, err := t.TemplateByID(ctx, b.TemplateID)
	if errors.Is(err, pgx.ErrNoRows) {
		return spec, fmt.Errorf("template %s is missing", b.TemplateID)
	}
	if err != nil {
		return spec, fmt.Errorf("read the template: %w", err)
	}
	tpl, err := templateOf(templateRow(row))
	spec = RunSpec{BoxName: b.Name, ImageDigest: b.ImageDigest, Resources: b.Resources, Env: b.Env, Sudo: tpl.Sudo, Startup: tpl.Startup, Clone: a.Clone != ""}
	if a.Snapshot == "" {
		spec.Prepare = tpl.Prebuild
		if b.Purpose == carrel.PurposeUser {
			spec.Prepare = tpl.Prebuild.ForFresh()
		}
	}
	return spec, err
}

// lockClones keeps the prebuilds' snapshots that boxes are to begin from until the commit.
func (t *tx) lockClones(ctx context.Context, as []AssignRun) (map[carrel.SnapshotID]db.LockClonesRow, error) {
	var ids []string
	for _, a := range as {
		if a.Clone != "" {
			ids = append(ids, string(a.Clone))
		}
	}
	if len(ids) == 0 {
		return nil, nil //nolint:nilnil // an empty map
	}
	rows, err := t.LockClones(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("lock the prebuilds: %w", err)
	}
	found := map[carrel.SnapshotID]db.LockClonesRow{}
	for _, r := range rows {
		found[r.ID] = r
	}
	return found, nil
}
