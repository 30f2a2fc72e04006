-- Whom to trust: chores that an operator asked for, and nodes and gateways that were removed.

-- +goose Up

-- An operator of the platform asked for it: it may read paths on a node and addresses that are not public.
alter table chores add column trusted boolean not null default false;

-- Removed for ever: the certificates of the id are refused. Another machine may take the name.
alter table nodes add column removed_at timestamptz;
alter table nodes drop constraint nodes_name_key;
create unique index nodes_name on nodes (name) where removed_at is null;
create index nodes_removed on nodes (removed_at) where removed_at is not null;

alter table gateways add column removed_at timestamptz;
alter table gateways drop constraint gateways_name_key;
create unique index gateways_name on gateways (name) where removed_at is null;
create index gateways_removed on gateways (removed_at) where removed_at is not null;

-- Quotas count these.
create index chores_org_open on chores (org_id) where finished_at is null;
