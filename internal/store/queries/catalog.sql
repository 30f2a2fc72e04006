-- name: LockTemplateName :exec
select pg_advisory_xact_lock(hashtextextended(@org::text || '/' || @name::text, 7227273502));

-- name: TemplateByRequest :one
select id, request_hash from templates where org_id = $1 and created_by = $2 and request_id = $3 and request_id <> '';

-- name: InsertTemplate :execrows
insert into templates (id, org_id, name, version, description, image, image_digest, resources, env, labels, sudo, startup,
	created_by, created_at, request_id, request_hash, idle, prebuild, recipe)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19);

-- name: NewestTemplate :one
select id, org_id, name, version, description, image, image_digest, resources, env, labels, sudo, startup, idle, prebuild, recipe, created_at
from templates where org_id = $1 and name = $2 and (sqlc.arg(version)::int = 0 or version = sqlc.arg(version)::int)
order by version desc limit 1;

-- name: TemplateByID :one
select id, org_id, name, version, description, image, image_digest, resources, env, labels, sudo, startup, idle, prebuild, recipe, created_at
from templates where id = $1;

-- name: ListTemplates :many
select t.id, t.org_id, t.name, t.version, t.description, t.image, t.image_digest, t.resources, t.env, t.labels, t.sudo, t.startup, t.idle, t.prebuild, t.recipe, t.created_at
from templates t
where (@org::text = '' or t.org_id = @org::text or t.org_id = (select system_org from cluster))
	and (@all_versions::boolean or not exists
		(select 1 from templates n where n.org_id = t.org_id and n.name = t.name and n.version > t.version))
	and (t.name, t.org_id, -t.version) > (@after_name::text, @after_org::text, @after_version::int)
order by t.name, t.org_id, -t.version limit @page_size;

-- name: InsertImage :exec
insert into images (id, org_id, name, digest, size_bytes, state, source, progress, created_at, finished_at)
values ($1, $2, $3, $4, $5, $6, $7, '', $8, $9);

-- name: FindImage :one
select i.id, i.org_id, i.name, i.digest, i.size_bytes, i.state, i.failure, i.source, i.progress, i.created_at, i.finished_at,
	coalesce((select array_agg(n.node_id order by n.node_id) from node_images n where n.digest = i.digest), '{}')::text[] as nodes
from images i
where i.org_id = @org_id and (i.id = @ref::text or i.name = @ref::text or (i.digest = @ref::text and i.digest <> ''))
order by (i.state = 'ready') desc, i.created_at desc, i.id desc limit 1;

-- name: ImagesByID :many
select i.id, i.org_id, i.name, i.digest, i.size_bytes, i.state, i.failure, i.source, i.progress, i.created_at, i.finished_at,
	coalesce((select array_agg(n.node_id order by n.node_id) from node_images n where n.digest = i.digest), '{}')::text[] as nodes
from images i where i.id = any (@ids::text[]);

-- name: ListImages :many
select i.id, i.org_id, i.name, i.digest, i.size_bytes, i.state, i.failure, i.source, i.progress, i.created_at, i.finished_at,
	coalesce((select array_agg(n.node_id order by n.node_id) from node_images n where n.digest = i.digest), '{}')::text[] as nodes
from images i
where (@org::text = '' or i.org_id = @org::text or i.org_id = (select system_org from cluster))
	and (@after_id::text = '' or (i.created_at, i.id) < (@after_at::timestamptz, @after_id::text))
	and (i.state <> 'failed' or not exists
		(select 1 from images n where n.org_id = i.org_id and n.name = i.name and (n.created_at, n.id) > (i.created_at, i.id)))
order by i.created_at desc, i.id desc limit @page_size;

-- name: LockImages :many
select id, name, digest, state from images
where org_id = @org_id and (id = @ref::text or name = @ref::text or (digest = @ref::text and digest <> ''))
order by created_at desc, id desc for update;

-- name: LockImageDigest :exec
select pg_advisory_xact_lock(hashtextextended(@digest::text, 7227273508));

-- name: TemplatesUsingImages :many
-- The newest versions of templates that have an image of these digests through the images that are to be deleted, and through no other that
-- their organisation sees.
select t.org_id, t.name from templates t, cluster c
where t.image_digest = any (@digests::text[]) and (t.org_id = @org_id or c.system_org = @org_id)
	and not exists (select from templates later where later.org_id = t.org_id and later.name = t.name and later.version > t.version)
	and not exists (select from images i where i.digest = t.image_digest and i.state = 'ready' and i.org_id in (t.org_id, c.system_org)
		and not i.id = any (@ids::text[]))
order by t.name, t.org_id;

-- name: BoxesUsingImages :many
-- As TemplatesUsingImages, of users' boxes.
select b.org_id, b.name from boxes b, cluster c
where b.image_digest = any (@digests::text[]) and (b.org_id = @org_id or c.system_org = @org_id)
	and b.deleted_at is null and b.intent <> 'deleted' and b.purpose = ''
	and not exists (select from images i where i.digest = b.image_digest and i.state = 'ready' and i.org_id in (b.org_id, c.system_org)
		and not i.id = any (@ids::text[]))
order by b.name, b.org_id;

-- name: NoteDeletedImage :exec
insert into deleted_images (digest, deleted_at) values (@digest, @deleted_at) on conflict (digest) do update set deleted_at = excluded.deleted_at;

-- name: HoldersOfDeleted :many
-- The nodes that hold an image of which one was deleted.
select n.node_id from node_images n join deleted_images d on d.digest = n.digest where n.digest = @digest;

-- name: UnneededImages :many
-- What nodes (one, or all that were not removed) hold of images that were deleted and that nothing needs. A node with chores has none: a
-- chore may be making the image anew.
select h.node_id, h.digest from deleted_images d join node_images h on h.digest = d.digest join nodes n on n.id = h.node_id
where (@node::text = '' or h.node_id = @node::text) and n.removed_at is null
	and not exists (select from images i where i.digest = d.digest)
	and not exists (select from boxes b where b.image_digest = d.digest and b.deleted_at is null)
	and not exists (select from templates t where t.image_digest = d.digest
		and not exists (select from templates later where later.org_id = t.org_id and later.name = t.name and later.version > t.version))
	and not exists (select from chores c where c.node_id = h.node_id and c.finished_at is null)
order by h.node_id, h.digest;

-- name: PrunableImages :many
select id from images where state = 'failed' and finished_at < $1 order by finished_at limit $2 for no key update skip locked;

-- name: PruneChores :exec
delete from chores where image_id = any (@ids::text[]);

-- name: PruneImages :exec
delete from images where id = any (@ids::text[]);

-- name: InsertChore :exec
insert into chores (id, org_id, image_id, kind, name, definition, reference, platform, insecure, trusted, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: CountOpenChores :one
select count(*) from chores where org_id = $1 and kind = $2 and finished_at is null;

-- name: DueChores :many
select c.id, c.org_id, c.image_id, c.kind, c.name, c.definition, c.reference, c.platform, c.insecure, c.trusted, c.created_at, c.node_id, c.assigned_at
from chores c left join nodes n on n.id = c.node_id
where c.finished_at is null and (c.node_id is null or n.last_seen < @silent_before)
order by c.created_at limit 1000;

-- name: NodeChores :many
select id, org_id, image_id, kind, name, definition, reference, platform, insecure, trusted, created_at, node_id, assigned_at
from chores where node_id = @node_id::text and finished_at is null order by id;

-- name: LockChore :one
select id, org_id, image_id, node_id, finished_at from chores where id = $1 for no key update;

-- name: PlaceChore :exec
update chores set node_id = $2, assigned_at = $3 where id = $1;

-- name: EndChore :exec
update chores set finished_at = $2 where id = $1;

-- name: EndImage :exec
update images set state = $2, digest = $3, size_bytes = $4, failure = $5, finished_at = $6, progress = '' where id = $1 and state = 'building';

-- name: ProgressImage :exec
update images set progress = $2 where id = $1 and state = 'building';
