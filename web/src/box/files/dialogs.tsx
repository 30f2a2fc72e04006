import { useState } from "react";
import { Button } from "../../ui/button";
import { Dialog } from "../../ui/dialog";
import { FileName } from "./parts";
import { type Entry, isDirectory } from "./tree";
import type { Clash } from "./upload";

export type Ask =
  | { kind: "remove"; entries: readonly Entry[]; resolve: (yes: boolean) => void }
  | { kind: "clash"; name: string; more: boolean; resolve: (answer: { clash: Clash; forAll: boolean } | null) => void };

/** Questions that come before something is lost. */
export function Questions({ ask, onEnd }: { ask: Ask | null; onEnd: () => void }) {
  if (!ask) return null;
  if (ask.kind === "remove") {
    return (
      <Remove
        entries={ask.entries}
        onAnswer={(yes) => {
          onEnd();
          ask.resolve(yes);
        }}
      />
    );
  }
  return (
    <ClashDialog
      key={ask.name}
      name={ask.name}
      more={ask.more}
      onAnswer={(answer) => {
        onEnd();
        ask.resolve(answer);
      }}
    />
  );
}

const shownNames = 8;

function Remove({ entries, onAnswer }: { entries: readonly Entry[]; onAnswer: (yes: boolean) => void }) {
  const directories = entries.filter(isDirectory).length;
  return (
    <Dialog title={entries.length === 1 ? (directories ? "Delete this folder?" : "Delete this file?") : `Delete ${entries.length} files and folders?`} onClose={() => onAnswer(false)}>
      <ul className="files-list">
        {entries.slice(0, shownNames).map((e) => (
          <li key={e.path}>
            <FileName name={e.name} />
          </li>
        ))}
        {entries.length > shownNames && <li className="soft">and {entries.length - shownNames} more</li>}
      </ul>
      <p className="soft">{directories ? "Folders go with everything in them. This cannot be undone." : "This cannot be undone."}</p>
      <div className="dialog-buttons">
        <Button onClick={() => onAnswer(false)}>Cancel</Button>
        <Button kind="danger" icon="delete" data-focus onClick={() => onAnswer(true)}>
          Delete
        </Button>
      </div>
    </Dialog>
  );
}

export function ClashDialog({ name, more, onAnswer }: { name: string; more: boolean; onAnswer: (answer: { clash: Clash; forAll: boolean } | null) => void }) {
  const [forAll, setForAll] = useState(false);
  return (
    <Dialog title="The name is taken" onClose={() => onAnswer(null)}>
      <p>
        <strong>
          <FileName name={name} />
        </strong>{" "}
        is there already. Replacing it loses what is in it now.
      </p>
      {more && (
        <label className="files-all">
          <input type="checkbox" checked={forAll} onChange={(e) => setForAll(e.target.checked)} /> Do the same for the others
        </label>
      )}
      <div className="dialog-buttons">
        <Button onClick={() => onAnswer({ clash: "skip", forAll })}>Skip</Button>
        <Button onClick={() => onAnswer({ clash: "both", forAll })}>Keep both</Button>
        <Button kind="danger" onClick={() => onAnswer({ clash: "replace", forAll })}>
          Replace
        </Button>
      </div>
    </Dialog>
  );
}
