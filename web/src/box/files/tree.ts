// What the tree of files shows: directories that were read, which of them are open, what is chosen. Every change makes a new value; what it
// needs of the box is asked by store.ts.

import { baseOf, byName, isBelow, join, parentOf } from "./names";

export interface Entry {
  path: string;
  name: string;
  /** file, directory, symlink or other. */
  type: string;
  size: number;
  modified: Date | undefined;
  /** Where a link leads, as it is written. */
  target: string;
  /** A link to a directory: it can be opened as one. */
  leadsToDirectory?: boolean;
}

export interface Directory {
  state: "reading" | "ready" | "failed";
  entries: ReadonlyMap<string, Entry>;
  /** Where its next page begins; empty: all of it is here. */
  next: string;
  /** How many pages were read. */
  pages: number;
  error?: unknown;
}

export interface Tree {
  root: string;
  directories: ReadonlyMap<string, Directory>;
  open: ReadonlySet<string>;
  hidden: boolean;
  /** Paths that are chosen. */
  chosen: ReadonlySet<string>;
  /** Where the keyboard is: the key of a row. */
  active: string;
  /** Where a range began. */
  anchor: string;
}

export type Row =
  | { kind: "entry"; key: string; entry: Entry; level: number; at: number; of: number; open: boolean | undefined }
  | { kind: "more" | "reading" | "empty"; key: string; directory: string; level: number }
  | { kind: "failed"; key: string; directory: string; level: number; error: unknown };

export function newTree(root: string): Tree {
  return { root, directories: new Map(), open: new Set([root]), hidden: false, chosen: new Set(), active: "", anchor: "" };
}

export const isDirectory = (entry: Entry): boolean => entry.type === "directory" || entry.leadsToDirectory === true;

/** Directories first, then by name. */
const inOrder = (a: Entry, b: Entry): number => Number(isDirectory(b)) - Number(isDirectory(a)) || byName(a.name, b.name);

const sorted = new WeakMap<ReadonlyMap<string, Entry>, Entry[]>();

function entriesOf(directory: Directory, hidden: boolean): Entry[] {
  let all = sorted.get(directory.entries);
  if (!all) {
    all = [...directory.entries.values()].sort(inOrder);
    sorted.set(directory.entries, all);
  }
  return hidden ? all : all.filter((e) => !e.name.startsWith("."));
}

/** The rows that are seen, from the top. */
export function rows(tree: Tree): Row[] {
  const all: Row[] = [];
  const walk = (path: string, level: number) => {
    const directory = tree.directories.get(path);
    if (!directory) return;
    const entries = entriesOf(directory, tree.hidden);
    for (const [i, entry] of entries.entries()) {
      const open = isDirectory(entry) ? tree.open.has(entry.path) : undefined;
      all.push({ kind: "entry", key: entry.path, entry, level, at: i + 1, of: directory.next ? -1 : entries.length, open });
      if (open) walk(entry.path, level + 1);
    }
    if (directory.state === "failed") all.push({ kind: "failed", key: `${path}\0failed`, directory: path, level, error: directory.error });
    else if (directory.state === "reading" && directory.pages === 0) all.push({ kind: "reading", key: `${path}\0reading`, directory: path, level });
    else if (directory.next) all.push({ kind: "more", key: `${path}\0more`, directory: path, level });
    else if (entries.length === 0) all.push({ kind: "empty", key: `${path}\0empty`, directory: path, level });
  };
  walk(tree.root, 1);
  return all;
}

export function withDirectory(tree: Tree, path: string, directory: Directory): Tree {
  const directories = new Map(tree.directories);
  directories.set(path, directory);
  return prune({ ...tree, directories });
}

/** Begins to read a directory; what was read of it before stays in sight. */
export function reading(tree: Tree, path: string): Tree {
  const before = tree.directories.get(path);
  return withDirectory(tree, path, before ? { ...before, state: "reading" } : { state: "reading", entries: new Map(), next: "", pages: 0 });
}

/** All of a directory that is shown was read again. */
export function read(tree: Tree, path: string, entries: readonly Entry[], next: string, pages: number): Tree {
  const before = tree.directories.get(path)?.entries;
  const kept = entries.map((e) => {
    const old = before?.get(e.name);
    // Where a link leads was found out by a question of its own.
    return old?.leadsToDirectory && e.type === "symlink" && e.target === old.target ? { ...e, leadsToDirectory: true } : e;
  });
  return withDirectory(tree, path, { state: "ready", entries: new Map(kept.map((e) => [e.name, e])), next, pages });
}

export function failed(tree: Tree, path: string, error: unknown): Tree {
  const before = tree.directories.get(path);
  return withDirectory(tree, path, { state: "failed", entries: before?.entries ?? new Map(), next: "", pages: before?.pages ?? 0, error });
}

/** One entry is there, changed, or (null) gone. */
export function withEntry(tree: Tree, path: string, entry: Entry | null): Tree {
  const directory = tree.directories.get(parentOf(path));
  if (!directory) return tree;
  const name = baseOf(path);
  if (entry === null && !directory.entries.has(name)) return tree;
  const entries = new Map(directory.entries);
  if (entry === null) entries.delete(name);
  else entries.set(name, entry);
  return withDirectory(tree, parentOf(path), { ...directory, entries });
}

/** Opens or closes a directory. */
export function setOpen(tree: Tree, path: string, open: boolean): Tree {
  if (tree.open.has(path) === open) return tree;
  const all = new Set(tree.open);
  if (open) all.add(path);
  else for (const p of tree.open) if (p === path || isBelow(p, path)) all.delete(p);
  const active = !open && isBelow(tree.active, path) ? path : tree.active;
  return { ...tree, open: all, active };
}

/** Forgets what is no longer there: closed and lost directories, chosen paths that are gone. */
function prune(tree: Tree): Tree {
  const there = (path: string): boolean => {
    const directory = tree.directories.get(parentOf(path));
    return directory === undefined || directory.state !== "ready" || directory.next !== "" || directory.entries.has(baseOf(path));
  };
  const open = new Set([...tree.open].filter((p) => p === tree.root || !isBelow(p, tree.root) || there(p)));
  const chosen = new Set([...tree.chosen].filter(there));
  return { ...tree, open: open.size === tree.open.size ? tree.open : open, chosen: chosen.size === tree.chosen.size ? tree.chosen : chosen };
}

/** Directories that are in sight and open, the root first. */
export function openDirectories(tree: Tree): string[] {
  return [tree.root, ...[...tree.open].filter((p) => p !== tree.root && isBelow(p, tree.root) && allOpen(tree, p))];
}

function allOpen(tree: Tree, path: string): boolean {
  for (let p = path; p !== tree.root && p !== "/"; p = parentOf(p)) if (!tree.open.has(p)) return false;
  return true;
}

/** How a click or key chooses: one alone, one more or less, or everything from the anchor. */
export type Choice = "only" | "toggle" | "range";

export function choose(tree: Tree, key: string, how: Choice): Tree {
  const seen = rows(tree);
  const row = seen.find((r) => r.key === key);
  if (!row) return tree;
  if (row.kind !== "entry") return { ...tree, active: key };
  if (how === "toggle") {
    const chosen = new Set(tree.chosen);
    if (!chosen.delete(key)) chosen.add(key);
    return { ...tree, chosen, active: key, anchor: key };
  }
  const from = seen.findIndex((r) => r.key === (tree.anchor || key));
  if (how === "range" && from >= 0) {
    const to = seen.indexOf(row);
    const between = seen.slice(Math.min(from, to), Math.max(from, to) + 1);
    return { ...tree, chosen: new Set(between.flatMap((r) => (r.kind === "entry" ? [r.key] : []))), active: key };
  }
  return { ...tree, chosen: new Set([key]), active: key, anchor: key };
}

/** What is chosen, without what lies below something else that is chosen. */
export function topmost(paths: Iterable<string>): string[] {
  const all = [...paths].sort();
  return all.filter((p) => !all.some((other) => other !== p && isBelow(p, other)));
}

/** The row that begins with what is typed, looked for from behind the active one. */
export function typed(seen: readonly Row[], active: string, text: string): string | undefined {
  const at = seen.findIndex((r) => r.key === active);
  const begin = text.length === 1 ? at + 1 : Math.max(0, at);
  const wanted = text.toLocaleLowerCase();
  for (let i = 0; i < seen.length; i++) {
    const row = seen[(begin + i) % seen.length]!;
    if (row.kind === "entry" && row.entry.name.toLocaleLowerCase().startsWith(wanted)) return row.key;
  }
  return undefined;
}

/** The directory into which something new goes: the active one, or that of the active file. */
export function placeFor(tree: Tree): string {
  const entry = find(tree, tree.active);
  if (!entry) return tree.root;
  return isDirectory(entry) && tree.open.has(entry.path) ? entry.path : parentOf(entry.path);
}

export const find = (tree: Tree, path: string): Entry | undefined => (path.includes("\0") || path === "" ? undefined : tree.directories.get(parentOf(path))?.entries.get(baseOf(path)));

/** Where something goes when it is moved into a directory; undefined: it is there already, or would go into itself. */
export function movedTo(source: string, directory: string): string | undefined {
  if (parentOf(source) === directory || source === directory || isBelow(directory, source)) return undefined;
  return join(directory, baseOf(source));
}
