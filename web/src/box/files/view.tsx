import { type DragEvent, type KeyboardEvent, type Ref, useEffect, useImperativeHandle, useLayoutEffect, useMemo, useRef, useState } from "react";
import { absolute, bytes } from "../../lib/format";
import { message } from "../../lib/errors";
import { Ago } from "../../ui/bits";
import { Spinner } from "../../ui/button";
import { Icon } from "../../ui/icon";
import { isBelow, parentOf, plain } from "./names";
import { FileName, FilePicture, NameInput } from "./parts";
import type { FileStore } from "./store";
import { type Entry, type Row, type Tree, choose, find, isDirectory, rows, setOpen, typed } from "./tree";

/** A name that is being typed: of something new, or a new one. */
export type Editing = { kind: "file" | "directory"; directory: string } | { kind: "rename"; path: string };

type Line = Row | { kind: "new"; key: string; level: number };

/** Rows beyond what is seen, at each end. */
const margin = 12;
/** A folder under a thing that is dragged opens after this, in milliseconds. */
const hover = 700;

interface TreeProps {
  ref: Ref<HTMLDivElement>;
  store: FileStore;
  tree: Tree;
  compact: boolean;
  /** The file that is open beside it. */
  current: string | undefined;
  editing: Editing | null;
  mayChange: boolean;
  /** The directory under what is dragged. */
  over: string;
  setOver: (path: string) => void;
  onDrop: (e: DragEvent, directory: string) => void;
  onEdited: (name: string | null) => void;
  onOpen: (entry: Entry) => void;
  onMenu: (x: number, y: number, entry: Entry | null) => void;
  /** Keys that are not the tree's own; true: taken. */
  onKey: (key: "Delete" | "F2" | "copy" | "cut" | "paste", entry: Entry | null) => boolean;
}

const coarse = matchMedia("(pointer: coarse)");

/** The tree itself: only the rows in sight are in the page, however many there are. */
export function FileTree({ ref, store, tree, compact, current, editing, mayChange, over, setOver, onDrop, onEdited, onOpen, onMenu, onKey }: TreeProps) {
  const root = useRef<HTMLDivElement>(null);
  useImperativeHandle(ref, () => root.current!);
  const [scroll, setScroll] = useState({ top: 0, height: 600 });
  const [rowHeight, setRowHeight] = useState(coarse.matches ? 44 : 30);
  const typing = useRef({ text: "", at: 0 });
  const hovered = useRef({ path: "", timer: 0 });
  const lines = useMemo<Line[]>(() => {
    const all: Line[] = rows(tree);
    if (!editing || editing.kind === "rename") return all;
    const at = editing.directory === tree.root ? -1 : all.findIndex((r) => r.key === editing.directory);
    const parent = all[at];
    all.splice(at + 1, 0, { kind: "new", key: "\0new", level: parent ? parent.level + 1 : 1 });
    return all;
  }, [tree, editing]);
  const activeIndex = lines.findIndex((l) => l.key === tree.active);

  useLayoutEffect(() => {
    const element = root.current!;
    const sizes = new ResizeObserver(() => setScroll((s) => ({ ...s, height: element.clientHeight })));
    sizes.observe(element);
    const pointer = () => setRowHeight(coarse.matches ? 44 : 30);
    coarse.addEventListener("change", pointer);
    return () => {
      sizes.disconnect();
      coarse.removeEventListener("change", pointer);
    };
  }, []);
  // The row of the keyboard stays in sight.
  const wanted = editing?.kind === "file" || editing?.kind === "directory" ? lines.findIndex((l) => l.kind === "new") : activeIndex;
  useLayoutEffect(() => {
    const element = root.current!;
    if (wanted < 0) return;
    const top = wanted * rowHeight;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + rowHeight > element.scrollTop + element.clientHeight) element.scrollTop = top + rowHeight - element.clientHeight;
  }, [wanted, tree.active, rowHeight]);
  useEffect(() => () => clearTimeout(hovered.current.timer), []);

  const first = Math.max(0, Math.floor(scroll.top / rowHeight) - margin);
  const last = Math.min(lines.length, Math.ceil((scroll.top + scroll.height) / rowHeight) + margin);
  const seen = lines.slice(first, last);

  const activate = (line: Line) => {
    if (line.kind === "more") void store.readDirectory(line.directory, true);
    else if (line.kind === "failed") void store.readDirectory(line.directory);
    else if (line.kind === "entry") {
      if (isDirectory(line.entry)) void store.toggle(line.entry.path);
      else onOpen(line.entry);
    }
  };
  const go = (index: number, range: boolean) => {
    const to = lines[Math.max(0, Math.min(lines.length - 1, index))];
    if (to) store.set((t) => choose(t, to.key, range ? "range" : "only"));
  };
  const keyDown = (e: KeyboardEvent) => {
    if (e.target !== root.current) return;
    const line = lines[activeIndex];
    const entry = line?.kind === "entry" ? line.entry : null;
    const page = Math.max(1, Math.floor(scroll.height / rowHeight) - 1);
    const mod = e.ctrlKey || e.metaKey;
    const taken = (() => {
      if (mod) {
        if (e.key === "a") {
          store.set((t) => ({ ...t, chosen: new Set(rows(t).flatMap((r) => (r.kind === "entry" ? [r.key] : []))) }));
          return true;
        }
        const verb = ({ c: "copy", x: "cut", v: "paste" } as const)[e.key as "c"];
        if (verb) return onKey(verb, entry);
        if (e.key === " " && entry) {
          store.set((t) => choose(t, entry.path, "toggle"));
          return true;
        }
        return false;
      }
      switch (e.key) {
        case "ArrowDown":
          go(activeIndex + 1, e.shiftKey);
          return true;
        case "ArrowUp":
          go(activeIndex < 0 ? lines.length - 1 : activeIndex - 1, e.shiftKey);
          return true;
        case "PageDown":
          go(activeIndex + page, e.shiftKey);
          return true;
        case "PageUp":
          go(activeIndex - page, e.shiftKey);
          return true;
        case "Home":
          go(0, e.shiftKey);
          return true;
        case "End":
          go(lines.length - 1, e.shiftKey);
          return true;
        case "ArrowRight":
          if (entry && isDirectory(entry)) {
            if (tree.open.has(entry.path)) go(activeIndex + 1, false);
            else void store.toggle(entry.path, true);
          } else if (entry?.type === "symlink") void store.leadsToDirectory(entry.path);
          return true;
        case "ArrowLeft":
          if (entry && isDirectory(entry) && tree.open.has(entry.path)) store.set((t) => setOpen(t, entry.path, false));
          else if (line && "directory" in line) store.set((t) => choose(t, line.directory, "only"));
          else if (entry && parentOf(entry.path) !== tree.root) store.set((t) => choose(t, parentOf(entry.path), "only"));
          return true;
        case "Enter":
          if (line) activate(line);
          return true;
        case " ":
          if (typing.current.text && performance.now() - typing.current.at < 700) break;
          if (entry) store.set((t) => choose(t, entry.path, "toggle"));
          return true;
        case "Delete":
        case "F2":
          return onKey(e.key, entry);
        case "ContextMenu":
        case "F10": {
          if (e.key === "F10" && !e.shiftKey) return false;
          const at = document.getElementById(rowId(tree.active))?.getBoundingClientRect() ?? root.current!.getBoundingClientRect();
          onMenu(at.left + 40, at.bottom, entry);
          return true;
        }
        case "Escape":
          if (tree.chosen.size < 2) return false;
          store.set((t) => ({ ...t, chosen: new Set() }));
          return true;
      }
      if (e.key.length !== 1 || e.altKey) return false;
      const now = performance.now();
      typing.current = { text: now - typing.current.at < 700 ? typing.current.text + e.key : e.key, at: now };
      const to = typed(rows(tree), tree.active, typing.current.text);
      if (to) store.set((t) => choose(t, to, "only"));
      return true;
    })();
    if (taken) {
      e.preventDefault();
      e.stopPropagation();
    }
  };

  const dragOver = (e: DragEvent, directory: string) => {
    if (!mayChange) return;
    e.preventDefault();
    e.stopPropagation();
    const inside = e.dataTransfer.types.includes("application/x-carrel-paths");
    e.dataTransfer.dropEffect = inside && !e.ctrlKey && !e.altKey ? "move" : "copy";
    if (over !== directory) setOver(directory);
    if (hovered.current.path !== directory) {
      clearTimeout(hovered.current.timer);
      hovered.current = { path: directory, timer: window.setTimeout(() => void store.toggle(directory, true), hover) };
    }
  };
  const leave = () => {
    clearTimeout(hovered.current.timer);
    hovered.current.path = "";
    setOver("");
  };
  const directoryOf = (entry: Entry): string => (isDirectory(entry) ? entry.path : parentOf(entry.path));
  const isOver = (line: Row): boolean => over !== "" && line.kind === "entry" && (line.key === over || (over !== tree.root && isBelow(line.key, over)));

  return (
    <div
      ref={root}
      className={`files-tree ${over === tree.root ? "over" : ""}`}
      role="tree"
      aria-label="Files of the box"
      aria-multiselectable="true"
      aria-activedescendant={activeIndex >= first && activeIndex < last ? rowId(tree.active) : undefined}
      aria-busy={tree.directories.get(tree.root)?.state === "reading" || undefined}
      tabIndex={0}
      data-keys=""
      onKeyDown={keyDown}
      onFocus={(e) => {
        if (e.target === root.current && activeIndex < 0 && lines[0]) store.set((t) => ({ ...t, active: lines[0]!.key }));
      }}
      onScroll={(e) => setScroll({ top: e.currentTarget.scrollTop, height: e.currentTarget.clientHeight })}
      onDragOver={(e) => dragOver(e, tree.root)}
      onDragLeave={leave}
      onDrop={(e) => onDrop(e, tree.root)}
      onContextMenu={(e) => {
        e.preventDefault();
        onMenu(e.clientX, e.clientY, null);
      }}
    >
      <div role="none" className="files-rows" style={{ height: lines.length * rowHeight }}>
        {seen.map((line, i) => {
          const style = { top: (first + i) * rowHeight, height: rowHeight, paddingInlineStart: `calc(${line.level - 1} * var(--files-indent) + var(--s2))` };
          if (line.kind === "new") {
            const fresh = editing as Extract<Editing, { directory: string }>;
            return (
              <div key={line.key} role="treeitem" aria-level={line.level} aria-selected={false} aria-label="Something new" className="files-row" style={style}>
                <span className="files-twist" />
                <FilePicture entry={{ path: "", name: "", type: fresh.kind, size: 0, modified: undefined, target: "" }} />
                <NameInput label={fresh.kind === "file" ? "Name of the new file" : "Name of the new folder"} initial="" taken={(n) => tree.directories.get(fresh.directory)?.entries.has(n) ?? false} onDone={onEdited} />
              </div>
            );
          }
          if (line.kind !== "entry") {
            return (
              <div
                key={line.key}
                id={rowId(line.key)}
                role="treeitem"
                aria-level={line.level}
                aria-selected={false}
                className={`files-row note ${line.key === tree.active ? "active" : ""}`}
                style={style}
                onClick={() => {
                  store.set((t) => ({ ...t, active: line.key }));
                  activate(line);
                }}
              >
                <span className="files-twist" />
                {line.kind === "reading" && (
                  <>
                    <Spinner /> Reading…
                  </>
                )}
                {line.kind === "empty" && (line.level === 1 && mayChange ? "Nothing is here yet. Drop files to upload them." : "Nothing is here")}
                {line.kind === "more" && <span className="files-more">Show more: there are many files here</span>}
                {line.kind === "failed" && <span className="files-failed">{message(line.error)} Select this to try again.</span>}
              </div>
            );
          }
          const { entry } = line;
          const chosen = tree.chosen.has(entry.path);
          const renamed = editing?.kind === "rename" && editing.path === entry.path;
          return (
            <div
              key={line.key}
              id={rowId(entry.path)}
              role="treeitem"
              aria-level={line.level}
              aria-posinset={line.at}
              aria-setsize={line.of}
              aria-selected={chosen}
              aria-expanded={line.open}
              title={entry.modified ? `${plain(entry.name)}, changed ${absolute(entry.modified)}` : plain(entry.name)}
              aria-current={entry.path === current ? "true" : undefined}
              data-path={entry.path}
              className={`files-row ${chosen ? "chosen" : ""} ${line.key === tree.active ? "active" : ""} ${entry.path === current ? "current" : ""} ${isOver(line) ? "over" : ""}`}
              style={style}
              draggable={mayChange && !renamed}
              onDragStart={(e) => {
                if (!tree.chosen.has(entry.path)) store.set((t) => choose(t, entry.path, "only"));
                const paths = tree.chosen.has(entry.path) ? [...tree.chosen] : [entry.path];
                e.dataTransfer.setData("application/x-carrel-paths", JSON.stringify(paths));
                e.dataTransfer.setData("text/plain", paths.map(plain).join("\n"));
                e.dataTransfer.effectAllowed = "copyMove";
              }}
              onDragOver={(e) => dragOver(e, directoryOf(entry))}
              onDrop={(e) => onDrop(e, directoryOf(entry))}
              onClick={(e) => {
                root.current?.focus({ preventScroll: true });
                const how = e.shiftKey ? "range" : e.ctrlKey || e.metaKey ? "toggle" : "only";
                store.set((t) => choose(t, entry.path, how));
                if (how === "only") activate(line);
              }}
              onContextMenu={(e) => {
                e.preventDefault();
                e.stopPropagation();
                if (!tree.chosen.has(entry.path)) store.set((t) => choose(t, entry.path, "only"));
                onMenu(e.clientX, e.clientY, entry);
              }}
            >
              <span className="files-twist" data-open={line.open}>
                {line.open !== undefined && <Icon name="chevron" size={12} />}
              </span>
              <FilePicture entry={entry} />
              {renamed ? (
                <NameInput label={`New name of ${plain(entry.name)}`} initial={entry.name} taken={(n) => tree.directories.get(parentOf(entry.path))?.entries.has(n) ?? false} onDone={onEdited} />
              ) : (
                <>
                  <FileName name={entry.name} />
                  {entry.type === "symlink" && (
                    <span className="files-target">
                      → <FileName name={entry.target} />
                    </span>
                  )}
                  <span className="grow" />
                  {!compact && <span className="files-size">{isDirectory(entry) || entry.type === "symlink" ? "" : bytes(entry.size)}</span>}
                  {!compact && <span className="files-time">{entry.modified && <Ago time={entry.modified} />}</span>}
                  <button
                    type="button"
                    tabIndex={-1}
                    aria-hidden="true"
                    className="icon-button files-verbs"
                    onClick={(e) => {
                      e.stopPropagation();
                      const at = e.currentTarget.getBoundingClientRect();
                      if (!tree.chosen.has(entry.path)) store.set((t) => choose(t, entry.path, "only"));
                      onMenu(at.left, at.bottom, find(store.get(), entry.path) ?? entry);
                    }}
                  >
                    <Icon name="more" size={16} />
                  </button>
                </>
              )}
            </div>
          );
        })}
      </div>
    </div>
  );
}

/** An id has no spaces, and a name may have anything. */
function rowId(key: string): string {
  return `files-row-${[...key].map((c) => (/[\w-]/.test(c) ? c : `.${c.codePointAt(0)!.toString(36)}`)).join("")}`;
}
