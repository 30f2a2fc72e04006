-- name: Preparing :many
select t.id, t.org_id, t.name, t.version, t.image_digest, t.recipe, (t.prebuild is not null)::boolean as prebuild, coalesce(p.size, 0)::int as pool
from templates t left join template_pools p on p.template_org = t.org_id and p.name = t.name
where t.recipe <> '' and (t.prebuild is not null or p.size > 0)
	and not exists (select 1 from templates n where n.org_id = t.org_id and n.name = t.name and n.version > t.version)
order by t.org_id, t.name;

-- name: Prebuilds :many
select p.box_id, p.template_org, p.template_id, p.recipe, p.node_id, p.runtime_version, p.agent_sha256, p.created_at, p.condemned,
	t.name, t.version, n.name as node_name,
	coalesce(s.id, '') as snapshot_id, coalesce(s.size_bytes, 0)::bigint as size_bytes, coalesce(s.runtime_version, '') as snapshot_version, s.committed_at
from prebuilds p
join boxes b on b.id = p.box_id and b.intent <> 'deleted'
join templates t on t.id = p.template_id
join nodes n on n.id = p.node_id
left join snapshots s on s.box_id = p.box_id and s.kind = 'memory' and s.doomed_at is null and s.memory_retired_at is null
order by t.name, p.template_org, p.node_id, p.created_at, p.box_id;

-- name: InsertPrebuild :exec
insert into prebuilds (box_id, template_org, template_id, recipe, node_id, runtime_version, agent_sha256, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: CondemnPrebuild :execrows
update prebuilds set condemned = @reason where condemned = '' and box_id = (select s.box_id from snapshots s where s.id = @snapshot_id);

-- name: LockClones :many
select s.id, s.node_id, p.recipe from snapshots s join prebuilds p on p.box_id = s.box_id
where s.id = any (@ids::text[]) and s.doomed_at is null and s.memory_retired_at is null and p.condemned = '' order by s.id for share of s;

-- name: InsertHiddenBox :execrows
insert into boxes (id, org_id, created_at, template_id, name, image_digest, resources, disk_bytes, labels, env, region, idle, purpose, home_node,
	intent, intent_by, intent_at, generation, boot_generation, next_due, updated_at)
select @id::text, c.system_org, @now::timestamptz, t.id, @name::text, t.image_digest, t.resources, @disk_bytes::bigint, '{}', t.env, '', '{}', @purpose::text, nullif(@node_id::text, ''),
	'running', 'carrel', @now, 1, 1, @now, @now
from templates t, cluster c where t.id = @template_id;

-- name: PutPool :exec
insert into template_pools (template_org, name, size) values ($1, $2, $3)
on conflict (template_org, name) do update set size = excluded.size;

-- name: PoolsOf :many
select p.template_org, p.name, p.size, (
	select count(*) from boxes b join templates t on t.id = b.template_id join runs r on r.box_id = b.id and r.epoch = b.epoch
	where b.purpose = 'pool' and b.intent = 'running' and b.deleted_at is null and t.org_id = p.template_org and t.name = p.name and r.phase = 'running'
)::int as ready
from template_pools p where p.size > 0 order by p.template_org, p.name;

-- name: PooledBox :one
select b.id from boxes b
join templates t on t.id = b.template_id
join runs r on r.box_id = b.id and r.epoch = b.epoch
join nodes n on n.id = r.node_id
where b.purpose = 'pool' and b.intent = 'running' and b.deleted_at is null and t.recipe = @recipe
	and b.resources = @resources::jsonb and r.phase = 'running' and r.ended_at is null and n.schedulable and n.last_seen > @seen_since::timestamptz
order by b.created_at, b.id limit 1 for no key update of b skip locked;

-- name: ClaimBox :execrows
update boxes set org_id = $2, owner_id = $3, name = $4, template_id = $5, labels = $6, env = $7, idle = $8, intent_by = $9, purpose = '', identity = identity + 1,
	generation = generation + 1, created_at = @now, intent_at = @now, updated_at = @now, etag = etag + 1, next_due = null, failure = null
where id = $1;

-- name: ClaimRun :exec
update runs set org_id = $2, spec = $3, phases = $4, phase = 'starting', created_at = @now, notice = '' where id = $1;

-- name: ForgetEvents :exec
delete from events where box_id = $1;

-- name: ForgetActivity :exec
delete from box_activity where box_id = $1;

-- name: JustTaken :one
select exists (select 1 from boxes where created_at > @since::timestamptz and identity > 0 and purpose = '');

-- name: BoxesLackRoom :one
select exists (select 1 from boxes where purpose = '' and intent = 'running' and deleted_at is null and failure->>'reason' = 'no_room'
	and not exists (select 1 from runs r where r.box_id = boxes.id and r.ended_at is null));
