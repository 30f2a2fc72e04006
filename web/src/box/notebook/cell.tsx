// One cell: its mark, its text, its outputs, and what it asks.

import { lazy, memo, Suspense, useCallback, useEffect, useMemo, useRef, useState } from "react";
import { useNow } from "../../lib/now";
import { Button } from "../../ui/button";
import { Icon } from "../../ui/icon";
import { toastError } from "../../ui/toast";
import { Conflict } from "./conflict";
import type { EditorHandle } from "./editor/editor";
import type { CodeHelp } from "./editor/help";
import type { Draft } from "./model/sync";
import type { Cell, Run } from "./model/types";
import { linkOptions } from "./links";
import { Outputs } from "./output/outputs";
import { Rendered } from "./output/rendered";
import { Question } from "./question";
import { mark, words } from "./runs";

const CellEditor = lazy(() => import("./editor/editor"));

export interface CellActions {
  select: (id: string, extend: boolean) => void;
  /** Turns to editing a cell, or to commands. */
  edit: (id: string, on: boolean) => void;
  leave: (id: string, how: "escape" | "up" | "down") => void;
  key: (id: string, event: KeyboardEvent) => boolean;
  type: (id: string, text: string) => void;
  run: (id: string) => void;
  answer: (execution: string, value: string) => Promise<boolean>;
  resolve: (id: string, text: string) => void;
  toggleOutput: (id: string) => void;
  toggleSource: (id: string) => void;
  handle: (id: string, handle: EditorHandle | null) => void;
  file: (path: string) => string;
  help: CodeHelp;
}

export interface CellProps {
  cell: Cell;
  /** From 1. */
  place: number;
  selected: boolean;
  /** The one that has the keyboard. */
  active: boolean;
  editing: boolean;
  run: Run | undefined;
  queuePlace: number;
  asked: boolean;
  draft: Draft | undefined;
  language: string;
  readOnly: boolean;
  folder: string;
  actions: CellActions;
}

const lookOnly = "You may look at this notebook, not run it: you are a viewer here";

const kinds = { code: "Code", markdown: "Text", raw: "Raw" } as const;

export const CellView = memo(function CellView(props: CellProps) {
  const { cell, place, selected, active, editing, run, asked, draft, actions, readOnly } = props;
  const { id } = cell;
  const root = useRef<HTMLDivElement>(null);
  const near = useNear(root, active || editing);
  const jupyter = (cell.metadata.jupyter ?? {}) as Record<string, unknown>;
  const sourceHidden = jupyter.source_hidden === true;
  const outputsHidden = jupyter.outputs_hidden === true || cell.metadata.collapsed === true;
  const options = useMemo(() => linkOptions(props.folder, cell.attachments, actions.file), [props.folder, cell.attachments, actions.file]);
  const isText = cell.type === "markdown" && !editing && draft?.theirs == null;
  const state = run?.state === "running" || run?.state === "queued" || asked ? (run?.state ?? "queued") : "";
  const failed = run?.state === "error" || run?.state === "lost";

  useEffect(() => {
    if (active && !editing && document.activeElement !== root.current && !root.current?.contains(document.activeElement)) root.current?.focus({ preventScroll: true });
    if (active) root.current?.scrollIntoView({ block: "nearest" });
  }, [active, editing]);

  return (
    <div
      ref={root}
      className={`nb-cell ${cell.type} ${selected ? "selected" : ""} ${active ? "active" : ""} ${editing ? "editing" : ""} ${state} ${failed ? "failed" : ""}`}
      role="group"
      aria-roledescription="cell"
      aria-label={`${kinds[cell.type]} cell ${place}`}
      aria-current={active ? "true" : undefined}
      tabIndex={active ? 0 : -1}
      data-cell={id}
      onMouseDown={(e) => {
        if (!(e.target instanceof Element && e.target.closest("button, a, input, .nb-window-text"))) actions.select(id, e.shiftKey);
      }}
      onFocus={(e) => {
        if (e.target === root.current) actions.select(id, false);
      }}
    >
      <div className="nb-gutter">
        {cell.type === "code" ? (
          <>
            <button
              type="button"
              className="nb-run"
              tabIndex={active ? 0 : -1}
              aria-label={`Run cell ${place}`}
              title={readOnly ? lookOnly : "Run this cell (Ctrl+Enter)"}
              disabled={state !== ""}
              aria-disabled={readOnly || undefined}
              onClick={() => (readOnly ? toastError(new Error(lookOnly)) : actions.run(id))}
            >
              <Icon name="play" size={16} />
            </button>
            <span className="nb-mark" aria-hidden="true">
              {mark(cell, run, asked)}
            </span>
          </>
        ) : (
          <span className="nb-mark" aria-hidden="true">
            {cell.type === "raw" ? "raw" : ""}
          </span>
        )}
      </div>
      <div className="nb-body">
        {draft?.theirs != null ? (
          <Conflict mine={draft.text} theirs={draft.theirs} language={cell.type === "code" ? props.language : "markdown"} onChoose={(text) => actions.resolve(id, text)} />
        ) : sourceHidden && !editing ? (
          <button type="button" className="nb-folded" onClick={() => actions.toggleSource(id)}>
            <Icon name="chevron" size={14} /> {cell.source.split("\n", 1)[0] || "Empty cell"} …
          </button>
        ) : isText ? (
          <div className="nb-markdown" onDoubleClick={() => !readOnly && actions.edit(id, true)}>
            {cell.source.trim() === "" ? <p className="nb-hint">Empty text. Press Enter to write.</p> : <Rendered kind="markdown" source={cell.source} options={options} />}
          </div>
        ) : (
          <div className="nb-source" onMouseDown={() => !readOnly && actions.edit(id, true)}>
            {near ? (
              <Suspense fallback={<pre className="nb-plain">{cell.source}</pre>}>
                <CellEditor
                  key={cell.type}
                  source={cell.source}
                  language={cell.type === "code" ? props.language : cell.type}
                  label={`${kinds[cell.type]} of cell ${place}`}
                  hint={cell.type === "markdown" ? "Text in Markdown, with $formulas$" : ""}
                  wrap={cell.type !== "code"}
                  readOnly={readOnly}
                  help={cell.type === "code" && !readOnly ? actions.help : undefined}
                  onChange={(text) => actions.type(id, text)}
                  onLeave={(how) => actions.leave(id, how)}
                  onKey={(event) => actions.key(id, event)}
                  onFocus={() => actions.edit(id, true)}
                  handle={(h) => actions.handle(id, h)}
                />
              </Suspense>
            ) : (
              <pre className="nb-plain">{cell.source}</pre>
            )}
          </div>
        )}
        {cell.type === "code" && <Status {...props} />}
        {run?.question != null && <Question run={run} place={place} onAnswer={actions.answer} />}
        {cell.outputs.length > 0 &&
          (outputsHidden ? (
            <button type="button" className="nb-folded" onClick={() => actions.toggleOutput(id)}>
              <Icon name="chevron" size={14} /> {cell.outputs.length} {cell.outputs.length === 1 ? "output is" : "outputs are"} folded
            </button>
          ) : (
            <Outputs cell={cell} place={place} options={options} file={actions.file} />
          ))}
        {editing && cell.type !== "code" && (
          <div className="nb-done">
            <Button small icon="check" onClick={() => actions.run(id)}>
              Done
            </Button>
          </div>
        )}
      </div>
    </div>
  );
});

function Status({ cell, run, asked, queuePlace }: CellProps) {
  const busy = run?.state === "running";
  return busy ? <Ticking cell={cell} run={run} asked={asked} queuePlace={queuePlace} /> : <StatusText text={words(cell, run, asked, queuePlace, 0)} run={run} />;
}

function Ticking({ cell, run, asked, queuePlace }: Pick<CellProps, "cell" | "run" | "asked" | "queuePlace">) {
  const now = useNow();
  return <StatusText text={words(cell, run, asked, queuePlace, now)} run={run} />;
}

function StatusText({ text, run }: { text: string; run: Run | undefined }) {
  if (text === "") return null;
  return (
    <p className={`nb-status ${run?.state ?? ""}`} title={run && run.started > 0 ? `Since ${new Date(run.started).toLocaleString()}` : undefined}>
      {run?.state === "running" && <span className="dot moving" aria-hidden="true" />}
      {text}
    </p>
  );
}

/** True once an element has come near to what is in sight, and from then on. */
function useNear(ref: React.RefObject<HTMLElement | null>, now: boolean): boolean {
  const [near, setNear] = useState(false);
  const set = useCallback(() => setNear(true), []);
  useEffect(() => {
    const el = ref.current;
    if (near || el === null) return;
    if (now || typeof IntersectionObserver === "undefined") {
      set();
      return;
    }
    const observer = new IntersectionObserver((entries) => entries.some((e) => e.isIntersecting) && set(), { rootMargin: "800px" });
    observer.observe(el);
    return () => observer.disconnect();
  }, [ref, near, now, set]);
  return near || now;
}
