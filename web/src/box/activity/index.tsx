import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { useState } from "react";
import type { BoxActivity, Deadline, Signal } from "../../gen/carrel/v1/boxes_pb";
import { absolute, bytes, cpus, relative, when } from "../../lib/format";
import { useLoad } from "../../lib/load";
import { useNow } from "../../lib/now";
import { useSession } from "../../lib/session";
import { Ago, Meter } from "../../ui/bits";
import { Button, Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { toast, toastError } from "../../ui/toast";
import { useBox } from "../context";
import { useBoxUse } from "../usage";
import "./style.css";

const kinds: Record<string, string> = {
  input: "Typing and clicking",
  session: "Open sessions",
  command: "Commands in the foreground",
  cell: "Running cells",
  port: "Requests to ports",
  cpu: "Busy processors",
  exec: "Commands started",
  keep_awake: "Kept awake on request",
};

const actions: Record<string, string> = { pause: "Pauses", stop: "Stops", delete: "Is deleted" };
const rules: Record<string, string> = { idle: "when nobody uses it", max_run: "at the end of its longest run", ttl: "at the end of its life" };
const hours = [1, 8, 24] as const;

/** Why the box is awake, what comes next, and what it uses. */
export default function Activity() {
  const { box, live, mayChange, api } = useBox();
  const loaded = useLoad((signal) => api.boxes.getBoxActivity({ id: box.id }, { signal }), [box.id, box.etag], 5000);
  const [changed, setChanged] = useState<BoxActivity>();
  const [busy, setBusy] = useState(0);
  const activity = changed && loaded.loading ? changed : loaded.data;
  if (!activity && loaded.error !== undefined) return <Problem title="The box's activity cannot be shown" error={loaded.error} retry={loaded.reload} />;
  if (!activity) return <Loading>Asking what keeps the box awake…</Loading>;
  const keep = async (h: number) => {
    setBusy(h);
    try {
      setChanged(await api.boxes.keepBoxAwake({ id: box.id, duration: durationFromMs(h * 3_600_000) }));
      toast(`${box.name} stays awake for ${h} h`);
      loaded.reload();
    } catch (err) {
      toastError(err);
    } finally {
      setBusy(0);
    }
  };
  return (
    <div className="panel activity">
      {live && <Use />}
      <section aria-labelledby="activity-why">
        <h2 id="activity-why">{live ? "Why it is awake" : "Why it is not awake"}</h2>
        {live ? <Awake signals={activity.signals} /> : <Asleep activity={activity} />}
      </section>
      {live && (
        <section aria-labelledby="activity-next">
          <h2 id="activity-next">What comes next</h2>
          <Deadlines list={activity.deadlines} />
          {activity.awakeUntil && <p>Kept awake until {absolute(when(activity.awakeUntil)!)}.</p>}
          {mayChange && (
            <div className="activity-keep" role="group" aria-label="Keep the box awake">
              <span className="soft">Keep it awake for</span>
              {hours.map((h) => (
                <Button key={h} small busy={busy === h} onClick={() => void keep(h)}>
                  {h} h
                </Button>
              ))}
            </div>
          )}
        </section>
      )}
      {live && activity.lastStopTime && (
        <section aria-labelledby="activity-last">
          <h2 id="activity-last">The time before</h2>
          <Asleep activity={activity} />
        </section>
      )}
    </div>
  );
}

function Use() {
  const { now, cpuMillis } = useBoxUse();
  return (
    <section aria-labelledby="activity-use">
      <h2 id="activity-use">What it uses</h2>
      {now ? (
        <div className="meters">
          <Meter label="Processors" used={cpuMillis ?? 0} of={Number(now.cpuLimitMillis)} text={cpuMillis === undefined ? `measuring, of ${cpus(now.cpuLimitMillis)}` : `${(cpuMillis / 1000).toFixed(2)} of ${cpus(now.cpuLimitMillis)}`} />
          <Size label="Memory" used={now.memoryBytes} of={now.memoryLimitBytes} />
          <Size label="Files in home" used={now.homeBytes} of={now.homeLimitBytes} />
          <Size label="Installed programs" used={now.rootBytes} of={now.rootLimitBytes} />
          <Meter label="Processes" used={now.processes} of={now.processesLimit} text={now.processesLimit ? `${now.processes} of ${now.processesLimit}` : String(now.processes)} />
        </div>
      ) : (
        <Loading>Measuring…</Loading>
      )}
    </section>
  );
}

function Size({ label, used, of }: { label: string; used: bigint; of: bigint }) {
  return <Meter label={label} used={Number(used)} of={Number(of)} text={of > 0n ? `${bytes(used)} of ${bytes(of)}` : bytes(used)} />;
}

/** What the server says of who did something: one's own id is "you". */
const told = (text: string, me: string): string => text.replaceAll(`user:${me}`, "you");

function Awake({ signals }: { signals: readonly Signal[] }) {
  const holds = signals.filter((s) => s.active && s.counts);
  const others = signals.filter((s) => !(s.active && s.counts)).toSorted((a, b) => Number((b.time?.seconds ?? 0n) - (a.time?.seconds ?? 0n)));
  return (
    <>
      {holds.length === 0 && <p>Nothing keeps it awake at the moment.</p>}
      <Signals list={holds} />
      {others.length > 0 && <h3>Other use</h3>}
      <Signals list={others} />
    </>
  );
}

function Signals({ list }: { list: readonly Signal[] }) {
  const { user } = useSession();
  return (
    <ul className="items">
        {list.map((s) => (
          <li key={s.kind} className="item">
            <div>
              <strong>{kinds[s.kind] ?? s.kind}</strong>
              {s.detail && <p className="soft small">{told(s.detail, user.id)}</p>}
            </div>
            {s.active && s.counts ? (
              <span className="badge good">keeps it awake</span>
            ) : (
              <span className="soft small">{s.active ? "now; does not keep it awake by itself" : <Ago time={s.time} />}</span>
            )}
          </li>
        ))}
    </ul>
  );
}

function Deadlines({ list }: { list: readonly Deadline[] }) {
  const now = useNow();
  if (list.length === 0) return <p>It goes on until somebody ends it: no rule has a time for it.</p>;
  return (
    <ul className="items">
      {list.map((d) => {
        const at = when(d.time);
        return (
          <li key={`${d.rule} ${d.action}`} className="item">
            <div>
              <strong>
                {actions[d.action] ?? d.action} {rules[d.rule] ?? d.rule}
              </strong>
              <p className="soft small">set by {d.setBy}</p>
            </div>
            {at && (
              <time dateTime={at.toISOString()} title={absolute(at)}>
                {relative(at, now)}
              </time>
            )}
          </li>
        );
      })}
    </ul>
  );
}

const capital = (text: string): string => text.slice(0, 1).toUpperCase() + text.slice(1);

function Asleep({ activity }: { activity: BoxActivity }) {
  const { user } = useSession();
  if (!activity.lastStopTime) return <p>It has not run yet.</p>;
  return (
    <p>
      {activity.lastStopReason ? capital(activity.lastStopReason) : "It ended without a reason that is known"}
      {activity.lastStopActor && ` (by ${told(activity.lastStopActor, user.id)})`}, <Ago time={activity.lastStopTime} />.
    </p>
  );
}
