import { MergeView, acceptChunk, goToNextChunk, goToPreviousChunk, rejectChunk } from "@codemirror/merge";
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { EditorState } from "@codemirror/state";
import { keymap } from "@codemirror/view";
import { useEffect, useRef } from "react";
import { Button } from "../../ui/button";
import { plain } from "../files/names";
import type { Document } from "./documents";
import { common } from "./setup";

/** The file on the disk and what was typed here, side by side: one of them is taken, or both in parts. */
export default function Merge({ document: d }: { document: Document }) {
  const host = useRef<HTMLDivElement>(null);
  const view = useRef<MergeView | null>(null);
  useEffect(() => {
    const mine = d.text;
    const made = new MergeView({
      parent: host.current!,
      a: { doc: d.theirs, extensions: [common(`${plain(d.name)} on the disk`, true), EditorState.readOnly.of(true)] },
      b: {
        doc: mine,
        extensions: [
          history(),
          common(`${plain(d.name)}, yours`, false),
          keymap.of([
            { key: "Alt-ArrowDown", run: goToNextChunk },
            { key: "Alt-ArrowUp", run: goToPreviousChunk },
            { key: "Alt-Enter", run: acceptChunk },
            { key: "Alt-Backspace", run: rejectChunk },
            ...defaultKeymap,
            ...historyKeymap,
          ]),
        ],
      },
      revertControls: "a-to-b",
      renderRevertControl: () => {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "editor-take";
        button.textContent = "→";
        button.title = "Take this part from the disk";
        button.setAttribute("aria-label", button.title);
        return button;
      },
      highlightChanges: true,
      gutter: true,
      collapseUnchanged: { margin: 4, minSize: 8 },
    });
    view.current = made;
    return () => {
      view.current = null;
      // Work on the comparison is not lost when the disk changes once more.
      const merged = made.b.state.doc.toString();
      made.destroy();
      if (merged !== mine && d.sync.phase === "conflict") d.keepMerged(merged);
    };
  }, [d]);
  return (
    <div className="editor-merge">
      <div className="editor-notice bad" role="alert">
        <span>
          <strong>Somebody else changed this file meanwhile.</strong> On the left is what is on the disk, on the right what is yours. Nothing is saved until you choose.
        </span>
        <span className="editor-choices">
          <Button small onClick={() => d.resolve("theirs")}>
            Take theirs
          </Button>
          <Button small onClick={() => d.resolve("mine")}>
            Keep mine
          </Button>
          <Button small kind="primary" onClick={() => view.current && d.resolve("merged", view.current.b.state.doc.toString())}>
            Save the right side
          </Button>
        </span>
      </div>
      <div className="editor-sides" aria-hidden="true">
        <span>On the disk</span>
        <span>Yours</span>
      </div>
      <div ref={host} className="editor-merge-view" />
    </div>
  );
}
