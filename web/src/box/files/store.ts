// The files of one box as this page knows them. It lives as long as the page, so that another tab of the page and back changes nothing.

import type { Api } from "../../lib/api";
import { isNotFound } from "../../lib/errors";
import { carrier, entryOf } from "./http";
import { baseOf, isBelow, join, parentOf } from "./names";
import { type Entry, type Tree, failed, find, isDirectory, newTree, openDirectories, read, reading, setOpen, withEntry } from "./tree";
import { Uploads } from "./upload";

const pageSize = 500;
/** Events of a directory are gathered for so long, in milliseconds; then it is looked at again, at most once a second. */
const gather = 120;
const rest = 1000;
/** So many single changes of a directory of several pages are asked for one by one. */
const few = 20;

/** From where to where; null: it is gone. */
export type Went = (from: string, to: string | null) => void;

export class FileStore {
  readonly uploads: Uploads;
  private tree: Tree = newTree("");
  /** The user's home, an absolute path; empty: not known yet. */
  home = "";
  private readonly listeners = new Set<() => void>();
  private readonly changes = new Map<string, { names: Set<string> | null; timer: ReturnType<typeof setTimeout> }>();
  private readonly looked = new Map<string, number>();

  constructor(
    private readonly box: string,
    private readonly api: Api,
  ) {
    this.uploads = new Uploads(carrier(box, api), (path) => this.noteChange(parentOf(path), path));
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };
  readonly get = (): Tree => this.tree;

  private readonly followers = new Set<Went>();
  /** Tells of each path that went elsewhere by this page's doing. */
  readonly follow = (went: Went): (() => void) => {
    this.followers.add(went);
    return () => this.followers.delete(went);
  };
  went(from: string, to: string | null): void {
    for (const f of this.followers) f(from, to);
  }

  set(change: (tree: Tree) => Tree): void {
    const next = change(this.tree);
    if (next === this.tree) return;
    this.tree = next;
    for (const l of this.listeners) l();
  }

  /** Finds the home and reads what is shown. An error says why it cannot. */
  async begin(): Promise<void> {
    if (!this.home) {
      this.home = (await this.api.files.statFile({ box: this.box, path: "." })).path;
      if (!this.tree.root) this.set(() => newTree(this.home));
    }
    await Promise.all(openDirectories(this.tree).map((p) => this.readDirectory(p)));
  }

  /** Shows the tree from another directory on. */
  async goTo(root: string): Promise<void> {
    this.set((t) => ({ ...t, root, open: new Set([...t.open, root]), active: "", anchor: "", chosen: new Set() }));
    await this.readDirectory(root);
  }

  async toggle(path: string, open = !this.tree.open.has(path)): Promise<void> {
    this.set((t) => setOpen(t, path, open));
    if (open) await this.readDirectory(path);
  }

  /** Reads a directory as far as it is shown, or one page more. */
  async readDirectory(path: string, more = false): Promise<void> {
    const before = this.tree.directories.get(path);
    if (!more) this.set((t) => reading(t, path));
    const pages = Math.max(1, before?.pages ?? 1) + (more ? 1 : 0);
    try {
      const entries: Entry[] = [];
      let next = "";
      let n = 0;
      do {
        const page = await this.api.files.listFiles({ box: this.box, path, pageSize, pageToken: next });
        // A link is listed by where it leads; it stays where it is in the tree.
        entries.push(...page.files.map((f) => ({ ...entryOf(f), path: join(path, baseOf(f.path)) })));
        next = page.nextPageToken;
        n++;
      } while (next && n < pages);
      this.looked.set(path, performance.now());
      this.set((t) => read(t, path, entries, next, n));
    } catch (err) {
      if (isNotFound(err) && path !== this.tree.root) this.set((t) => withEntry(t, path, null));
      else this.set((t) => failed(t, path, err));
    }
  }

  refresh(): void {
    for (const path of openDirectories(this.tree)) void this.readDirectory(path);
  }

  /** Something may have changed in a directory: one path in it, or (without one) anything. */
  noteChange(directory: string, path?: string): void {
    if (!this.tree.directories.has(directory)) return;
    const noted = this.changes.get(directory);
    if (noted) {
      if (path === undefined) noted.names = null;
      else noted.names?.add(path);
      return;
    }
    const since = performance.now() - (this.looked.get(directory) ?? -rest);
    const timer = setTimeout(() => void this.lookAgain(directory), Math.max(gather, rest - since));
    this.changes.set(directory, { names: path === undefined ? null : new Set([path]), timer });
  }

  private async lookAgain(directory: string): Promise<void> {
    const names = this.changes.get(directory)?.names ?? null;
    this.changes.delete(directory);
    const known = this.tree.directories.get(directory);
    if (!known || !openDirectories(this.tree).includes(directory)) return;
    if (!names || names.size > few || (known.pages <= 1 && !known.next)) return this.readDirectory(directory);
    this.looked.set(directory, performance.now());
    await Promise.all([...names].map((p) => this.lookAt(p)));
  }

  /** Asks about one path and puts it into the tree, or takes it out. */
  async lookAt(path: string): Promise<void> {
    try {
      const info = await this.api.files.statFile({ box: this.box, path });
      this.set((t) => withEntry(t, path, { ...entryOf(info), path, name: baseOf(path) }));
    } catch (err) {
      if (isNotFound(err)) this.set((t) => withEntry(t, path, null));
    }
  }

  /** Says whether a path is a directory, where a link leads included. */
  async leadsToDirectory(path: string): Promise<boolean> {
    const entry = find(this.tree, path);
    if (entry && entry.type !== "symlink") return isDirectory(entry);
    if (entry?.leadsToDirectory) return true;
    try {
      // A slash at the end follows the link.
      const info = await this.api.files.statFile({ box: this.box, path: `${path}/` });
      if (info.type !== "directory") return false;
    } catch {
      return false;
    }
    if (entry) this.set((t) => withEntry(t, path, { ...entry, leadsToDirectory: true }));
    return true;
  }

  /** Opens every directory above a path, and puts the keyboard there. */
  async reveal(path: string): Promise<void> {
    if (!this.home) await this.begin();
    if (!isBelow(path, this.tree.root)) return;
    const above: string[] = [];
    for (let p = parentOf(path); p !== this.tree.root && p !== "/"; p = parentOf(p)) above.unshift(p);
    for (const p of above) if (!this.tree.open.has(p)) await this.toggle(p, true);
    this.set((t) => ({ ...t, active: path, anchor: path, chosen: new Set([path]) }));
  }
}

const stores = new Map<string, FileStore>();

/** One for each box of the page: uploads go on while one looks elsewhere. */
export function fileStore(box: string, api: Api): FileStore {
  let store = stores.get(box);
  if (!store) {
    store = new FileStore(box, api);
    stores.set(box, store);
  }
  return store;
}
