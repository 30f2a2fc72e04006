-- name: InsertRun :exec
insert into runs (id, org_id, box_id, node_id, epoch, boot_generation, spec, cpu_millis, memory_bytes, from_snapshot, with_memory,
	created_at, phase, generation, phases)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'assigned', $13, $14);

-- name: GetRun :one
select id, org_id, box_id, node_id, epoch, boot_generation, spec, from_snapshot, with_memory, created_at, phase, generation,
	sequence, reason, message, transient, failed_order, phases, saved_snapshot, started_from, notice, ended_at
from runs where id = $1;

-- name: LockRuns :many
select id, org_id, box_id, node_id, epoch, phase, generation, sequence, reason, message, transient, failed_order, phases,
	saved_snapshot, started_from, notice, ended_at, from_snapshot
from runs where id = any (@ids::text[]) and node_id = @node_id order by id for no key update;

-- name: SaveRun :exec
update runs set phase = $2, generation = $3, sequence = $4, reason = $5, message = $6, transient = $7, failed_order = $8, phases = $9,
	saved_snapshot = $10, started_from = $11, notice = $12, ended_at = $13
where id = $1;

-- name: RunSpec :one
select r.spec from runs r join snapshots s on s.run_id = r.id where s.id = $1;

-- name: DesiredRuns :many
select r.id, r.box_id, r.org_id, r.epoch, r.boot_generation, r.spec, r.from_snapshot, r.with_memory, r.phase, r.generation, r.failed_order,
	b.intent, b.generation as box_generation, b.boot_generation as box_boot_generation, b.idle_since, b.idle, t.idle as template_idle, b.identity
from runs r join boxes b on b.id = r.box_id join templates t on t.id = b.template_id
where r.node_id = $1 and r.ended_at is null order by r.id;

-- name: RunsOfBoxes :many
select w.box_id::text as box_id, r.id, r.node_id, r.epoch, r.boot_generation, r.with_memory, r.phase, r.generation, r.reason, r.message, r.transient,
	r.failed_order, r.phases
from (select unnest(@ids::text[]) as box_id, unnest(@since::timestamptz[]) as since) w, lateral (
	select runs.id, runs.node_id, runs.epoch, runs.boot_generation, runs.with_memory, runs.phase, runs.generation, runs.reason, runs.message,
		runs.transient, runs.failed_order, runs.phases
	from runs where runs.box_id = w.box_id and (runs.ended_at is null or runs.ended_at >= w.since) order by runs.epoch limit 200
) r order by w.box_id, r.epoch;

-- name: InsertSnapshot :exec
insert into snapshots (id, org_id, box_id, run_id, node_id, epoch, kind, generation, boot_generation, size_bytes, manifest_sha256,
	runtime_version, salvaged, taken_at, committed_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- name: GetSnapshot :one
select id, box_id, run_id, node_id, epoch, kind, memory_retired_at, doomed_at from snapshots where id = $1;

-- name: DoomSnapshots :many
update snapshots set doomed_at = @now::timestamptz where box_id = @box_id and id <> @keep::text and doomed_at is null returning node_id;

-- name: RetireMemory :execrows
update snapshots set memory_retired_at = coalesce(memory_retired_at, @now::timestamptz) where id = @id and box_id = @box_id and doomed_at is null;

-- name: DoomedSnapshots :many
select id from snapshots where node_id = $1 and doomed_at is not null order by id;

-- name: DropSnapshots :execrows
delete from snapshots where id = any (@ids::text[]) and node_id = @node_id and doomed_at is not null;
