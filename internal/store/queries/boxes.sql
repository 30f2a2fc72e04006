-- name: InsertBox :execrows
insert into boxes (id, org_id, created_at, template_id, name, owner_id, image_digest, resources, disk_bytes, labels, env, region,
	idle, intent_by, intent, intent_at, generation, boot_generation, next_due, updated_at)
values ($1, $2, @now, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 'running', @now, 1, 1, @now, @now);

-- name: CountBoxes :one
select count(*) from (select 1 from boxes where org_id = @org_id and intent <> 'deleted' and purpose = '' limit @most::int) as counted;

-- name: LockBox :exec
select 1 from boxes where id = $1 for no key update;

-- name: LockBoxes :many
select id from boxes where id = any (@ids::text[]) order by id for no key update;

-- name: BoxOfName :one
select id from boxes where org_id = $1 and name = $2 and deleted_at is null and purpose = ''
order by (intent <> 'deleted') desc, created_at desc limit 1;

-- name: BoxOfRun :one
select box_id from runs where id = $1;

-- name: BoxesOfRuns :many
select distinct box_id from runs where id = any (@ids::text[]);

-- name: UpdateBox :execrows
update boxes set name = $2, labels = $3, env = $4, resources = $5, disk_bytes = $6, idle = $9, next_due = $7, updated_at = $8, etag = etag + 1
where id = $1;

-- name: SetIntent :exec
update boxes set intent = $2, generation = $3, boot_generation = $4, next_due = $5, intent_by = $6, idle_since = $7,
	intent_at = @now, updated_at = @now, etag = etag + 1
where id = $1;

-- name: SetNextDue :exec
update boxes set next_due = $2, updated_at = $3 where id = $1;

-- name: SetFailure :exec
update boxes set failure = $2, next_due = $3, updated_at = $4 where id = $1;

-- name: SetPlaced :exec
update boxes set epoch = $2, home_node = $3, next_due = $4, updated_at = $5 where id = $1;

-- name: SetDeleted :exec
update boxes set deleted_at = @now, updated_at = @now, next_due = null, failure = null where id = @id;

-- name: NextDue :one
select min(next_due)::timestamptz as due from boxes
where next_due is not null and shard % @shards::int = @shard::int having min(next_due) is not null;

-- name: InsertOperation :execrows
insert into operations (id, org_id, verb, target_id, target_name, generation, boot_generation, created_by, created_at, method, request_id,
	request_hash)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
on conflict (org_id, created_by, method, request_id) where request_id <> '' do nothing;

-- name: OperationByRequest :one
select id, number, org_id, verb, target_id, target_name, generation, boot_generation, created_by, created_at, method, request_id,
	request_hash, settled
from operations
where org_id = $1 and created_by = $2 and method = $3 and request_id = $4 and request_id <> '';

-- name: GetOperation :one
select id, number, org_id, verb, target_id, target_name, generation, boot_generation, created_by, created_at, method, request_id,
	request_hash, settled
from operations where id = $1;

-- name: ListOperations :many
select id, number, org_id, verb, target_id, target_name, generation, boot_generation, created_by, created_at, method, request_id,
	request_hash, settled
from operations
where (@org::text = '' or org_id = @org::text) and (@target::text = '' or target_id = @target::text)
	and (@image::text = '' or (target_name = @image::text and left(target_id, 1) = 'i'))
	and (@before::bigint = 0 or number < @before::bigint)
order by number desc limit @page_size;

-- name: UnsettledOperations :many
select id, number, org_id, verb, target_id, target_name, generation, boot_generation, created_by, created_at, method, request_id,
	request_hash, settled
from operations where target_id = $1 and settled is null order by number limit 200;

-- name: OperationsOn :many
select id, number, org_id, verb, target_id, target_name, generation, boot_generation, created_by, created_at, method, request_id,
	request_hash, settled
from operations where target_id = any (@ids::text[]) and settled is null order by number;

-- name: SettleOperation :exec
update operations set settled = $2 where id = $1;

-- name: InsertEvent :exec
insert into events (id, org_id, box_id, run_id, at, kind, message, actor) values ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: ListEvents :many
select id, number, org_id, box_id, run_id, at, kind, message, actor from events
where box_id = $1 and (@before::bigint = 0 or number < @before::bigint) order by number desc limit @page_size;

-- name: PrunableBoxes :many
select b.id from boxes b
where b.deleted_at < $1 and not exists (select 1 from snapshots s where s.box_id = b.id)
order by b.deleted_at limit $2 for no key update skip locked;

-- name: PruneOperations :exec
delete from operations where target_id = any (@ids::text[]);

-- name: PruneBoxes :exec
delete from boxes where id = any (@ids::text[]);

-- name: PruneTokens :exec
delete from tokens where revoked_at < @before or expires_at < @before;

-- name: PruneJoinTokens :exec
delete from join_tokens where expires_at < @before;
