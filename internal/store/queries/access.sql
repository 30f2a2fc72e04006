-- name: LockUserKeys :exec
select pg_advisory_xact_lock(hashtextextended(@user_id::text, 7227273507));

-- name: CountSSHKeys :one
select count(*) from ssh_keys where user_id = $1;

-- name: InsertSSHKey :execrows
insert into ssh_keys (id, user_id, name, public_key, fingerprint, created_at) values ($1, $2, $3, $4, $5, $6);

-- name: SSHKeys :many
select id, user_id, name, public_key, fingerprint, created_at from ssh_keys where user_id = $1 order by created_at, id;

-- name: SSHKeyOwner :one
select user_id from ssh_keys where id = $1 or fingerprint = $1;

-- name: DeleteSSHKey :exec
delete from ssh_keys where id = $1;

-- name: PutBoxPort :exec
insert into box_ports (org_id, box_id, port, visibility, set_by, set_at) values ($1, $2, $3, $4, $5, $6)
on conflict (box_id, port) do update set visibility = excluded.visibility, set_by = excluded.set_by, set_at = excluded.set_at;

-- name: BoxPorts :many
select port, visibility, set_by, set_at from box_ports where box_id = $1 order by port;

-- name: BoxHasChanged :exec
update boxes set updated_at = @now where id = @id;

-- name: AccessUsers :many
select id, name from users order by id;

-- name: AccessMembers :many
select m.user_id, m.org_id, o.name as org_name, m.role
from memberships m join orgs o on o.id = m.org_id order by m.user_id, m.org_id;

-- name: AccessKeys :many
select user_id, public_key from ssh_keys order by user_id, created_at, id;

-- name: EndedTokens :many
select id from tokens
where revoked_at > @since::timestamptz or expires_at > @since::timestamptz and expires_at <= @now::timestamptz
order by id;
