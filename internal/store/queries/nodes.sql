-- name: InsertNode :exec
insert into nodes (id, name, region, created_at, last_seen) values ($1, $2, $3, @now, @now);

-- name: FindNode :one
select id, name, region, schedulable, facts, facts_at, last_seen, revision, created_at, removed_at from nodes
where id = @ref::text or (name = @ref::text and removed_at is null);

-- name: LockNodes :many
select id from nodes where id = any (@ids::text[]) order by id for no key update;

-- name: LockNodeNames :exec
select pg_advisory_xact_lock(7227273503);

-- name: RaiseRevision :exec
update nodes set revision = revision + 1 where id = $1;

-- name: NodeRevision :one
select revision from nodes where id = $1;

-- name: SetNodeSchedulable :execrows
update nodes set schedulable = $2 where id = $1 and removed_at is null;

-- name: RemoveNode :execrows
update nodes set removed_at = @now::timestamptz, schedulable = false where id = @id and removed_at is null;

-- name: CountBoxesAt :one
select count(*) from boxes where home_node = @node_id::text and deleted_at is null and purpose = '';

-- name: RevokedPeers :many
select id::text as id from nodes where removed_at > @since::timestamptz
union all select id::text from gateways where removed_at > @since::timestamptz order by 1;

-- name: SetNodeRegion :exec
update nodes set region = $2 where id = $1;

-- name: ProxyAddress :one
select coalesce(facts->>'proxy_address', '')::text as address from nodes where id = $1;

-- name: TouchBoxesOn :exec
update boxes set updated_at = updated_at where id in (
	select b.id from boxes b join runs r on r.box_id = b.id
	where r.node_id = $1 and r.ended_at is null order by b.id for no key update of b);

-- name: TouchNode :execrows
update nodes set last_seen = greatest(last_seen, $2) where id = $1;

-- name: SetNodeFacts :execrows
update nodes set facts = $2, facts_at = @now::timestamptz, last_seen = greatest(last_seen, @now::timestamptz) where id = $1;

-- name: DropNodeImages :execrows
delete from node_images where node_id = $1 and not digest = any (@digests::text[]);

-- name: AddNodeImages :execrows
insert into node_images (node_id, digest) select @node_id, unnest(@digests::text[]) on conflict do nothing;

-- name: NodesWithUse :many
select n.id, n.name, n.region, n.schedulable, n.facts, n.facts_at, n.last_seen, n.revision, n.created_at, n.removed_at,
	coalesce((select array_agg(i.digest order by i.digest) from node_images i where i.node_id = n.id), '{}')::text[] as images,
	r.runs, r.waking, r.cpu_millis, r.memory_bytes,
	((select coalesce(sum(b.disk_bytes), 0) from boxes b where b.home_node = n.id and b.deleted_at is null
			and (b.purpose <> 'prebuild' or exists (select 1 from runs p where p.box_id = b.id and p.ended_at is null)))
		+ (select coalesce(sum(s.size_bytes), 0) from snapshots s where s.node_id = n.id
			and (s.doomed_at is not null or exists (select 1 from prebuilds p where p.box_id = s.box_id))))::bigint as disk_bytes
from nodes n, lateral (
	select count(*) as runs, count(*) filter (where r.from_snapshot <> '' and r.phase in ('assigned', 'starting')) as waking, coalesce(sum(r.cpu_millis), 0)::bigint as cpu_millis, coalesce(sum(r.memory_bytes), 0)::bigint as memory_bytes
	from runs r where r.node_id = n.id and r.ended_at is null
) r
where @id::text = '' or n.id = @id::text
order by n.name;

-- name: LargestNodes :one
select count(*) filter (where facts_at is null) as silent, count(*) filter (where facts_at is not null) as known,
	coalesce(max((facts->>'cpu_millis')::bigint), 0)::bigint as cpu_millis,
	coalesce(max((facts->>'memory_bytes')::bigint), 0)::bigint as memory_bytes,
	coalesce(max((facts->>'disk_bytes')::bigint), 0)::bigint as disk_bytes
from nodes where removed_at is null;

-- name: AnyNodeHolds :one
select exists (
	select 1 from nodes where removed_at is null and (facts->>'cpu_millis')::bigint >= @cpu_millis::bigint
		and (facts->>'memory_bytes')::bigint >= @memory_bytes::bigint and (facts->>'disk_bytes')::bigint >= @disk_bytes::bigint
);

-- name: UpsertGateway :one
insert into gateways (id, name, region, created_at, last_seen) values (@id, @name, @region, @now, @now)
on conflict (name) where removed_at is null do update set region = excluded.region, last_seen = excluded.last_seen
returning id, name, region, created_at, last_seen;

-- name: TouchGateway :exec
update gateways set last_seen = greatest(last_seen, $2) where id = $1;

-- name: FindGateway :one
select id, name, region, created_at, last_seen from gateways
where (id = @ref::text or name = @ref::text) and removed_at is null;

-- name: ListGateways :many
select id, name, region, created_at, last_seen from gateways where removed_at is null order by name;

-- name: RemoveGateway :exec
update gateways set removed_at = @now::timestamptz where id = @id and removed_at is null;

-- name: InsertJoinToken :exec
insert into join_tokens (hash, role, created_by, created_at, expires_at) values ($1, $2, $3, $4, $5);

-- name: UseJoinToken :execrows
update join_tokens set used_at = @now::timestamptz, used_by = @used_by
where hash = @hash and role = @role and expires_at > @now::timestamptz and (used_at is null or used_by = @used_by);

-- name: TakeLease :one
insert into leases (name, holder, term, expires_at) values (@name, @holder, 1, @expires_at)
on conflict (name) do update set holder = excluded.holder, term = leases.term + 1, expires_at = excluded.expires_at
	where leases.expires_at <= @now::timestamptz or leases.holder = excluded.holder
returning name, holder, term, expires_at;

-- name: GetLease :one
select name, holder, term, expires_at from leases where name = $1;

-- name: RenewLease :execrows
update leases set expires_at = @expires_at where name = @name and holder = @holder and term = @term and expires_at > @now::timestamptz;

-- name: ReleaseLease :exec
update leases set expires_at = @now where name = @name and holder = @holder and term = @term;

-- name: HoldLease :one
select term from leases where name = @name and holder = @holder and term = @term and expires_at > @now::timestamptz for share;

-- name: InsertRootKey :exec
insert into root_keys (id, purpose, public, wrapped, created_at) values ($1, $2, $3, $4, $5)
on conflict (purpose) where retired_at is null do nothing;

-- name: RootKeys :many
select id, purpose, public, wrapped, created_at, retired_at from root_keys where purpose = $1
order by retired_at desc nulls first, created_at desc;

-- name: RetireRootKeys :exec
update root_keys set retired_at = @now::timestamptz where purpose = @purpose and retired_at is null;
