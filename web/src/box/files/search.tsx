import { useEffect, useState } from "react";
import { bytes } from "../../lib/format";
import { useLoad } from "../../lib/load";
import { Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { Icon } from "../../ui/icon";
import { useBox } from "../context";
import { entryOf } from "./http";
import { isBelow, parentOf } from "./names";
import { FileName, FilePicture } from "./parts";
import { type Entry, isDirectory } from "./tree";

/** So long after the last key the box is asked, in milliseconds. */
const patience = 200;

export function Search({ value, onChange }: { value: string; onChange: (name: string) => void }) {
  return (
    <div className="files-search" role="search">
      <Icon name="search" size={15} />
      <input
        id="files-search"
        type="search"
        aria-label="Search files by name"
        placeholder="Search by name"
        value={value}
        maxLength={250}
        spellCheck={false}
        autoComplete="off"
        autoCapitalize="off"
        onChange={(e) => onChange(e.target.value)}
        onKeyDown={(e) => {
          if (e.key === "Escape" && value) {
            e.stopPropagation();
            onChange("");
          } else if (e.key === "ArrowDown") {
            e.preventDefault();
            document.querySelector<HTMLElement>(".files-found button")?.focus();
          }
        }}
      />
    </div>
  );
}

interface ResultsProps {
  name: string;
  root: string;
  hidden: boolean;
  onOpen: (entry: Entry) => void;
}

function useSettled(value: string): string {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), patience);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}

Search.Results = function Results({ name, root, hidden, onOpen }: ResultsProps) {
  const { box, api } = useBox();
  const settled = useSettled(name.trim());
  const found = useLoad((signal) => (settled ? api.files.findFiles({ box: box.id, path: root, name: settled, limit: 200, hidden }, { signal }) : Promise.resolve(undefined)), [box.id, root, settled, hidden]);
  if (found.error !== undefined && !found.loading) return <Problem title="The search did not work" error={found.error} retry={found.reload} />;
  if (!found.data || (found.loading && found.data.files.length === 0)) return <Loading>Searching…</Loading>;
  const entries = found.data.files.map(entryOf);
  return (
    <div className="files-found" aria-busy={found.loading}>
      <p className="files-count" role="status">
        {entries.length === 0 ? `No name has “${settled}” in it.` : `${entries.length} ${entries.length === 1 ? "name" : "names"}`}
        {found.data.truncated && (entries.length === 0 ? " The search ended before it saw everything: look in a smaller folder." : ", and perhaps more: type more of the name.")}
      </p>
      <ul
        onKeyDown={(e) => {
          const by = { ArrowDown: 1, ArrowUp: -1 }[e.key];
          if (!by) return;
          e.preventDefault();
          const all = [...e.currentTarget.querySelectorAll("button")];
          const next = all[all.indexOf(e.target as HTMLButtonElement) + by];
          if (next) next.focus();
          else if (by < 0) document.getElementById("files-search")?.focus();
        }}
      >
        {entries.map((e) => (
          <li key={e.path}>
            <button type="button" onClick={() => onOpen(e)}>
              <FilePicture entry={e} />
              <FileName name={e.name} />
              <span className="files-where">
                <FileName name={isBelow(e.path, root) ? parentOf(e.path).slice(root === "/" ? 1 : root.length + 1) : parentOf(e.path)} />
              </span>
              {!isDirectory(e) && <span className="files-size">{bytes(e.size)}</span>}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
};
