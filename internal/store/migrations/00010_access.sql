-- How people and programs reach boxes, and what happens to boxes that nobody reaches.

-- +goose Up

create table ssh_keys (
	id          text primary key,
	user_id     text not null references users (id),
	name        text not null,
	-- in the form of authorized_keys, without options and comment
	public_key  text not null,
	fingerprint text not null unique,
	created_at  timestamptz not null
);
create index ssh_keys_user on ssh_keys (user_id);

create table box_ports (
	org_id     text not null references orgs (id),
	box_id     text not null references boxes (id) on delete cascade,
	port       integer not null check (port between 1 and 65535),
	visibility text not null check (visibility in ('private', 'org', 'public')),
	set_by     text not null,
	set_at     timestamptz not null,
	primary key (box_id, port)
);

-- What a template file says, and what a box says otherwise.
alter table templates add column idle jsonb not null default '{}';
alter table boxes add column idle jsonb not null default '{}';
-- Who changed the intent last: user:ID, policy:idle, policy:max_run, policy:ttl.
alter table boxes add column intent_by text not null default '';
-- For an intent of the policy: activity after this time undoes it.
alter table boxes add column idle_since timestamptz;
alter table boxes add column awake_until timestamptz;
alter table boxes add column awake_by text not null default '';

-- The newest signals of each box, written by the reports of its node. Apart from boxes, so that a heartbeat is no change of a box.
create table box_activity (
	box_id  text primary key references boxes (id) on delete cascade,
	org_id  text not null references orgs (id),
	epoch   bigint not null,
	signals jsonb not null,
	at      timestamptz not null
);

-- +goose StatementBegin
do $$
declare
	t text;
begin
	execute 'grant select, insert, update, delete on ssh_keys, box_ports, box_activity to carrel_system';
	foreach t in array array['ssh_keys', 'box_ports', 'box_activity']
	loop
		execute format('alter table %I enable row level security', t);
		execute format('alter table %I force row level security', t);
		execute format('create policy everything on %I to carrel_system using (true) with check (true)', t);
	end loop;
	foreach t in array array['box_ports', 'box_activity']
	loop
		execute format('create policy tenant on %I to carrel_control
			using ((select scope_platform()) or org_id = any ((select scope_orgs())::text[]))
			with check ((select scope_platform()) or org_id = any ((select scope_orgs())::text[]))', t);
	end loop;
end
$$;
-- +goose StatementEnd

create policy own on ssh_keys to carrel_control
	using ((select scope_platform()) or user_id = (select scope_user()))
	with check ((select scope_platform()) or user_id = (select scope_user()));

grant select, insert, delete on ssh_keys to carrel_control;
grant select, insert, update on box_ports to carrel_control;
grant select on box_activity to carrel_control;
