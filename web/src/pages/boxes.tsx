import { memo, useDeferredValue, useMemo, useState } from "react";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { State } from "../gen/carrel/v1/common_pb";
import { useBoxes } from "../lib/boxes";
import { sentence } from "../lib/errors";
import { bytes, cpus } from "../lib/format";
import { Link, useRouter } from "../lib/router";
import { useSession } from "../lib/session";
import { stateText } from "../lib/states";
import { useTitle } from "../lib/title";
import { Ago, Empty, StateBadge } from "../ui/bits";
import { Button, Loading } from "../ui/button";
import { Problem } from "../ui/error";
import { Icon } from "../ui/icon";
import { VerbMenu, VerbButton } from "./verbs";

const filters = [
  { id: "all", label: "All", fits: () => true },
  { id: "running", label: "Running", fits: (b: Box) => b.state === State.RUNNING || b.state === State.IDLE },
  { id: "asleep", label: "Paused and stopped", fits: (b: Box) => b.state === State.PAUSED || b.state === State.STOPPED },
  { id: "failed", label: "Failed", fits: (b: Box) => b.state === State.FAILED },
] as const;

/** Reports whether a box has every word in its name, template, state or labels. */
export function boxFits(box: Box, text: string): boolean {
  const all = `${box.name} ${box.template} ${stateText(box.state).label} ${Object.entries(box.labels)
    .map(([k, v]) => `${k}=${v}`)
    .join(" ")}`.toLowerCase();
  return text
    .toLowerCase()
    .split(/\s+/)
    .every((word) => all.includes(word));
}

export function BoxesPage() {
  useTitle("Boxes");
  const { boxes, link, error } = useBoxes();
  const { mayChange } = useSession();
  const { query, go } = useRouter();
  const [text, setText] = useState("");
  const typed = useDeferredValue(text);
  const filter = filters.find((f) => f.id === query.get("show")) ?? filters[0];
  const list = useMemo(() => [...(boxes?.values() ?? [])].sort((a, b) => Number((b.createTime?.seconds ?? 0n) - (a.createTime?.seconds ?? 0n)) || a.name.localeCompare(b.name)), [boxes]);
  const shown = list.filter((b) => filter.fits(b) && boxFits(b, typed));
  return (
    <div className="page">
      <header className="page-head">
        <h1>Boxes</h1>
        {mayChange && list.length > 0 && (
          <Link to="/new" className="button primary">
            <Icon name="plus" />
            New box
          </Link>
        )}
      </header>
      {!boxes && (link === "lost" ? <Problem title="Your boxes cannot be shown yet" error={error} /> : <Loading>Looking for your boxes…</Loading>)}
      {boxes && list.length === 0 && (
        <Empty icon="box" title="No boxes yet">
          <p>A box is a Linux machine of your own. Pause it whenever you like: it comes back as you left it, memory and all.</p>
          {mayChange && (
            <Link to="/new" className="button primary">
              <Icon name="plus" />
              Make your first box
            </Link>
          )}
        </Empty>
      )}
      {list.length > 0 && (
        <>
          <div className="toolbar">
            <label className="search">
              <Icon name="search" size={16} />
              <span className="visually-hidden">Find boxes by name, template or label</span>
              <input type="search" value={text} onChange={(e) => setText(e.target.value)} placeholder="Name, template or label" autoComplete="off" spellCheck={false} />
            </label>
            <div className="segments" role="group" aria-label="Show">
              {filters.map((f) => (
                <button key={f.id} type="button" aria-pressed={f === filter} onClick={() => go(f.id === "all" ? "/" : `/?show=${f.id}`, { replace: true })}>
                  {f.label} <span className="count">{list.filter(f.fits).length}</span>
                </button>
              ))}
            </div>
          </div>
          <ul className="box-list" aria-label="Boxes">
            {shown.map((box) => (
              <BoxRow key={box.id} box={box} mayChange={mayChange} />
            ))}
          </ul>
          {shown.length === 0 && (
            <p className="none">
              No box fits.{" "}
              <Button small onClick={() => (setText(""), go("/", { replace: true }))}>
                Show all
              </Button>
            </p>
          )}
        </>
      )}
    </div>
  );
}

const BoxRow = memo(function BoxRow({ box, mayChange }: { box: Box; mayChange: boolean }) {
  return (
    <li className="box-row">
      <div className="box-row-main">
        <Link to={`/boxes/${box.id}`} className="box-name">
          {box.name}
        </Link>
        <StateBadge box={box} />
        <p className="box-facts">
          <span>{box.template}</span>
          <span>{cpus(box.resources?.cpuMillis ?? 0)}</span>
          <span>{bytes(box.resources?.memoryBytes ?? 0)} memory</span>
          <span>
            <Ago time={box.stateTime} />
          </span>
        </p>
        {box.failure?.message && <p className="box-failure">{sentence(box.failure.message)}</p>}
      </div>
      {mayChange && (
        <div className="box-row-verbs">
          <VerbButton box={box} small />
          <VerbMenu box={box} />
        </div>
      )}
    </li>
  );
});
