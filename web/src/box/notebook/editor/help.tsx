// What the kernel knows of the code in a cell: completions and inspection. Nothing of what it says is markup here.

import {
  acceptCompletion,
  autocompletion,
  closeCompletion,
  completionStatus,
  type Completion,
  type CompletionContext,
  type CompletionResult,
  startCompletion,
} from "@codemirror/autocomplete";
import { indentLess, indentMore } from "@codemirror/commands";
import { type Extension, Prec, StateEffect, StateField } from "@codemirror/state";
import { EditorView, keymap, showTooltip, type Tooltip } from "@codemirror/view";
import { createRoot } from "react-dom/client";
import { TextOutput } from "../output/text";
import { pointsBefore, unitsBefore } from "./places";

/** Places are code points. */
export interface Completions {
  readonly start: number;
  readonly end: number;
  readonly items: readonly { readonly text: string; readonly type: string; readonly signature: string }[];
  /** There were more. */
  readonly more: boolean;
}

export interface CodeHelp {
  complete: (code: string, cursor: number, signal: AbortSignal) => Promise<Completions>;
  /** "": nothing is known. */
  inspect: (code: string, cursor: number, signal: AbortSignal) => Promise<string>;
  /** Why nothing came, for people. */
  refusal: (err: unknown) => string;
}

/** After so many ms without an answer it is said that one is waited for. */
const slow = 400;

/** The kinds that CodeMirror has signs for, by what kernels call them. */
const kinds: Readonly<Record<string, string>> = {
  instance: "variable",
  statement: "variable",
  param: "variable",
  module: "namespace",
  magic: "keyword",
  path: "text",
};

// What cannot be seen, or reorders what is around it, is no completion.
// eslint-disable-next-line no-control-regex
const unseen = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069]/;

export function toResult(code: string, found: Completions): CompletionResult | null {
  const from = unitsBefore(code, found.start);
  const to = unitsBefore(code, found.end);
  const options = found.items
    .filter((one) => !unseen.test(one.text))
    .map((one, i): Completion => ({
      label: one.text,
      type: kinds[one.type] ?? one.type,
      detail: one.signature !== "" && !unseen.test(one.signature) ? one.signature : undefined,
      // The kernel's own order.
      sortText: String(i).padStart(5, "0"),
    }));
  if (options.length === 0) return null;
  return { from, to, options, validFor: found.more ? undefined : /^%{0,2}[\p{L}\p{N}_]*$/u };
}

interface Note {
  readonly at: number;
  readonly text: string;
  readonly kind: "text" | "hint";
}
const setNote = StateEffect.define<Note | null>();

/** One tooltip at a time, which goes when the text or the caret changes. */
const notes = StateField.define<Note | null>({
  create: () => null,
  update(note, change) {
    for (const effect of change.effects) if (effect.is(setNote)) return effect.value;
    return change.docChanged || change.selection !== undefined ? null : note;
  },
  provide: (field) => showTooltip.from(field, (note) => (note === null ? null : tooltip(note))),
});

function tooltip(note: Note): Tooltip {
  return {
    pos: note.at,
    above: false,
    arrow: false,
    create(view) {
      const dom = document.createElement("div");
      dom.className = `nb-note ${note.kind}`;
      dom.setAttribute("role", note.kind === "hint" ? "status" : "region");
      if (note.kind === "hint") {
        dom.textContent = note.text;
        return { dom };
      }
      dom.setAttribute("aria-label", "What the kernel knows");
      // It can be scrolled and copied from; Escape leads back.
      dom.tabIndex = -1;
      dom.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Escape") view.focus();
      });
      const root = createRoot(dom);
      root.render(<TextOutput text={note.text} kind="result" label="What the kernel knows" />);
      // Not within an update of React's that may be going on.
      return { dom, destroy: () => queueMicrotask(() => root.unmount()) };
    },
  };
}

function inIndent(view: EditorView): boolean {
  const { main } = view.state.selection;
  const line = view.state.doc.lineAt(main.head);
  return !main.empty || line.text.slice(0, main.head - line.from).trim() === "";
}

/** Takes away what is shown above the text; false: nothing was. */
export function closeHelp(view: EditorView): boolean {
  if (closeCompletion(view)) return true;
  if (view.state.field(notes, false) == null) return false;
  view.dispatch({ effects: setNote.of(null) });
  return true;
}

/** True while keys are those of a list. */
export function choosing(view: EditorView): boolean {
  return completionStatus(view.state) === "active";
}

export function codeHelp(help: CodeHelp): Extension {
  const note = (view: EditorView, value: Note | null) => view.dispatch({ effects: setNote.of(value) });

  async function source(context: CompletionContext): Promise<CompletionResult | null> {
    // By itself only behind a dot: each question is one to the kernel.
    if (!context.explicit && context.matchBefore(/[\p{L}\p{N}_)\]"']\.[\p{L}\p{N}_]*/u) === null) return null;
    const { view, pos } = context;
    const code = context.state.doc.toString();
    const asked = new AbortController();
    context.addEventListener("abort", () => asked.abort(), { onDocChange: true });
    const hint = (text: string) => {
      if (context.explicit && view !== undefined && !context.aborted) note(view, { at: pos, text, kind: "hint" });
    };
    const waiting = setTimeout(() => hint("Asking the kernel…"), slow);
    try {
      const result = toResult(code, await help.complete(code, pointsBefore(code, pos), asked.signal));
      clearTimeout(waiting);
      if (result === null) hint("No completions");
      else if (view !== undefined && !context.aborted && view.state.field(notes) !== null) note(view, null);
      return result;
    } catch (err) {
      if (!asked.signal.aborted) hint(help.refusal(err));
      return null;
    } finally {
      clearTimeout(waiting);
    }
  }

  async function inspect(view: EditorView) {
    const { state } = view;
    const at = state.selection.main.head;
    const code = state.doc.toString();
    const same = () => view.dom.isConnected && view.state.doc.eq(state.doc) && view.state.selection.main.head === at;
    const asked = new AbortController();
    const waiting = setTimeout(() => same() && note(view, { at, text: "Asking the kernel…", kind: "hint" }), slow);
    let answer: Note;
    try {
      const text = await help.inspect(code, pointsBefore(code, at), asked.signal);
      answer = text === "" ? { at, text: "The kernel knows nothing of this", kind: "hint" } : { at, text, kind: "text" };
    } catch (err) {
      answer = { at, text: help.refusal(err), kind: "hint" };
    }
    clearTimeout(waiting);
    if (same()) note(view, answer);
  }

  return [
    notes,
    autocompletion({ override: [source], icons: true, maxRenderedOptions: 100, tooltipClass: () => "nb-completions" }),
    EditorView.domEventHandlers({
      blur: (event, view) => void (!(event.relatedTarget instanceof Node && view.dom.contains(event.relatedTarget)) && view.state.field(notes) !== null && note(view, null)),
    }),
    Prec.highest(
      keymap.of([
        {
          key: "Tab",
          run: (view) => acceptCompletion(view) || (inIndent(view) ? indentMore(view) : startCompletion(view)),
          shift: (view) => (inIndent(view) ? indentLess(view) : (void inspect(view), true)),
        },
        { key: "Ctrl-Space", run: startCompletion },
      ]),
    ),
  ];
}
