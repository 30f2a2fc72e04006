package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// Report is what a node tells.
type Report struct {
	Runs    []RunReport
	Chores  []ChoreReport
	Dropped []carrel.SnapshotID
	Facts   *NodeFacts // nil: as before
	// Activities are what changed in the use of its runs.
	Activities []RunActivity
}

// RunReport is what a node saw of a run.
type RunReport struct {
	Run         carrel.RunID
	Epoch       int64
	Sequence    int64
	Phase       carrel.Phase
	Generation  int64
	At          time.Time
	Reason      string
	Message     string
	Transient   bool
	FailedOrder carrel.Order
	Snapshot    carrel.SnapshotID
	StartedFrom string
	Notice      string
	// CloneFailure is the reason for which it could not begin from a prebuild.
	CloneFailure string
}

// ChoreReport is how far a chore is.
type ChoreReport struct {
	Chore        carrel.ChoreID
	Done         bool
	ErrorReason  string // not empty: it failed
	ErrorMessage string
	Progress     string
	Digest       string
	SizeBytes    int64
}

const (
	// maxPhases bounds the history of one run: its first entries and its newest are kept.
	maxPhases  = 200
	keepPhases = 8
	maxReason  = 64
	maxText    = 4096
	// How far ahead of ours a node's clock may be.
	maxAhead = 5 * time.Minute
)

// RecordReport writes a batch of what one node told, in order. Reports of runs that are not this node's, of another epoch, with an
// older sequence, or of a run that has ended are passed over: repeating a report is always safe.
func (s *Store) RecordReport(ctx context.Context, node carrel.NodeID, reports []Report) error {
	return s.write(ctx, "RecordReport", SystemScope(), func(t *tx) error {
		var runs []RunReport
		var chores []ChoreReport
		var dropped []carrel.SnapshotID
		var activities []RunActivity
		beat := NodeBeat{Node: node}
		for _, r := range reports {
			runs = append(runs, r.Runs...)
			chores = append(chores, r.Chores...)
			dropped = append(dropped, r.Dropped...)
			activities = append(activities, r.Activities...)
			if r.Facts != nil {
				beat.Facts = r.Facts
			}
		}
		if len(runs) > 0 {
			if err := t.recordRuns(ctx, node, runs); err != nil {
				return err
			}
		}
		if err := t.recordActivities(ctx, node, activities); err != nil {
			return err
		}
		if len(dropped) > 0 {
			n, err := t.DropSnapshots(ctx, toStrings(dropped), node)
			if err != nil {
				return fmt.Errorf("drop snapshots: %w", err)
			}
			if n > 0 {
				t.raise(node)
				t.wake(TopicBoxes) // there is more room
			}
		}
		for _, c := range chores {
			if err := t.recordChore(ctx, node, c); err != nil {
				return fmt.Errorf("record chore %s: %w", c.Chore, err)
			}
		}
		return t.touchNode(ctx, beat)
	})
}

// recordRuns locks the boxes, then the runs, applies the reports one after the other, and writes each run and box once.
func (t *tx) recordRuns(ctx context.Context, node carrel.NodeID, reports []RunReport) error {
	ids := map[carrel.RunID]bool{}
	for _, r := range reports {
		ids[r.Run] = true
	}
	runIDs := toStrings(sortedKeys(ids))
	boxes, err := t.BoxesOfRuns(ctx, runIDs)
	if err != nil {
		return fmt.Errorf("find the boxes of the runs: %w", err)
	}
	if _, err := t.LockBoxes(ctx, toStrings(boxes)); err != nil {
		return fmt.Errorf("lock the boxes: %w", err)
	}
	rows, err := t.LockRuns(ctx, runIDs, node)
	if err != nil {
		return fmt.Errorf("lock the runs: %w", err)
	}
	runs := map[carrel.RunID]*reportedRun{}
	for _, row := range rows {
		run := &reportedRun{row: row}
		if err := decode(row.Phases, &run.phases, "phases"); err != nil {
			return err
		}
		runs[row.ID] = run
	}
	for _, report := range reports {
		run := runs[report.Run]
		if run == nil {
			t.s.log.Warn("report of an unknown run", "node", node, "run", report.Run)
			continue
		}
		if run.apply(report, t.now) {
			if err := t.condemn(ctx, run, report); err != nil {
				return err
			}
			continue
		}
		t.s.log.Debug("report passed over", "node", node, "run", report.Run, "sequence", report.Sequence, "phase", report.Phase)
	}
	changed := map[carrel.BoxID]bool{}
	for _, id := range sortedKeys(runs) {
		run := runs[id]
		if !run.changed {
			continue
		}
		if err := t.saveRun(ctx, node, run); err != nil {
			return fmt.Errorf("save run %s: %w", id, err)
		}
		changed[run.row.BoxID] = true
	}
	if len(changed) == 0 {
		return nil
	}
	list, err := t.boxes(ctx, "where b.id = any ($1) order by b.id", toStrings(sortedKeys(changed)))
	if err != nil {
		return err
	}
	for _, b := range list {
		if b.Purpose != carrel.PurposeUser {
			t.wake(TopicPrepare)
		}
		if err := t.SetNextDue(ctx, b.ID, t.dueAfter(&b.BoxView), t.now); err != nil {
			return fmt.Errorf("touch box %s: %w", b.ID, err)
		}
	}
	return t.setLooks(ctx, list)
}

// reportedRun is a run while reports are applied to it.
type reportedRun struct {
	row     db.LockRunsRow
	phases  []carrel.PhaseAt
	events  []runEvent
	changed bool
}

type runEvent struct{ kind, message string }

// apply takes one report, and reports whether it counted.
func (r *reportedRun) apply(report RunReport, now time.Time) bool {
	row := &r.row
	if report.Epoch != row.Epoch || report.Sequence <= row.Sequence || row.EndedAt != nil || !report.Phase.Valid() {
		return false
	}
	undone := report.FailedOrder
	if undone != carrel.OrderPause && undone != carrel.OrderStop || report.Phase != carrel.PhaseRunning {
		undone = carrel.OrderNone
	}
	fresh := row.Phase != report.Phase || row.Generation != report.Generation
	event := row.Phase != report.Phase || undone != row.FailedOrder
	at := report.At.UTC().Truncate(time.Microsecond)
	if report.At.IsZero() || at.After(now.Add(maxAhead)) {
		at = now
	}
	row.Phase, row.Generation, row.Sequence = report.Phase, report.Generation, report.Sequence
	row.Reason, row.Message = clean(report.Reason, maxReason), clean(report.Message, maxText)
	row.Transient, row.FailedOrder = report.Transient, undone
	if id := report.Snapshot; carrel.IDKind(string(id)) == 's' {
		row.SavedSnapshot = id
	}
	if report.StartedFrom != "" {
		row.StartedFrom = clean(report.StartedFrom, maxReason)
	}
	if report.Notice != "" {
		row.Notice = clean(report.Notice, maxText)
	}
	if fresh {
		r.phases = append(r.phases, carrel.PhaseAt{Phase: report.Phase, At: at, Generation: report.Generation})
		if len(r.phases) > maxPhases {
			r.phases = slices.Delete(r.phases, keepPhases, len(r.phases)-maxPhases+keepPhases)
		}
	}
	if report.Phase.Ended() {
		row.EndedAt = &now
	}
	if event {
		if e, ok := eventOf(row); ok {
			r.events = append(r.events, e)
		}
	}
	r.changed = true
	return true
}

// eventOf tells people what a report means.
func eventOf(row *db.LockRunsRow) (runEvent, bool) {
	because := ""
	if row.Message != "" {
		because = ": " + row.Message
	}
	switch row.Phase {
	case carrel.PhaseRunning:
		if row.FailedOrder != carrel.OrderNone {
			return runEvent{"undone", fmt.Sprintf("the %s did not succeed and the box runs on%s", row.FailedOrder, because)}, true
		}
		message := "the box runs"
		switch row.StartedFrom {
		case "memory":
			message = "the box runs, resumed with its memory"
		case "disk":
			message = "the box runs, started from its files"
		case "prebuild":
			message = "the box runs, cloned from its template's prebuild"
		case "pool":
			message = "the box runs, taken from its template's warm pool"
		}
		if row.Notice != "" {
			message += "; " + row.Notice
		}
		return runEvent{"running", message}, true
	case carrel.PhasePaused:
		return runEvent{"paused", "the box is paused; memory and files are kept"}, true
	case carrel.PhaseStopped:
		return runEvent{"stopped", "the box is stopped; its files are kept"}, true
	case carrel.PhaseFailed:
		return runEvent{"failed", "the run ended" + because}, true
	case carrel.PhaseDestroyed:
		return runEvent{"destroyed", "the run was destroyed"}, true
	}
	return runEvent{}, false
}

func (t *tx) saveRun(ctx context.Context, node carrel.NodeID, run *reportedRun) error {
	row := run.row
	err := t.SaveRun(ctx, db.SaveRunParams{
		ID: row.ID, Phase: row.Phase, Generation: row.Generation, Sequence: row.Sequence, Reason: row.Reason, Message: row.Message,
		Transient: row.Transient, FailedOrder: row.FailedOrder, Phases: encode(run.phases), SavedSnapshot: row.SavedSnapshot,
		StartedFrom: row.StartedFrom, Notice: row.Notice, EndedAt: row.EndedAt,
	})
	if err != nil {
		return err
	}
	for _, e := range run.events {
		if err := t.event(ctx, row.OrgID, row.BoxID, row.ID, e.kind, e.message, "node:"+string(node)); err != nil {
			return err
		}
	}
	// An ended run leaves the desired set, and the order of one that was undone changes.
	if row.EndedAt != nil || row.FailedOrder != carrel.OrderNone {
		t.raise(node)
	}
	return nil
}

func (t *tx) recordChore(ctx context.Context, node carrel.NodeID, c ChoreReport) error {
	if !c.Done {
		chore, err := t.LockChore(ctx, c.Chore)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && (chore.FinishedAt != nil || nodeOf(chore.NodeID) != node) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("lock the chore: %w", err)
		}
		t.wake(TopicImages)
		return t.ProgressImage(ctx, chore.ImageID, clean(c.Progress, maxText))
	}
	return t.endChore(ctx, node, c, "Correct the cause and ask again; the node's log may say more. An image of the same name takes this one's place.")
}

// endChore finishes a chore and its image. A chore that is finished, or another node's, is passed over; an empty node is any.
func (t *tx) endChore(ctx context.Context, node carrel.NodeID, c ChoreReport, nextStep string) error {
	chore, err := t.LockChore(ctx, c.Chore)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock the chore: %w", err)
	}
	holder := nodeOf(chore.NodeID)
	if chore.FinishedAt != nil || node != "" && holder != node {
		return nil
	}
	end := db.EndImageParams{ID: chore.ImageID, State: ImageReady, Digest: clean(c.Digest, 256), SizeBytes: c.SizeBytes, FinishedAt: &t.now}
	if c.ErrorReason != "" || c.Digest == "" {
		reason, message := clean(c.ErrorReason, maxReason), clean(c.ErrorMessage, maxText)
		if reason == "" {
			reason, message = carrel.ReasonRuntimeError, "the node did not say what it made"
		}
		end.State, end.Digest, end.SizeBytes = ImageFailed, "", 0
		end.Failure = encodeFailure(&carrel.Failure{Reason: reason, Message: message, NextStep: nextStep, Attempts: 1, Generation: 1, At: t.now})
	}
	if err := t.EndImage(ctx, end); err != nil {
		return fmt.Errorf("finish the image: %w", err)
	}
	if err := t.EndChore(ctx, c.Chore, &t.now); err != nil {
		return fmt.Errorf("finish the chore: %w", err)
	}
	if end.State == ImageReady && holder != "" {
		// Boxes of the image can be placed there at once, not only after the next heartbeat.
		if _, err := t.AddNodeImages(ctx, holder, []string{end.Digest}); err != nil {
			return fmt.Errorf("note where the image is: %w", err)
		}
		if err := t.raiseHolders(ctx, end.Digest); err != nil {
			return err
		}
	}
	if holder != "" {
		t.raise(holder)
	}
	t.wake(TopicImages)
	t.wake(TopicBoxes)
	return nil
}

// NodeBeat says that a node is alive.
type NodeBeat struct {
	Node  carrel.NodeID
	Facts *NodeFacts // nil: as before
	// Activities are what changed in the use of its runs.
	Activities []RunActivity
}

// TouchNodes writes the heartbeats of many nodes in one transaction. Unknown nodes are passed over.
func (s *Store) TouchNodes(ctx context.Context, beats []NodeBeat) error {
	if len(beats) == 0 {
		return nil
	}
	ordered := slices.Clone(beats)
	slices.SortStableFunc(ordered, func(a, b NodeBeat) int { return bytes.Compare([]byte(a.Node), []byte(b.Node)) })
	return s.write(ctx, "TouchNodes", SystemScope(), func(t *tx) error {
		for _, beat := range ordered {
			if err := t.recordActivities(ctx, beat.Node, beat.Activities); err != nil {
				return err
			}
		}
		for _, beat := range ordered {
			if err := t.touchNode(ctx, beat); err != nil && carrel.CodeOf(err) != carrel.CodeNotFound {
				return err
			}
		}
		return nil
	})
}

func (t *tx) touchNode(ctx context.Context, beat NodeBeat) error {
	var n int64
	var err error
	if beat.Facts == nil {
		n, err = t.TouchNode(ctx, beat.Node, t.now)
	} else {
		if err := t.moveProxy(ctx, beat); err != nil {
			return err
		}
		n, err = t.SetNodeFacts(ctx, beat.Node, encode(beat.Facts), t.now)
	}
	if err != nil {
		return fmt.Errorf("touch node %s: %w", beat.Node, err)
	}
	if n == 0 {
		return carrel.NotFound("node", string(beat.Node))
	}
	if beat.Facts == nil {
		return nil
	}
	images := beat.Facts.Images
	if images == nil {
		images = []string{}
	}
	dropped, err := t.DropNodeImages(ctx, beat.Node, images)
	if err != nil {
		return fmt.Errorf("note which images node %s dropped: %w", beat.Node, err)
	}
	added, err := t.AddNodeImages(ctx, beat.Node, images)
	if err != nil {
		return fmt.Errorf("note which images node %s holds: %w", beat.Node, err)
	}
	if dropped+added > 0 {
		t.wake(TopicImages)
		t.wake(TopicBoxes)
	}
	return nil
}

// moveProxy makes the routes to a node's runs change when its proxy has another address than before.
func (t *tx) moveProxy(ctx context.Context, beat NodeBeat) error {
	address, err := t.ProxyAddress(ctx, beat.Node)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && address == beat.Facts.ProxyAddress {
		return nil
	}
	if err == nil {
		t.wake(TopicWatch)
		err = t.TouchBoxesOn(ctx, beat.Node)
	}
	if err != nil {
		return fmt.Errorf("move the routes of node %s: %w", beat.Node, err)
	}
	return nil
}

// CommitSnapshot is a snapshot that a node proposes.
type CommitSnapshot struct {
	ID             carrel.SnapshotID
	Box            carrel.BoxID
	Run            carrel.RunID
	Epoch          int64
	Kind           carrel.SnapshotKind
	SizeBytes      int64
	ManifestSHA256 string
	RuntimeVersion string
	At             time.Time
	Salvaged       bool
	Generation     int64
}

// Reasons for which a snapshot is refused.
const (
	RefusedStaleEpoch = "stale_epoch"
	RefusedBoxDeleted = "box_deleted"
	RefusedRunEnded   = "run_ended"
)

// CommitSnapshot makes a snapshot the newest durable state of its box, and dooms the older ones. It is
// idempotent by id. Refused (false, with a reason) is final; an error means that the outcome is not known.
func (s *Store) CommitSnapshot(ctx context.Context, node carrel.NodeID, c CommitSnapshot) (accepted bool, reason string, err error) {
	if carrel.IDKind(string(c.ID)) != 's' || c.Kind != carrel.SnapshotMemory && c.Kind != carrel.SnapshotDisk || c.SizeBytes < 0 {
		return false, "", carrel.Errorf(carrel.CodeInvalid, "bad_snapshot", "the snapshot %q is not described as one", c.ID)
	}
	err = s.write(ctx, "CommitSnapshot", SystemScope(), func(t *tx) error {
		accepted, reason = false, ""
		b, err := t.lockBox(ctx, c.Box)
		if carrel.CodeOf(err) == carrel.CodeNotFound {
			reason = RefusedBoxDeleted
			return nil
		}
		if err != nil {
			return err
		}
		switch old, err := t.GetSnapshot(ctx, c.ID); {
		case err == nil:
			// The same proposal again: its first answer may have been lost.
			accepted = old.BoxID == c.Box && old.RunID == c.Run && old.NodeID == node && old.Epoch == c.Epoch
			if !accepted {
				reason = RefusedStaleEpoch
			}
			return nil
		case !errors.Is(err, pgx.ErrNoRows):
			return fmt.Errorf("look for the snapshot: %w", err)
		}
		switch {
		case b.Deleted || b.Intent == carrel.IntentDeleted:
			reason = RefusedBoxDeleted
		case b.Run == nil || b.Epoch != c.Epoch || b.Run.ID != c.Run || b.Run.NodeID != node:
			reason = RefusedStaleEpoch
		case !b.Live():
			reason = RefusedRunEnded
		}
		if reason != "" {
			return nil
		}
		at := c.At.UTC().Truncate(time.Microsecond)
		if c.At.IsZero() || at.After(t.now.Add(maxAhead)) {
			at = t.now
		}
		err = t.InsertSnapshot(ctx, db.InsertSnapshotParams{
			ID: c.ID, OrgID: b.Org, BoxID: b.ID, RunID: c.Run, NodeID: node, Epoch: c.Epoch, Kind: c.Kind, Generation: c.Generation,
			BootGeneration: b.Run.BootGeneration, SizeBytes: c.SizeBytes, ManifestSha256: clean(c.ManifestSHA256, 128),
			RuntimeVersion: clean(c.RuntimeVersion, 256), Salvaged: c.Salvaged, TakenAt: at, CommittedAt: t.now,
		})
		if err != nil {
			return fmt.Errorf("insert the snapshot: %w", err)
		}
		nodes, err := t.DoomSnapshots(ctx, t.now, b.ID, string(c.ID))
		if err != nil {
			return fmt.Errorf("doom the older snapshots: %w", err)
		}
		for _, n := range nodes {
			t.raise(n)
		}
		b.Snapshot = &carrel.SnapshotView{ID: c.ID, NodeID: node, Kind: c.Kind, BootGeneration: b.Run.BootGeneration, At: at}
		if err := t.SetNextDue(ctx, b.ID, t.dueAfter(&b.BoxView), t.now); err != nil {
			return fmt.Errorf("touch the box: %w", err)
		}
		if c.Salvaged {
			if err := t.event(ctx, b.Org, b.ID, c.Run, "salvaged", "the sandbox died; the files of the home are kept as they were, the system as it was saved last", "node:"+string(node)); err != nil {
				return err
			}
		}
		accepted = true
		return nil
	})
	if err != nil {
		return false, "", err
	}
	return accepted, reason, nil
}
