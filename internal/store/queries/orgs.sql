-- name: GetCluster :one
select id, incarnation, system_org, default_org from cluster;

-- name: LockBootstrap :exec
select pg_advisory_xact_lock(7227273501);

-- name: InsertCluster :exec
insert into cluster (id, incarnation, system_org, default_org) values ($1, 1, $2, $3);

-- name: RaiseIncarnation :exec
update cluster set incarnation = incarnation + 1;

-- name: RaiseAllRevisions :exec
update nodes set revision = revision + 1;

-- name: InsertOrg :execrows
insert into orgs (id, name, system, created_at) values ($1, $2, $3, $4);

-- name: GetOrg :one
select id, name, system, created_at from orgs where id = @ref::text or name = @ref::text;

-- name: ListOrgs :many
select id, name, system, created_at from orgs order by name;

-- name: LockMembers :exec
select pg_advisory_xact_lock(hashtextextended(@org::text, 7227273504));

-- name: PutMember :exec
insert into memberships (org_id, user_id, role) values ($1, $2, $3)
on conflict (org_id, user_id) do update set role = excluded.role;

-- name: DeleteMember :execrows
delete from memberships where org_id = $1 and user_id = $2;

-- name: GetMember :one
select org_id, user_id, role from memberships where org_id = $1 and user_id = $2;

-- name: CountOtherOwners :one
select count(*) from memberships where org_id = $1 and role = 'owner' and user_id <> $2;

-- name: ListMembers :many
select m.org_id, m.user_id, u.name as user_name, m.role
from memberships m join users u on u.id = m.user_id
where m.org_id = $1 order by u.name;

-- name: UserMembers :many
select m.org_id, m.user_id, u.name as user_name, m.role
from memberships m join users u on u.id = m.user_id
where m.user_id = $1 order by m.org_id;

-- name: InsertUser :execrows
insert into users (id, name, operator, created_at) values ($1, $2, $3, $4);

-- name: GetUser :one
select id, name, operator, created_at from users where id = @ref::text or name = @ref::text;

-- name: ListUsers :many
select id, name, operator, created_at from users order by name;

-- name: InsertToken :execrows
insert into tokens (id, user_id, description, hash, created_at, expires_at) values ($1, $2, $3, $4, $5, $6)
on conflict (id) do nothing;

-- name: ListTokens :many
select id, user_id, description, created_at, expires_at, revoked_at from tokens
where user_id = $1 order by created_at desc, id;

-- name: RevokeToken :one
update tokens set revoked_at = coalesce(revoked_at, @now) where id = @id
returning id, user_id, description, created_at, expires_at, revoked_at;

-- name: RevokeOtherTokens :many
update tokens set revoked_at = @now::timestamptz
where user_id = @user_id and description = @description and id <> @id and revoked_at is null
returning id;

-- name: TokenRevoked :one
select (revoked_at is not null)::boolean as revoked from tokens where id = $1;

-- name: LookupToken :one
select t.id, t.user_id, t.description, t.created_at, t.expires_at, t.revoked_at,
	u.name, u.operator, u.created_at as user_created_at
from tokens t join users u on u.id = t.user_id where t.hash = $1;

-- name: InsertAudit :exec
insert into audit (org_id, at, actor, method, target, detail) values ($1, $2, $3, $4, $5, $6);

-- name: ListAudit :many
select org_id, at, actor, method, target, detail from audit where org_id = $1 order by number desc limit $2;
