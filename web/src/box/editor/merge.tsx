import { MergeView, acceptChunk, getChunks, goToNextChunk, goToPreviousChunk, rejectChunk, unifiedMergeView } from "@codemirror/merge";
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { EditorState, type Extension, type Text } from "@codemirror/state";
import { EditorView, keymap, type KeyBinding } from "@codemirror/view";
import { useEffect, useRef, useSyncExternalStore } from "react";
import { Button } from "../../ui/button";
import { plain } from "../files/names";
import type { Document } from "./documents";
import { common } from "./setup";

/** Where two texts have no room beside each other. */
const small = matchMedia("(max-width: 40rem)");
const whenSmall = (changed: () => void) => {
  small.addEventListener("change", changed);
  return () => small.removeEventListener("change", changed);
};

/** What both ways to compare are: what is mine, and the element it is shown in. */
interface Comparison {
  mine: EditorView;
  destroy: () => void;
}

/**
 * The file on the disk and what was typed here: one of them is taken, or both in parts. They are side by side where there is room, and else one
 * text, in which what the disk has stands over what is mine.
 */
export default function Merge({ document: d }: { document: Document }) {
  const host = useRef<HTMLDivElement>(null);
  const view = useRef<Comparison | null>(null);
  const narrow = useSyncExternalStore(whenSmall, () => small.matches);
  useEffect(() => {
    const mine = d.text;
    const made = narrow ? within(host.current!, d, mine) : beside(host.current!, d, mine);
    view.current = made;
    return () => {
      view.current = null;
      // Work on the comparison is not lost when the disk changes once more, or the screen is turned.
      const merged = made.mine.state.doc.toString();
      made.destroy();
      if (merged !== mine && d.sync.phase === "conflict") d.keepMerged(merged);
    };
  }, [d, narrow]);
  return (
    <div className="editor-merge">
      <div className="editor-notice bad" role="alert">
        <span>
          <strong>Somebody else changed this file meanwhile.</strong> {narrow ? "Where they differ, what is on the disk stands over what is yours." : "On the left is what is on the disk, on the right what is yours."} Nothing
          is saved until you choose.
        </span>
        <span className="editor-choices">
          <Button small onClick={() => d.resolve("theirs")}>
            Take theirs
          </Button>
          <Button small onClick={() => d.resolve("mine")}>
            Keep mine
          </Button>
          <Button small kind="primary" onClick={() => view.current && d.resolve("merged", view.current.mine.state.doc.toString())}>
            {narrow ? "Save as it is below" : "Save the right side"}
          </Button>
        </span>
      </div>
      {!narrow && (
        <div className="editor-sides" aria-hidden="true">
          <span>On the disk</span>
          <span>Yours</span>
        </div>
      )}
      <div ref={host} className="editor-merge-view" />
    </div>
  );
}

const collapse = { margin: 4, minSize: 8 };

function beside(parent: HTMLElement, d: Document, mine: string): Comparison {
  const made: MergeView = new MergeView({
    parent,
    a: { doc: d.theirs, extensions: [common(`${plain(d.name)} on the disk`, true), EditorState.readOnly.of(true)] },
    b: { doc: mine, extensions: writable(d, [{ key: "Alt-Backspace", run: (view) => takeChunk(view, made.a.state.doc) }]) },
    revertControls: "a-to-b",
    renderRevertControl: () => control("→", "Take this part from the disk"),
    highlightChanges: true,
    gutter: true,
    collapseUnchanged: collapse,
  });
  return { mine: made.b, destroy: () => made.destroy() };
}

function within(parent: HTMLElement, d: Document, mine: string): Comparison {
  const extensions: Extension[] = [
    writable(d, [
      { key: "Alt-Enter", run: (view) => acceptChunk(view) },
      { key: "Alt-Backspace", run: (view) => rejectChunk(view) },
    ]),
    EditorView.lineWrapping,
    unifiedMergeView({
      original: d.theirs,
      collapseUnchanged: collapse,
      mergeControls: (type, act) => {
        const button = type === "reject" ? control("Take theirs", "Take this part from the disk") : control("Keep mine", "Keep this part of mine");
        // A press of a key is one, too; where the text stands must not change before it.
        button.addEventListener("mousedown", (e) => e.preventDefault());
        button.addEventListener("click", act);
        return button;
      },
    }),
  ];
  const mineView = new EditorView({ parent, doc: mine, extensions });
  return { mine: mineView, destroy: () => mineView.destroy() };
}

function writable(d: Document, keys: KeyBinding[]): Extension[] {
  return [
    history(),
    common(`${plain(d.name)}, yours`, false),
    keymap.of([{ key: "Alt-ArrowDown", run: goToNextChunk }, { key: "Alt-ArrowUp", run: goToPreviousChunk }, ...keys, ...defaultKeymap, ...historyKeymap]),
  ];
}

/** Takes the part that the cursor is in from the disk; the library's own command for that knows one text only. */
function takeChunk(view: EditorView, theirs: Text): boolean {
  const { state } = view;
  const at = state.selection.main.head;
  const chunk = getChunks(state)?.chunks.find((c) => c.fromB <= at && c.endB >= at);
  if (chunk === undefined) return false;
  let insert = theirs.sliceString(chunk.fromA, Math.max(chunk.fromA, chunk.toA - 1));
  if (chunk.fromA !== chunk.toA && chunk.toB <= state.doc.length) insert += state.lineBreak;
  view.dispatch({ changes: { from: chunk.fromB, to: Math.min(state.doc.length, chunk.toB), insert }, userEvent: "revert" });
  return true;
}

function control(text: string, what: string): HTMLButtonElement {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "editor-take";
  button.textContent = text;
  button.title = what;
  button.setAttribute("aria-label", text === "→" ? what : `${text}: ${what.toLowerCase()}`);
  return button;
}
