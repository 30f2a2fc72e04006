// One cell's text. The text of the notebook is the truth: changes that come from elsewhere are put in where they differ, so that the caret
// and the editor's own undo stay.

import { Compartment, EditorSelection, EditorState, Prec, Transaction } from "@codemirror/state";
import { EditorView, keymap } from "@codemirror/view";
import { useEffect, useLayoutEffect, useRef } from "react";
import { choosing, closeHelp, type CodeHelp, codeHelp } from "./help";
import { language } from "./languages";
import { setup } from "./setup";

export interface EditorHandle {
  focus: () => void;
  /** Where the caret is, in UTF-16 units. */
  caret: () => number;
  placeCaret: (at: "start" | "end") => void;
  select: (from: number, to: number) => void;
}

export interface EditorProps {
  source: string;
  language: string;
  label: string;
  hint?: string;
  wrap?: boolean;
  readOnly?: boolean;
  /** Who knows more of the code; undefined: nobody. */
  help?: CodeHelp;
  onChange: (text: string) => void;
  /** Leave editing: Escape, or an arrow at the edge. */
  onLeave?: (how: "escape" | "up" | "down") => void;
  /** Keys that are the notebook's, such as Shift-Enter; true: taken. */
  onKey?: (event: KeyboardEvent) => boolean;
  onFocus?: () => void;
  handle?: (handle: EditorHandle | null) => void;
}

export default function CellEditor(props: EditorProps) {
  const { source, readOnly = false } = props;
  const host = useRef<HTMLDivElement>(null);
  const view = useRef<EditorView | null>(null);
  const latest = useRef(props);
  useLayoutEffect(() => {
    latest.current = props;
  });
  const tongue = useRef(new Compartment());

  useLayoutEffect(() => {
    const parent = host.current;
    if (parent === null) return;
    const p = latest.current;
    const made = new EditorView({
      parent,
      state: EditorState.create({
        doc: p.source,
        extensions: [
          Prec.highest(
            keymap.of([
              { any: (_view, event) => latest.current.onKey?.(event) ?? false },
              { key: "Escape", run: (v) => closeHelp(v) || (latest.current.onLeave?.("escape"), true) },
              { key: "ArrowUp", run: (v) => edge(v, "up") },
              { key: "ArrowDown", run: (v) => edge(v, "down") },
            ]),
          ),
          tongue.current.of([]),
          EditorState.lineSeparator.of("\n"),
          p.help === undefined ? [] : codeHelp(p.help),
          setup({ label: p.label, hint: p.hint ?? "", wrap: p.wrap ?? false, readOnly }),
          EditorView.updateListener.of((update) => {
            if (update.docChanged && !update.transactions.every((t) => t.annotation(Transaction.remote))) latest.current.onChange(update.state.doc.toString());
            if (update.focusChanged && update.view.hasFocus) latest.current.onFocus?.();
          }),
        ],
      }),
    });
    function edge(v: EditorView, way: "up" | "down"): boolean {
      if (choosing(v)) return false;
      const { main } = v.state.selection;
      const line = v.state.doc.lineAt(main.head).number;
      if (!main.empty || line !== (way === "up" ? 1 : v.state.doc.lines) || latest.current.onLeave === undefined) return false;
      latest.current.onLeave(way);
      return true;
    }
    view.current = made;
    latest.current.handle?.({
      focus: () => made.focus(),
      caret: () => made.state.selection.main.head,
      placeCaret: (at) => made.dispatch({ selection: EditorSelection.cursor(at === "start" ? 0 : made.state.doc.length) }),
      select: (from, to) => made.dispatch({ selection: EditorSelection.single(Math.min(from, made.state.doc.length), Math.min(to, made.state.doc.length)), scrollIntoView: true }),
    });
    return () => {
      latest.current.handle?.(null);
      view.current = null;
      made.destroy();
    };
  }, [readOnly]);

  useLayoutEffect(() => {
    const v = view.current;
    if (v === null) return;
    const change = difference(v.state.doc.toString(), source);
    if (change !== null) v.dispatch({ changes: change, annotations: [Transaction.remote.of(true), Transaction.addToHistory.of(false)] });
  }, [source]);

  useEffect(() => {
    let wanted = true;
    const support = language(props.language);
    if (support === null) view.current?.dispatch({ effects: tongue.current.reconfigure([]) });
    else
      support
        .then((l) => {
          if (wanted) view.current?.dispatch({ effects: tongue.current.reconfigure(l) });
        })
        .catch((err: unknown) => console.error("loading a language", err));
    return () => {
      wanted = false;
    };
  }, [props.language, readOnly]);

  return <div ref={host} className="nb-editor" />;
}

/** The one change that makes b of a, or null when they are the same. */
export function difference(a: string, b: string): { from: number; to: number; insert: string } | null {
  if (a === b) return null;
  let from = 0;
  while (from < a.length && from < b.length && a[from] === b[from]) from++;
  let endA = a.length;
  let endB = b.length;
  while (endA > from && endB > from && a[endA - 1] === b[endB - 1]) {
    endA--;
    endB--;
  }
  return { from, to: endA, insert: b.slice(from, endB) };
}
