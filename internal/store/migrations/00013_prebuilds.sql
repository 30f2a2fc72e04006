-- Boxes that are prepared before anybody asks for them: prebuilds, from whose memory new boxes are cloned, and warm pools.

-- +goose Up

-- What the template file says under prebuild; null: nothing.
alter table templates add column prebuild jsonb;
-- A hash of all that a prepared box depends on: what was prepared for one version is good for another with the same recipe. Empty for
-- versions from before: nothing is prepared for those.
alter table templates add column recipe text not null default '';

-- Why Carrel made a box for itself; empty: it is a user's. Hidden boxes belong to the system organisation and to no user.
alter table boxes add column purpose text not null default '' check (purpose in ('', 'prebuild', 'pool'));
alter table boxes alter column owner_id drop not null;
alter table boxes add check (owner_id is not null or purpose <> '');
-- Raised when a prepared box becomes a user's.
alter table boxes add column identity bigint not null default 0;
create index boxes_hidden on boxes (template_id, id) where purpose <> '' and deleted_at is null;

-- One attempt to have a prebuild of a template on a node. What became of it is told by its box and that box's snapshot.
create table prebuilds (
	box_id          text primary key references boxes (id) on delete cascade,
	template_org    text not null references orgs (id),
	template_id     text not null references templates (id),
	recipe          text not null,
	node_id         text not null references nodes (id),
	-- what it was made with
	runtime_version text not null,
	agent_sha256    text not null,
	created_at      timestamptz not null,
	-- A box could not begin from it: it is not used any more.
	condemned       text not null default ''
);
create index prebuilds_node on prebuilds (node_id);

-- How many prepared boxes of a template's newest version an operator wants to wait.
create table template_pools (
	template_org text not null references orgs (id),
	name         text not null,
	size         integer not null check (size between 0 and 100),
	primary key (template_org, name)
);

-- Only Carrel itself reads and writes these; whom they are shown to is decided in control.
grant select, insert, update, delete on prebuilds, template_pools to carrel_system;
alter table prebuilds enable row level security;
alter table prebuilds force row level security;
create policy everything on prebuilds to carrel_system using (true) with check (true);
alter table template_pools enable row level security;
alter table template_pools force row level security;
create policy everything on template_pools to carrel_system using (true) with check (true);
