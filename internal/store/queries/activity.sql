-- name: SetLook :exec
insert into box_activity (box_id, org_id, epoch, signals, at, due, idle) values ($1, $2, 0, '{}', @now, $3, $4)
on conflict (box_id) do update set due = excluded.due, idle = excluded.idle;

-- A due of the year 1, the zero time of the program, is none.

-- name: SetLooks :exec
insert into box_activity (box_id, org_id, epoch, signals, at, due, idle)
select l.box_id, l.org_id, 0, '{}', @now, nullif(l.due, '0001-01-01T00:00:00Z'), l.idle
from (select unnest(@boxes::text[]) as box_id, unnest(@orgs::text[]) as org_id, unnest(@dues::timestamptz[]) as due, unnest(@idles::boolean[]) as idle) l
order by l.box_id
on conflict (box_id) do update set due = excluded.due, idle = excluded.idle;

-- name: LookLater :exec
update box_activity a set due = nullif(l.due, '0001-01-01T00:00:00Z'), idle = l.idle
from (select unnest(@boxes::text[]) as box_id, unnest(@was::timestamptz[]) as was, unnest(@dues::timestamptz[]) as due, unnest(@idles::boolean[]) as idle) l
where a.box_id = l.box_id and a.due = l.was;

-- name: RecordActivity :exec
insert into box_activity (box_id, org_id, epoch, signals, at)
select r.box_id, r.org_id, r.epoch, w.signals, @now
from (select unnest(@runs::text[]) as run_id, unnest(@epochs::bigint[]) as epoch, unnest(@signals::jsonb[]) as signals) w
join runs r on r.id = w.run_id and r.epoch = w.epoch
where r.node_id = @node_id and r.ended_at is null
order by r.box_id
on conflict (box_id) do update set
	signals = case when box_activity.epoch = excluded.epoch then box_activity.signals || excluded.signals else excluded.signals end,
	epoch = excluded.epoch, at = excluded.at,
	due = case when box_activity.idle then excluded.at else box_activity.due end
where box_activity.epoch <= excluded.epoch;

-- name: DueActivity :many
select box_id from box_activity where due <= @now::timestamptz order by due limit @most::int;

-- name: Activities :many
select a.box_id, a.epoch, a.signals, a.at, a.due, a.idle, n.last_seen
from box_activity a
left join runs r on r.box_id = a.box_id and r.ended_at is null
left join nodes n on n.id = r.node_id
where a.box_id = any (@boxes::text[]) order by a.due;

-- name: MarkIdle :exec
update boxes set idle_since = $2, updated_at = $3 where id = $1;

-- name: KeepAwake :exec
update boxes set awake_until = $2, awake_by = $3, updated_at = $4 where id = $1;

-- name: StopEvents :many
select id, number, org_id, box_id, run_id, at, kind, message, actor from events
where box_id = $1 and kind in ('asked', 'policy', 'paused', 'stopped', 'failed', 'destroyed') order by number desc limit 40;
