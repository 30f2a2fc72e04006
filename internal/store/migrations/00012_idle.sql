-- When the policy of a box may have something to do.

-- +goose Up

-- Not later than the next time at which a rule of the box's policy acts, whatever is reported until then; null: after a change.
-- A report of use makes it later only when it is looked at, so that heartbeats need not know policies.
alter table box_activity add column due timestamptz;
-- The box is marked idle: a report of use must be looked at now.
alter table box_activity add column idle boolean not null default false;
create index box_activity_due on box_activity (due) where due is not null;

-- A box with a time to live has its row from the start, and who changes a policy has it looked at.
grant insert, update on box_activity to carrel_control;
