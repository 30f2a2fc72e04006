import { memo, useEffect, useRef, useState } from "react";
import { Icon, type IconName } from "../../ui/icon";
import { pieces, wrongName } from "./names";
import { type Entry, isDirectory } from "./tree";

/** A name that a box chose, with everything that hides in it, and in its own direction. */
export const FileName = memo(function FileName({ name }: { name: string }) {
  return (
    <bdi className="files-name">
      {pieces(name).map((p, i) =>
        p.odd ? (
          <span key={i} className="files-odd" title="Characters that are not shown as they are">
            {p.text}
          </span>
        ) : (
          p.text
        ),
      )}
    </bdi>
  );
});

const pictures = {
  directory: "M3 5.500h5l1.500 2H17v8H3z",
  file: "M5 3h7l3.500 3.500V17H5zM12 3v3.500h3.500",
  image: "M3 4h14v12H3zM3 13.500l4-4 4.500 4.500M10 12.500l2.500-2.500L17 14.500M13 7.500h.1",
  notebook: "M5 3h11v14H5zM8 3v14",
  link: "M8.500 11.500l3-3M7 9.500 5 11.500a2.500 2.500 0 0 0 3.500 3.500l2-2M13 10.500l2-2A2.500 2.500 0 0 0 11.500 5l-2 2",
  other: "M10 3.500 16.500 10 10 16.500 3.500 10z",
} as const;

const images = /\.(png|jpe?g|gif|webp|avif|bmp|ico|svg)$/i;

/** What kind of thing it is, as a picture; words say it too. */
export function FilePicture({ entry }: { entry: Entry }) {
  const kind = isDirectory(entry) ? "directory" : entry.type === "symlink" ? "link" : entry.type === "other" ? "other" : entry.name.endsWith(".ipynb") ? "notebook" : images.test(entry.name) ? "image" : "file";
  return (
    <svg className="icon files-picture" data-kind={kind} viewBox="0 0 20 20" width={16} height={16} fill="none" stroke="currentColor" strokeWidth="1.5" strokeLinecap="round" strokeLinejoin="round" aria-hidden="true">
      <path d={pictures[kind]} />
    </svg>
  );
}

/** A name that is typed in its place: Enter takes it, Escape leaves it. */
export function NameInput({ label, initial, taken, onDone }: { label: string; initial: string; taken: (name: string) => boolean; onDone: (name: string | null) => void }) {
  const [name, setName] = useState(initial);
  const input = useRef<HTMLInputElement>(null);
  const done = useRef(false);
  useEffect(() => {
    const dot = initial.lastIndexOf(".");
    input.current?.focus();
    input.current?.setSelectionRange(0, dot > 0 ? dot : initial.length);
  }, [initial]);
  const wrong = name === initial || name === "" ? "" : wrongName(name) || (taken(name) ? "There is something of this name already." : "");
  const end = (take: boolean) => {
    if (done.current) return;
    if (take && wrong) return;
    done.current = true;
    onDone(take && name !== "" && name !== initial ? name : null);
  };
  return (
    <span className="files-rename">
      <input
        ref={input}
        aria-label={label}
        aria-invalid={wrong ? true : undefined}
        value={name}
        maxLength={600}
        autoComplete="off"
        autoCapitalize="off"
        spellCheck={false}
        onChange={(e) => setName(e.target.value)}
        onClick={(e) => e.stopPropagation()}
        onBlur={() => {
          if (wrong) {
            done.current = true;
            onDone(null);
          } else end(true);
        }}
        onKeyDown={(e) => {
          e.stopPropagation();
          if (e.key === "Enter") end(true);
          else if (e.key === "Escape") {
            done.current = true;
            onDone(null);
          }
        }}
      />
      {wrong && (
        <span className="files-wrong" role="alert">
          {wrong}
        </span>
      )}
    </span>
  );
}

export interface ContextItem {
  label: string;
  icon?: IconName;
  keys?: string;
  danger?: boolean;
  act: () => void;
}

/** A list of things to do, where the pointer is. */
export function ContextMenu({ x, y, label, items, onClose }: { x: number; y: number; label: string; items: ContextItem[]; onClose: (focusBack: boolean) => void }) {
  const list = useRef<HTMLDivElement>(null);
  const [at, setAt] = useState({ left: x, top: y });
  useEffect(() => {
    const box = list.current!.getBoundingClientRect();
    setAt({ left: Math.max(4, Math.min(x, innerWidth - box.width - 4)), top: Math.max(4, Math.min(y, innerHeight - box.height - 4)) });
    list.current?.querySelector<HTMLElement>("[role=menuitem]")?.focus();
    const outside = (e: Event) => {
      if (!list.current?.contains(e.target as Node)) onClose(false);
    };
    document.addEventListener("pointerdown", outside);
    addEventListener("blur", outside);
    return () => {
      document.removeEventListener("pointerdown", outside);
      removeEventListener("blur", outside);
    };
    // eslint-disable-next-line react-hooks/exhaustive-deps -- it is placed once
  }, []);
  const move = (by: number) => {
    const all = [...(list.current?.querySelectorAll<HTMLElement>("[role=menuitem]") ?? [])];
    all[(all.indexOf(document.activeElement as HTMLElement) + by + all.length) % all.length]?.focus();
  };
  return (
    <div
      ref={list}
      role="menu"
      aria-label={label}
      className="menu files-menu"
      style={at}
      onKeyDown={(e) => {
        e.stopPropagation();
        const act = { ArrowDown: () => move(1), ArrowUp: () => move(-1), Escape: () => onClose(true), Tab: () => onClose(true) }[e.key];
        if (!act) return;
        e.preventDefault();
        act();
      }}
      onContextMenu={(e) => e.preventDefault()}
    >
      {items.map((item) => (
        <button
          key={item.label}
          type="button"
          role="menuitem"
          tabIndex={-1}
          className={`menu-item ${item.danger ? "danger" : ""}`}
          onClick={() => {
            onClose(true);
            item.act();
          }}
        >
          {item.icon && <Icon name={item.icon} />}
          <span className="grow">{item.label}</span>
          {item.keys && <kbd>{item.keys}</kbd>}
        </button>
      ))}
    </div>
  );
}
