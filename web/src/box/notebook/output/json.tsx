// JSON as a tree that opens step by step. Everything in it is text.

import { useState } from "react";

const most = 200;

export function JsonTree({ value, name, open }: { value: unknown; name?: string; open: boolean }) {
  const [shown, setShown] = useState(open);
  const [count, setCount] = useState(most);
  const label = name === undefined ? null : <span className="nb-json-key">{name}: </span>;
  if (typeof value !== "object" || value === null) {
    return (
      <div className="nb-json-leaf">
        {label}
        <span className={`nb-json-${value === null ? "null" : typeof value}`}>{typeof value === "string" ? JSON.stringify(value) : String(value)}</span>
      </div>
    );
  }
  const entries = Object.entries(value);
  const brackets = Array.isArray(value) ? "[]" : "{}";
  return (
    <div className="nb-json">
      <button type="button" className="nb-json-toggle" aria-expanded={shown} onClick={() => setShown(!shown)}>
        <span aria-hidden="true">{shown ? "▾" : "▸"}</span> {label}
        <span className="nb-json-size">
          {brackets[0]}
          {entries.length} {entries.length === 1 ? "item" : "items"}
          {brackets[1]}
        </span>
      </button>
      {shown && (
        <div className="nb-json-items">
          {entries.slice(0, count).map(([key, item]) => (
            <JsonTree key={key} name={key} value={item} open={false} />
          ))}
          {entries.length > count && (
            <button type="button" className="nb-small" onClick={() => setCount(count + most)}>
              {entries.length - count} more
            </button>
          )}
        </div>
      )}
    </div>
  );
}
