import { type DragEvent, type FormEvent, useState } from "react";
import { IconButton } from "../../ui/button";
import { baseOf, isBelow, parentOf } from "./names";
import { FileName } from "./parts";

/** Where the tree begins, and the way above it. */
export function Crumbs({ root, home, onGo, onDrop }: { root: string; home: string; onGo: (path: string) => void; onDrop: ((e: DragEvent, directory: string) => void) | undefined }) {
  const [typing, setTyping] = useState<string | null>(null);
  const above: string[] = [];
  const top = root === home || isBelow(root, home) ? home : "/";
  for (let p = root; ; p = parentOf(p)) {
    above.unshift(p);
    if (p === top || p === "/") break;
  }
  const submit = (e: FormEvent) => {
    e.preventDefault();
    const text = typing!.trim();
    setTyping(null);
    if (text === "" || text === "~") return onGo(home);
    const path = text.startsWith("~/") ? `${home}/${text.slice(2)}` : text.startsWith("/") ? text : `${root}/${text}`;
    onGo(path.replace(/\/{2,}/g, "/").replace(/(.)\/$/, "$1"));
  };
  if (typing !== null) {
    return (
      <form className="files-crumbs" onSubmit={submit}>
        <input
          aria-label="Folder to show"
          autoFocus
          value={typing}
          spellCheck={false}
          autoCapitalize="off"
          autoComplete="off"
          onChange={(e) => setTyping(e.target.value)}
          onBlur={() => setTyping(null)}
          onKeyDown={(e) => {
            if (e.key === "Escape") setTyping(null);
          }}
        />
      </form>
    );
  }
  return (
    <nav className="files-crumbs" aria-label="Folder that is shown">
      <ol>
        {top === home && (
          <li>
            <button type="button" title="Everything in the box" onClick={() => onGo("/")}>
              /
            </button>
          </li>
        )}
        {above.map((p) => (
          <li key={p}>
            <button type="button" aria-current={p === root ? "true" : undefined} onClick={() => onGo(p)} onDragOver={(e) => onDrop && e.preventDefault()} onDrop={(e) => onDrop?.(e, p)}>
              {p === home ? "Home" : p === "/" ? "/" : <FileName name={baseOf(p)} />}
            </button>
          </li>
        ))}
        {top !== home && (
          <li>
            <button type="button" onClick={() => onGo(home)}>
              Back to Home
            </button>
          </li>
        )}
      </ol>
      <IconButton icon="edit" label="Go to a folder by its path" onClick={() => setTyping(root)} />
    </nav>
  );
}
