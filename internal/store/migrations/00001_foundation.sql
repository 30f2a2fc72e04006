-- The ground: organisations and their people, the catalogue, boxes with their runs and snapshots, nodes,
-- and what keeps it all in order. Every table of a tenant has org_id and row-level security; who sees what is
-- said once, at the end.

-- +goose Up

-- Roles belong to the whole server, so another database may have made them already.
-- +goose StatementBegin
do $$
begin
	begin
		create role carrel_control login nosuperuser nocreatedb nocreaterole noinherit;
	exception when duplicate_object or unique_violation then null;
	end;
	begin
		create role carrel_system login nosuperuser nocreatedb nocreaterole noinherit;
	exception when duplicate_object or unique_violation then null;
	end;
end
$$;
-- +goose StatementEnd

create table orgs (
	id         text primary key,
	name       text not null unique,
	system     boolean not null default false,
	created_at timestamptz not null
);

create table users (
	id         text primary key,
	name       text not null unique,
	operator   boolean not null default false,
	created_at timestamptz not null
);

create table memberships (
	org_id  text not null references orgs (id),
	user_id text not null references users (id),
	role    text not null check (role in ('owner', 'admin', 'member', 'viewer')),
	primary key (org_id, user_id)
);
create index memberships_user on memberships (user_id);

create table tokens (
	id          text primary key,
	user_id     text not null references users (id),
	description text not null,
	hash        bytea not null unique check (octet_length(hash) = 32),
	created_at  timestamptz not null,
	expires_at  timestamptz,
	revoked_at  timestamptz
);
create index tokens_user on tokens (user_id);

create table cluster (
	one         boolean primary key default true check (one),
	id          text not null,
	incarnation bigint not null,
	system_org  text not null references orgs (id),
	default_org text not null references orgs (id)
);

create table templates (
	id           text primary key,
	org_id       text not null references orgs (id),
	name         text not null,
	version      integer not null check (version > 0),
	description  text not null,
	image        text not null,
	image_digest text not null,
	resources    jsonb not null,
	env          jsonb not null,
	labels       jsonb not null,
	sudo         boolean not null,
	startup      jsonb not null,
	created_by   text not null,
	created_at   timestamptz not null,
	request_id   text not null,
	request_hash bytea,
	unique (org_id, name, version)
);
create unique index templates_request on templates (org_id, created_by, request_id) where request_id <> '';

create table images (
	id          text primary key,
	org_id      text not null references orgs (id),
	name        text not null,
	digest      text not null,
	size_bytes  bigint not null,
	state       text not null check (state in ('building', 'ready', 'failed')),
	failure     jsonb,
	source      text not null,
	progress    text not null,
	created_at  timestamptz not null,
	finished_at timestamptz
);
create index images_name on images (org_id, name, created_at desc);
create index images_digest on images (digest) where digest <> '';

create table nodes (
	id          text primary key,
	name        text not null unique,
	created_at  timestamptz not null,
	-- wanted by an administrator
	region      text not null,
	schedulable boolean not null default true,
	-- said by the node
	facts       jsonb not null default '{}',
	facts_at    timestamptz,
	last_seen   timestamptz not null,
	-- raised by every transaction that changes the desired set
	revision    bigint not null default 1
);

create table node_images (
	node_id text not null references nodes (id),
	digest  text not null,
	primary key (node_id, digest)
);
create index node_images_digest on node_images (digest);

create table gateways (
	id         text primary key,
	name       text not null unique,
	region     text not null,
	created_at timestamptz not null,
	last_seen  timestamptz not null
);

create table boxes (
	id              text primary key,
	org_id          text not null references orgs (id),
	created_at      timestamptz not null,
	template_id     text not null references templates (id),
	-- written by control
	name            text not null,
	owner_id        text not null references users (id),
	image_digest    text not null,
	resources       jsonb not null,
	disk_bytes      bigint not null,
	labels          jsonb not null,
	env             jsonb not null,
	region          text not null,
	intent          text not null check (intent in ('running', 'paused', 'stopped', 'deleted')),
	intent_at       timestamptz not null,
	generation      bigint not null,
	boot_generation bigint not null,
	etag            bigint not null default 1,
	-- written by reconcile
	epoch           bigint not null default 0,
	home_node       text references nodes (id),
	failure         jsonb,
	deleted_at      timestamptz,
	-- Every writer says when a reconciler should look next; null: after the next change.
	next_due        timestamptz,
	updated_at      timestamptz not null,
	-- Kept by a trigger, so that nobody forgets.
	touched         bigint not null default 1,
	changed_xid     bigint not null default 0,
	shard           smallint not null generated always as (get_byte(decode(md5(id), 'hex'), 0)) stored,
	check (deleted_at is null or intent = 'deleted')
);
create unique index boxes_name on boxes (org_id, name) where intent <> 'deleted';
create index boxes_org_created on boxes (org_id, created_at, id);
create index boxes_org_name on boxes (org_id, name, id);
create index boxes_created on boxes (created_at, id);
create index boxes_due on boxes (next_due) where next_due is not null;
create index boxes_changed on boxes (changed_xid);
create index boxes_home on boxes (home_node) where deleted_at is null;
create index boxes_deleted on boxes (deleted_at) where deleted_at is not null;

-- +goose StatementBegin
create function boxes_touch() returns trigger language plpgsql as $$
begin
	if tg_op = 'UPDATE' then
		new.touched := old.touched + 1;
	end if;
	new.changed_xid := pg_current_xact_id()::text::bigint;
	return new;
end
$$;
-- +goose StatementEnd
create trigger boxes_touch before insert or update on boxes for each row execute function boxes_touch();

create table runs (
	id              text primary key,
	org_id          text not null references orgs (id),
	box_id          text not null references boxes (id) on delete cascade,
	node_id         text not null references nodes (id),
	-- written by reconcile, once
	epoch           bigint not null,
	boot_generation bigint not null,
	spec            jsonb not null,
	cpu_millis      bigint not null,
	memory_bytes    bigint not null,
	from_snapshot   text not null,
	with_memory     boolean not null,
	created_at      timestamptz not null,
	-- written by the reports of its node
	phase           text not null,
	generation      bigint not null,
	sequence        bigint not null default 0,
	reason          text not null default '',
	message         text not null default '',
	transient       boolean not null default false,
	failed_order    text not null default '',
	phases          jsonb not null,
	saved_snapshot  text not null default '',
	started_from    text not null default '',
	notice          text not null default '',
	ended_at        timestamptz,
	unique (box_id, epoch)
);
create unique index runs_live on runs (box_id) where ended_at is null;
create index runs_live_node on runs (node_id) where ended_at is null;

create table snapshots (
	id                text primary key,
	number            bigint not null generated always as identity,
	org_id            text not null references orgs (id),
	box_id            text not null references boxes (id),
	run_id            text not null references runs (id),
	node_id           text not null references nodes (id),
	epoch             bigint not null,
	kind              text not null check (kind in ('memory', 'disk')),
	generation        bigint not null,
	boot_generation   bigint not null,
	size_bytes        bigint not null,
	manifest_sha256   text not null,
	runtime_version   text not null,
	salvaged          boolean not null,
	taken_at          timestamptz not null,
	committed_at      timestamptz not null,
	memory_retired_at timestamptz,
	doomed_at         timestamptz
);
create index snapshots_box on snapshots (box_id, number desc) where doomed_at is null;
create index snapshots_doomed on snapshots (node_id) where doomed_at is not null;
create index snapshots_all on snapshots (box_id);
create index snapshots_run on snapshots (run_id);

create table operations (
	id           text primary key,
	number       bigint not null generated always as identity,
	org_id       text not null references orgs (id),
	verb         text not null,
	target_id    text not null,
	target_name  text not null,
	generation   bigint not null,
	-- of the box that fulfils it; 0: any
	boot_generation bigint not null,
	created_by   text not null,
	created_at   timestamptz not null,
	method       text not null,
	request_id   text not null,
	request_hash bytea,
	-- How it ended, written when the next change of intent would make that impossible to tell.
	settled      jsonb
);
create unique index operations_request on operations (org_id, created_by, method, request_id) where request_id <> '';
create index operations_org on operations (org_id, number desc);
create index operations_target on operations (target_id, number desc);
create index operations_unsettled on operations (target_id, number) where settled is null;

create table events (
	id      text primary key,
	number  bigint not null generated always as identity,
	org_id  text not null references orgs (id),
	box_id  text not null references boxes (id) on delete cascade,
	run_id  text not null,
	at      timestamptz not null,
	kind    text not null,
	message text not null,
	actor   text not null
);
create index events_box on events (box_id, number desc);

create table audit (
	number bigint not null generated always as identity primary key,
	org_id text not null, -- empty: of the platform
	at     timestamptz not null,
	actor  text not null,
	method text not null,
	target text not null,
	detail text not null
);
create index audit_org on audit (org_id, number desc);

create table chores (
	id          text primary key,
	org_id      text not null references orgs (id),
	image_id    text not null references images (id),
	kind        text not null check (kind in ('image_build', 'image_import')),
	name        text not null,
	definition  text not null,
	reference   text not null,
	platform    text not null,
	insecure    boolean not null,
	created_at  timestamptz not null,
	node_id     text references nodes (id),
	assigned_at timestamptz,
	finished_at timestamptz
);
create index chores_open on chores (created_at) where finished_at is null;
create index chores_image on chores (image_id);

create table leases (
	name       text primary key,
	holder     text not null,
	term       bigint not null,
	expires_at timestamptz not null
);

create table root_keys (
	id         text primary key,
	purpose    text not null,
	public     bytea not null,
	wrapped    bytea not null,
	created_at timestamptz not null,
	retired_at timestamptz
);
create unique index root_keys_used on root_keys (purpose) where retired_at is null;

create table join_tokens (
	hash       bytea primary key check (octet_length(hash) = 32),
	role       text not null check (role in ('node', 'gateway')),
	created_by text not null,
	created_at timestamptz not null,
	expires_at timestamptz not null,
	used_at    timestamptz,
	used_by    text not null default ''
);

-- Who sees what. carrel_system sees everything. carrel_control sees what the transaction's scope
-- says: carrel.orgs is a list of organisations with commas, carrel.platform is 'on' for operators, carrel.user
-- is the principal. Without them it sees nothing.

create function scope_orgs() returns text[] language sql stable parallel safe
	as $$ select string_to_array(current_setting('carrel.orgs', true), ',') $$;
create function scope_platform() returns boolean language sql stable parallel safe
	as $$ select coalesce(current_setting('carrel.platform', true), '') = 'on' $$;
create function scope_user() returns text language sql stable parallel safe
	as $$ select coalesce(current_setting('carrel.user', true), '') $$;

-- +goose StatementBegin
do $$
declare
	t text;
begin
	execute format('grant usage on schema %I to carrel_control, carrel_system', current_schema());
	execute format('grant select, insert, update, delete on all tables in schema %I to carrel_system', current_schema());
	foreach t in array array['orgs', 'users', 'memberships', 'tokens', 'templates', 'images', 'boxes', 'runs',
		'snapshots', 'operations', 'events', 'audit', 'chores']
	loop
		execute format('alter table %I enable row level security', t);
		execute format('alter table %I force row level security', t);
		execute format('create policy everything on %I to carrel_system using (true) with check (true)', t);
	end loop;
	foreach t in array array['memberships', 'templates', 'images', 'boxes', 'runs', 'snapshots', 'operations',
		'events', 'audit', 'chores']
	loop
		execute format('create policy tenant on %I to carrel_control
			using ((select scope_platform()) or org_id = any ((select scope_orgs())::text[]))
			with check ((select scope_platform()) or org_id = any ((select scope_orgs())::text[]))', t);
	end loop;
end
$$;
-- +goose StatementEnd

-- What is shipped can be read by all.
create policy shipped on templates for select to carrel_control using (org_id = (select system_org from cluster));
create policy shipped on images for select to carrel_control using (org_id = (select system_org from cluster));

create policy tenant on orgs to carrel_control
	using ((select scope_platform()) or id = any ((select scope_orgs())::text[]))
	with check ((select scope_platform()));

-- Members of an organisation name others; only operators make users.
create policy names on users for select to carrel_control using (true);
create policy made_by_operators on users for insert to carrel_control with check ((select scope_platform()));

-- Anybody's deeds that belong to no organisation are written down; operators read them.
create policy of_the_platform on audit for insert to carrel_control with check (org_id = '');

create policy own on tokens to carrel_control
	using ((select scope_platform()) or user_id = (select scope_user()))
	with check ((select scope_platform()) or user_id = (select scope_user()));

grant select on cluster, orgs, users, memberships, tokens, templates, images, node_images, boxes, runs, snapshots, operations, events, audit, chores
	to carrel_control;
grant insert on orgs, users, memberships, tokens, templates, images, boxes, operations, events, audit, chores to carrel_control;
grant update on memberships, tokens, boxes to carrel_control;
grant update (settled) on operations to carrel_control;
grant update (memory_retired_at) on snapshots to carrel_control;
grant delete on memberships to carrel_control;
grant select (id, revision), update (revision) on nodes to carrel_control;
