// Finding words in the cells of a notebook.

import { useEffect, useMemo, useRef, useState } from "react";
import { IconButton } from "../../ui/button";
import type { Document } from "./model/types";

export interface Found {
  readonly cell: string;
  readonly from: number;
  readonly to: number;
}

/** Every place of a text in the sources of a notebook, case ignored; at most 5000. */
export function findAll(doc: Document, text: string): Found[] {
  const out: Found[] = [];
  const want = text.toLowerCase();
  if (want === "") return out;
  for (const cell of doc.order) {
    const source = (doc.cells.get(cell)?.source ?? "").toLowerCase();
    for (let at = source.indexOf(want); at >= 0 && out.length < 5000; at = source.indexOf(want, at + want.length)) out.push({ cell, from: at, to: at + want.length });
  }
  return out;
}

export function Find({ doc, onGo, onClose }: { doc: Document; onGo: (found: Found) => void; onClose: () => void }) {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const input = useRef<HTMLInputElement>(null);
  const found = useMemo(() => findAll(doc, text), [doc, text]);
  useEffect(() => input.current?.focus(), []);
  const go = (by: number) => {
    if (found.length === 0) return;
    const next = (at + by + found.length) % found.length;
    setAt(next);
    onGo(found[next] as Found);
  };
  return (
    <div className="nb-find" role="search">
      <input
        ref={input}
        type="text"
        aria-label="Find in the notebook"
        placeholder="Find in the notebook"
        value={text}
        onChange={(e) => {
          setText(e.target.value);
          setAt(-1);
        }}
        onKeyDown={(e) => {
          e.stopPropagation();
          if (e.key === "Enter") {
            e.preventDefault();
            go(e.shiftKey ? -1 : 1);
          } else if (e.key === "Escape") onClose();
        }}
      />
      <span role="status">{text === "" ? "" : found.length === 0 ? "None" : `${Math.max(0, at) + (at < 0 ? 0 : 1)} of ${found.length}`}</span>
      <IconButton icon="down" label="Next" onClick={() => go(1)} />
      <IconButton icon="down" className="nb-upward" label="Previous" onClick={() => go(-1)} />
      <IconButton icon="close" label="Close" onClick={onClose} />
    </div>
  );
}
