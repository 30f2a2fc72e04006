package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
)

// selectBoxes reads boxes with the newest of their runs and of their snapshots; conditions on b and t follow it. It is
// the only place that knows how a Box is put together.
const selectBoxes = `
select b.id, b.org_id, coalesce(b.owner_id, ''), b.name, t.name, b.template_id, t.version, b.image_digest, b.resources, b.labels, b.env, b.region,
	b.etag, coalesce(b.home_node, ''), b.created_at, b.updated_at, b.intent_at, b.deleted_at, b.touched,
	b.intent, b.generation, b.boot_generation, b.epoch, b.failure, b.intent_by, b.idle_since, b.idle, t.idle, b.awake_until, b.awake_by,
	r.id, r.node_id, r.epoch, r.boot_generation, r.with_memory, r.phase, r.generation, r.reason, r.message, r.transient, r.failed_order,
	r.phases, r.created_at, r.ended_at, r.started_from, r.notice,
	s.id, s.node_id, s.kind, s.memory_retired_at is not null, s.boot_generation, s.taken_at,
	b.purpose, t.recipe, t.prebuild is not null and b.resources - 'cpu_millis' = t.resources - 'cpu_millis', coalesce(r.from_snapshot, ''), t.org_id
from boxes b
join templates t on t.id = b.template_id
left join runs r on r.box_id = b.id and r.epoch = b.epoch
left join lateral (
	select id, node_id, kind, memory_retired_at, boot_generation, taken_at from snapshots
	where box_id = b.id and doomed_at is null order by number desc limit 1
) s on true
`

func scanBox(row pgx.CollectableRow) (*Box, error) {
	var (
		b                                      Box
		etag                                   int64
		deletedAt                              *time.Time
		resources, labels, env, failure        []byte
		idle, templateIdle                     []byte
		idleSince, awakeUntil                  *time.Time
		runID, runNode                         *string
		runEpoch, runBoot, runGeneration       *int64
		withMemory, transient                  *bool
		phase, reason, message, order          *string
		phases                                 []byte
		runCreated, runEnded                   *time.Time
		startedFrom, notice                    *string
		snapshotID, snapshotNode, snapshotKind *string
		memoryRetired                          *bool
		snapshotBoot                           *int64
		snapshotAt                             *time.Time
	)
	err := row.Scan(&b.ID, &b.Org, &b.Owner, &b.Name, &b.Template, &b.TemplateID, &b.TemplateVersion, &b.ImageDigest, &resources, &labels, &env, &b.Region,
		&etag, &b.HomeNode, &b.CreatedAt, &b.UpdatedAt, &b.IntentAt, &deletedAt, &b.Touched,
		&b.Intent, &b.Generation, &b.BootGeneration, &b.Epoch, &failure, &b.IntentBy, &idleSince, &idle, &templateIdle, &awakeUntil, &b.AwakeBy,
		&runID, &runNode, &runEpoch, &runBoot, &withMemory, &phase, &runGeneration, &reason, &message, &transient, &order,
		&phases, &runCreated, &runEnded, &startedFrom, &notice,
		&snapshotID, &snapshotNode, &snapshotKind, &memoryRetired, &snapshotBoot, &snapshotAt,
		&b.Purpose, &b.Recipe, &b.Cloneable, &b.RunFrom, &b.TemplateOrg)
	if err != nil {
		return nil, fmt.Errorf("read a box: %w", err)
	}
	b.ETag = strconv.FormatInt(etag, 10)
	b.CreatedAt, b.UpdatedAt, b.IntentAt, b.DeletedAt = b.CreatedAt.UTC(), b.UpdatedAt.UTC(), b.IntentAt.UTC(), timeOf(deletedAt)
	b.Deleted = deletedAt != nil
	b.IdleSince, b.AwakeUntil = timeOf(idleSince), timeOf(awakeUntil)
	if b.Failure, err = decodeFailure(failure); err != nil {
		return nil, err
	}
	if err := errors.Join(decode(resources, &b.Resources, "resources"), decode(labels, &b.Labels, "labels"), decode(env, &b.Env, "env"),
		decode(idle, &b.Idle, "an idle policy"), decode(templateIdle, &b.TemplateIdle, "a template's idle policy")); err != nil {
		return nil, err
	}
	if runID != nil {
		b.Run = &carrel.RunView{
			ID: carrel.RunID(*runID), NodeID: carrel.NodeID(*runNode), Epoch: *runEpoch, BootGeneration: *runBoot, WithMemory: *withMemory,
			Phase: carrel.Phase(*phase), Generation: *runGeneration, Reason: *reason, Message: *message, Transient: *transient,
			FailedOrder: carrel.Order(*order),
		}
		if err := decode(phases, &b.Run.Phases, "phases"); err != nil {
			return nil, err
		}
		b.RunCreatedAt, b.RunEndedAt, b.StartedFrom, b.Notice = timeOf(runCreated), timeOf(runEnded), *startedFrom, *notice
	}
	if snapshotID != nil {
		b.Snapshot = &carrel.SnapshotView{
			ID: carrel.SnapshotID(*snapshotID), NodeID: carrel.NodeID(*snapshotNode), Kind: carrel.SnapshotKind(*snapshotKind),
			MemoryRetired: *memoryRetired, BootGeneration: *snapshotBoot, At: timeOf(snapshotAt),
		}
	}
	return &b, nil
}

// boxes reads the boxes that a condition (everything after from and joins) selects.
func (t *tx) boxes(ctx context.Context, condition string, args ...any) ([]*Box, error) {
	rows, err := t.raw.Query(ctx, selectBoxes+condition, args...)
	if err != nil {
		return nil, fmt.Errorf("read boxes: %w", err)
	}
	return pgx.CollectRows(rows, scanBox)
}

// box reads one box; NotFound if there is none or the scope does not see it.
func (t *tx) box(ctx context.Context, id carrel.BoxID) (*Box, error) {
	boxes, err := t.boxes(ctx, "where b.id = $1", id)
	if err != nil {
		return nil, err
	}
	if len(boxes) == 0 {
		return nil, carrel.NotFound("box", string(id))
	}
	return boxes[0], nil
}

// lockBox locks a box, then reads it: in this order the read sees what the holder before wrote, since each statement sees what was committed
// when it began. Its id is told to nobody before the box is committed, so that the read finds none that the lock did not.
func (t *tx) lockBox(ctx context.Context, id carrel.BoxID) (*Box, error) {
	if err := t.LockBox(ctx, id); err != nil {
		return nil, fmt.Errorf("lock box %s: %w", id, err)
	}
	return t.box(ctx, id)
}

// dueAfter is when a reconciler should look at a box that is as the view says; nil: not before it changes.
// What a node does by its order needs no reconciler.
func dueAfter(v *carrel.BoxView, now time.Time) *time.Time {
	failure := v.CurrentFailure()
	if v.Live() && failure != nil && failure.Reason == carrel.ReasonNodeLost {
		return &now // its node says something again: the failure is history
	}
	if !v.NeedsReconcile() {
		return nil
	}
	if failure != nil && failure.Transient && !v.Unrecorded() && failure.RetryAt.After(now) {
		return &failure.RetryAt
	}
	return &now
}

// dueAfter is the function, and wakes watchers, and reconcilers if the box is due.
func (t *tx) dueAfter(v *carrel.BoxView) *time.Time {
	due := dueAfter(v, t.now)
	t.wake(TopicWatch)
	if due != nil {
		t.wake(TopicBoxes)
	}
	return due
}
