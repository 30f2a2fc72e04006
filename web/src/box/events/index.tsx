import { useEffect, useMemo, useState } from "react";
import type { Event } from "../../gen/carrel/v1/boxes_pb";
import { absolute, when } from "../../lib/format";
import { useLoad } from "../../lib/load";
import { Ago, Empty } from "../../ui/bits";
import { Button, Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { useBox } from "../context";
import "./style.css";

const pageSize = 100;

/** Puts newer and older pages together, each event once, the newest first. */
export function merge(have: readonly Event[], more: readonly Event[]): Event[] {
  const byId = new Map([...have, ...more].map((e) => [e.id, e]));
  return [...byId.values()].sort((a, b) => Number((b.time?.seconds ?? 0n) - (a.time?.seconds ?? 0n)) || (b.time?.nanos ?? 0) - (a.time?.nanos ?? 0) || (a.id < b.id ? 1 : -1));
}

function byDay(events: readonly Event[]): Map<string, Event[]> {
  const days = new Map<string, Event[]>();
  for (const e of events) {
    const day = when(e.time)?.toLocaleDateString(undefined, { dateStyle: "full" }) ?? "";
    days.set(day, [...(days.get(day) ?? []), e]);
  }
  return days;
}

/** What happened to the box, as it happens. */
export default function Events() {
  const { box, api } = useBox();
  const [events, setEvents] = useState<Event[]>([]);
  const [older, setOlder] = useState<string>();
  const [busy, setBusy] = useState(false);
  // Each change of the box comes with events; others are looked for now and then.
  const newest = useLoad((signal) => api.boxes.listBoxEvents({ id: box.id, pageSize }, { signal }), [box.id, box.etag, box.phases.length], 5000);
  useEffect(() => {
    if (!newest.data) return;
    const page = newest.data;
    setEvents((have) => merge(have, page.events));
    setOlder((o) => o ?? page.nextPageToken);
  }, [newest.data]);
  const days = useMemo(() => byDay(events), [events]);
  const more = async () => {
    if (!older) return;
    setBusy(true);
    try {
      const page = await api.boxes.listBoxEvents({ id: box.id, pageSize, pageToken: older });
      setEvents((have) => merge(have, page.events));
      setOlder(page.nextPageToken);
    } finally {
      setBusy(false);
    }
  };
  if (!newest.data && newest.error !== undefined) return <Problem title="The events cannot be shown" error={newest.error} retry={newest.reload} />;
  if (!newest.data) return <Loading>Looking for events…</Loading>;
  if (events.length === 0) return <Empty icon="events" title="Nothing has happened yet" />;
  return (
    <div className="panel events" role="log" aria-label="Events of the box, the newest first">
      {[...days].map(([day, list]) => (
        <section key={day}>
          <h2>{day}</h2>
          <ol>
            {list.map((e) => (
              <li key={e.id}>
                <span className="events-kind">{e.kind.replaceAll("_", " ")}</span>
                <span className="events-text">{e.message}</span>
                <span className="events-when" title={when(e.time) && absolute(when(e.time)!)}>
                  <Ago time={e.time} />
                </span>
              </li>
            ))}
          </ol>
        </section>
      ))}
      {older && (
        <Button small busy={busy} onClick={() => void more()}>
          Show older events
        </Button>
      )}
    </div>
  );
}
