// The files that are open in the editor of one box. They live as long as the page, so that another tab of the page and back changes
// nothing and what was typed is saved meanwhile.

import { Compartment, EditorSelection, EditorState, Transaction, type TransactionSpec } from "@codemirror/state";
import { EditorView, keymap } from "@codemirror/view";
import type { Api } from "../../lib/api";
import { isNotFound, message } from "../../lib/errors";
import { readContent, writeContent } from "../files/http";
import { baseOf, isBelow, plain } from "../files/names";
import * as drafts from "./drafts";
import { languageOf } from "./languages";
import { setup } from "./setup";
import { type Effect, type Input, type Sync, isDirty, newSync, step } from "./sync";
import { decode, difference, encode, isBinary, isSVG, most, pictureType, sample } from "./text";

/** It is saved when nobody has typed for so long, or after the longest, in milliseconds. */
const pause = 700;
const longest = 4000;
/** What is typed is kept in the browser after this, in milliseconds. */
const keepAfter = 250;
/** A larger picture is not shown, in bytes. */
const mostPicture = 30 << 20;

/** Stands for a text that is not known; no text that is edited has a NUL. */
const unknown = "\0";

export type Kind = "opening" | "text" | "picture" | "binary" | "large" | "failed";

export class Document {
  kind: Kind = "opening";
  sync: Sync;
  /** The editor's state while it is not shown. */
  private kept: EditorState | null = null;
  private view: EditorView | null = null;
  scroll = 0;
  eol: "\n" | "\r\n" = "\n";
  /** Why it cannot be changed; empty: it can. */
  fixed = "";
  size = 0;
  error: unknown;
  /** A picture's address, within this page. */
  picture = "";
  /** In conflict: what is on the disk. */
  theirs = "";
  language = "";
  private base = "";
  private readBack = "";
  private timer: ReturnType<typeof setTimeout> | undefined;
  private keepTimer: ReturnType<typeof setTimeout> | undefined;
  private firstEdit = 0;
  private closed = false;
  private looking = false;
  readonly languageOfText = new Compartment();
  readonly wrap = new Compartment();
  private readonly access = new Compartment();

  constructor(
    public path: string,
    private readonly owner: Documents,
  ) {
    this.sync = newSync(owner.live);
    void this.open();
  }

  get name(): string {
    return baseOf(this.path);
  }
  get dirty(): boolean {
    return this.kind === "text" && !this.fixed && isDirty(this.sync);
  }
  get state(): EditorState | null {
    return this.view?.state ?? this.kept;
  }
  get text(): string {
    return this.state?.doc.toString() ?? "";
  }

  /** Reads the file, and what was typed into it before. */
  async open(whole = false): Promise<void> {
    this.kind = "opening";
    this.error = undefined;
    this.fixed = "";
    this.sync = newSync(this.owner.live);
    this.changed();
    const { box } = this.owner;
    const draft = this.owner.mayChange ? await drafts.find(box, this.path) : null;
    if (this.closed) return;
    if (!this.owner.live) {
      if (!draft) return this.changed();
      this.begin(draft.text, draft.eol);
      this.base = unknown;
      this.input({ type: "opened", etag: draft.etag, dirty: true });
      return this.input({ type: "save" });
    }
    try {
      const type = isSVG(this.name) && !whole ? "image/svg+xml" : pictureType(this.name);
      const content = await readContent(box, this.path, { most: type ? mostPicture : most });
      if (this.closed) return;
      this.size = content.size;
      if (content.data.length < content.size) this.kind = "large";
      else if (type && (type !== "image/svg+xml" || !draft)) this.show(type, content.data);
      else if (isBinary(content.data)) this.kind = "binary";
      else {
        const { text, eol, damaged } = decode(content.data);
        if (damaged) this.fixed = "It is not UTF-8: it can be looked at, and is left as it is. Characters that cannot be read are shown as �.";
        const mine = draft && !damaged && draft.text !== text ? draft : null;
        // What a draft was typed on is known only when that is still on the disk.
        this.base = mine && mine.etag !== content.etag ? unknown : text;
        this.begin(mine?.text ?? text, mine?.eol ?? eol);
        this.input({ type: "opened", etag: mine?.etag ?? content.etag, dirty: mine !== null });
        if (mine && mine.etag !== content.etag) this.compare(text, content.etag);
        if (draft && !mine) void drafts.keep(box, this.path, null);
      }
    } catch (err) {
      if (this.closed) return;
      this.error = err;
      this.kind = "failed";
    }
    this.changed();
  }

  /** Shows the beginning of a file that is too large to be edited, or of one that may be no text. */
  async openSample(): Promise<void> {
    try {
      const { data } = await readContent(this.owner.box, this.path, { first: sample });
      this.fixed = this.size > data.length ? "Only its beginning is shown, to be looked at." : "It can be looked at only.";
      this.begin(decode(data).text.replaceAll("\0", "␀"), "\n");
    } catch (err) {
      this.error = err;
      this.kind = "failed";
    }
    this.changed();
  }

  private show(type: string, data: Uint8Array<ArrayBuffer>): void {
    this.kind = "picture";
    if (this.picture.startsWith("blob:")) URL.revokeObjectURL(this.picture);
    // An SVG may hold script. In an image none runs, and by an address of this kind it cannot be opened as a page of ours either.
    if (type === "image/svg+xml") this.picture = `data:image/svg+xml;base64,${base64(data)}`;
    else this.picture = URL.createObjectURL(new Blob([data], { type }));
  }

  private begin(text: string, eol: "\n" | "\r\n"): void {
    this.kind = "text";
    this.eol = eol;
    if (!this.owner.mayChange && !this.fixed) this.fixed = "You may look at files and not change them.";
    this.kept = EditorState.create({
      doc: text,
      extensions: [
        this.access.of(setup(plain(this.name), text, this.fixed !== "")),
        this.languageOfText.of([]),
        this.wrap.of(this.owner.wrap ? EditorView.lineWrapping : []),
        keymap.of([{ key: "Mod-s", run: () => (this.save(), true), preventDefault: true }]),
        EditorView.updateListener.of((update) => {
          if (update.docChanged && !update.transactions.every((t) => t.annotation(Transaction.remote))) this.edited();
          if (update.selectionSet || update.docChanged) this.owner.moved();
        }),
      ],
    });
    const language = languageOf(this.name, text.slice(0, 200).split("\n", 1)[0]);
    this.language = language?.name ?? "Plain text";
    language
      ?.load()
      .then((support) => this.dispatch({ effects: this.languageOfText.reconfigure(support) }))
      .catch((err: unknown) => console.warn("loading a language", err));
  }

  /** Shows it in an element; the result takes it away again. */
  attach(parent: HTMLElement): () => void {
    const view = new EditorView({ state: this.kept!, parent });
    this.view = view;
    view.requestMeasure({ read: () => null, write: () => (view.scrollDOM.scrollTop = this.scroll) });
    return () => {
      this.scroll = view.scrollDOM.scrollTop;
      this.kept = view.state;
      this.view = null;
      view.destroy();
    };
  }

  get editor(): EditorView | null {
    return this.view;
  }

  dispatch(spec: TransactionSpec): void {
    if (this.view) this.view.dispatch(spec);
    else if (this.kept) this.kept = this.kept.update(spec).state;
  }

  goTo(line: number): void {
    const state = this.state;
    if (!state) return;
    const at = state.doc.line(Math.max(1, Math.min(state.doc.lines, line))).from;
    this.dispatch({ selection: EditorSelection.cursor(at), effects: EditorView.scrollIntoView(at, { y: "center" }) });
  }

  save(): void {
    clearTimeout(this.timer);
    this.input({ type: "save" });
  }
  setLive(live: boolean): void {
    if (this.kind === "text") this.input({ type: "live", live });
    else if (live && (this.kind === "opening" || this.kind === "failed")) void this.open();
  }
  /** The disk may have changed. */
  event(): void {
    if (this.kind === "text" && !this.fixed) this.input({ type: "event" });
    else if (this.kind !== "opening" && this.owner.live && !this.looking) {
      // What is only looked at is read again.
      this.looking = true;
      setTimeout(() => {
        this.looking = false;
        if (!this.closed) void this.open();
      }, 500);
    }
  }
  resolve(how: "mine" | "theirs" | "merged", merged?: string): void {
    if (how === "merged" && merged !== undefined) this.replace(merged, false);
    if (how !== "theirs") this.base = this.theirs;
    this.input({ type: "resolve", how });
  }

  /** Takes over what was changed in a comparison that goes on with another text. */
  keepMerged(text: string): void {
    this.replace(text, false);
  }

  /** It has another path now. */
  move(path: string): void {
    if (this.dirty) void drafts.keep(this.owner.box, this.path, null);
    this.path = path;
    if (this.dirty) this.keep();
    this.changed();
  }

  close(forget: boolean): void {
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.keepTimer);
    if (this.picture.startsWith("blob:")) URL.revokeObjectURL(this.picture);
    if (forget && this.dirty) void drafts.keep(this.owner.box, this.path, null);
  }

  draft(): drafts.Draft {
    return { text: this.text, etag: this.sync.etag, eol: this.eol, time: Date.now() };
  }

  private edited(): void {
    if (this.firstEdit === 0) this.firstEdit = performance.now();
    this.input({ type: "edit" });
  }

  private input(input: Input): void {
    if (this.closed) return;
    const [next, effects] = step(this.sync, input);
    this.sync = next;
    for (const effect of effects) this.act(effect);
    this.changed();
  }

  private act(effect: Effect): void {
    switch (effect.type) {
      case "soon": {
        clearTimeout(this.timer);
        const waited = this.firstEdit ? performance.now() - this.firstEdit : 0;
        this.timer = setTimeout(() => this.save(), Math.max(0, Math.min(pause, longest - waited)));
        break;
      }
      case "later":
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.save(), Math.min(30_000, 1000 * 2 ** effect.attempt));
        break;
      case "put":
        void this.put(effect.etag);
        break;
      case "stat":
        void this.look();
        break;
      case "read":
        void this.readAgain();
        break;
      case "show":
        this.replace(this.readBack, true);
        this.base = this.readBack;
        break;
      case "keep":
        this.keep();
        break;
      case "forget":
        clearTimeout(this.keepTimer);
        this.keepTimer = undefined;
        void drafts.keep(this.owner.box, this.path, null);
        break;
    }
  }

  private keep(): void {
    this.keepTimer ??= setTimeout(() => {
      this.keepTimer = undefined;
      if (this.dirty) void drafts.keep(this.owner.box, this.path, this.draft());
    }, keepAfter);
  }

  private async put(etag: string): Promise<void> {
    this.firstEdit = 0;
    const text = this.text;
    const answer = await writeContent(this.owner.box, this.path, encode(text, this.eol), etag);
    if (this.closed) return;
    if (answer.status >= 200 && answer.status < 300) {
      this.base = text;
      this.size = text.length;
      return this.input({ type: "saved", etag: answer.etag });
    }
    if (answer.status === 412) return this.input({ type: "refused" });
    const passing = answer.status === 0 || answer.status === 429 || (answer.status >= 500 && answer.status !== 507);
    this.input({ type: "failed", message: answer.message, passing });
  }

  private async look(): Promise<void> {
    try {
      const info = await this.owner.api.files.statFile({ box: this.owner.box, path: this.path });
      // A link stays, and what it leads to is what is edited.
      if (info.type === "symlink") return await this.readAgain();
      this.input({ type: "seen", etag: info.etag });
    } catch (err) {
      if (isNotFound(err)) this.input({ type: "seen", etag: null });
      // Else nothing is known; saving finds out.
    }
  }

  private async readAgain(): Promise<void> {
    try {
      const { data, etag, size } = await readContent(this.owner.box, this.path, { most });
      if (this.closed) return;
      if (etag === this.sync.etag) return this.input({ type: "seen", etag });
      if (data.length < size || isBinary(data)) return this.dirty ? this.compare("", etag) : void this.open();
      const { text, eol } = decode(data);
      if (!isDirty(this.sync)) this.eol = eol;
      this.compare(text, etag);
    } catch (err) {
      if (isNotFound(err) || ("answer" in (err as object) && (err as { answer: { status: number } }).answer.status === 404)) this.input({ type: "seen", etag: null });
      else console.warn("reading a changed file:", message(err));
    }
  }

  private compare(text: string, etag: string): void {
    this.readBack = text;
    this.theirs = text;
    this.input({ type: "read", etag, as: text === this.text ? "mine" : text === this.base ? "base" : "other" });
  }

  /** Puts another text in where it differs, so that the caret stays. */
  private replace(text: string, remote: boolean): void {
    const change = difference(this.text, text);
    if (change) this.dispatch({ changes: change, ...(remote && { annotations: [Transaction.remote.of(true), Transaction.addToHistory.of(false)] }) });
  }

  private changed(): void {
    this.owner.changed();
  }
}

function base64(data: Uint8Array): string {
  let text = "";
  for (let i = 0; i < data.length; i += 0x8000) text += String.fromCharCode(...data.subarray(i, i + 0x8000));
  return btoa(text);
}

export class Documents {
  list: readonly Document[] = [];
  live = false;
  wrap = false;
  private count = 0;
  private readonly listeners = new Set<() => void>();

  constructor(
    readonly box: string,
    readonly api: Api,
    readonly mayChange: boolean,
  ) {
    addEventListener("pagehide", () => {
      for (const d of this.list) if (d.dirty) drafts.keepAtOnce(box, d.path, d.draft());
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.saveAll();
      else this.lookAll();
    });
    addEventListener("beforeunload", (e) => {
      if (this.list.some((d) => d.dirty)) e.preventDefault();
    });
    try {
      const { paths, wrap } = JSON.parse(sessionStorage.getItem(this.key) ?? "{}") as { paths?: string[]; wrap?: boolean };
      this.wrap = wrap === true;
      this.before = Array.isArray(paths) ? paths.filter((p) => typeof p === "string") : [];
    } catch {
      // Nothing is remembered.
    }
  }
  private before: string[] = [];

  private get key(): string {
    return `carrel.editor.${this.box}`;
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };
  /** A number that is another after each change. */
  readonly get = (): number => this.count;

  changed(): void {
    this.count++;
    for (const l of this.listeners) l();
  }
  /** The caret went elsewhere. */
  moved(): void {
    this.changed();
  }

  /** Opens what was open before the page was loaded. */
  restore(): void {
    const { before } = this;
    this.before = [];
    for (const path of before) this.open(path);
  }

  open(path: string): Document {
    const found = this.list.find((d) => d.path === path);
    if (found) return found;
    const made = new Document(path, this);
    this.list = [...this.list, made];
    this.remember();
    return made;
  }

  close(document: Document, forget: boolean): void {
    document.close(forget);
    this.list = this.list.filter((d) => d !== document);
    this.remember();
  }

  setLive(live: boolean): void {
    if (this.live === live) return;
    this.live = live;
    for (const d of this.list) d.setLive(live);
    this.changed();
  }

  setWrap(wrap: boolean): void {
    this.wrap = wrap;
    for (const d of this.list) d.dispatch({ effects: d.wrap.reconfigure(wrap ? EditorView.lineWrapping : []) });
    this.remember();
  }

  event(path: string): void {
    for (const d of this.list) if (d.path === path) d.event();
  }
  lookAll(): void {
    if (this.live) for (const d of this.list) if (d.kind === "text") d.event();
  }
  saveAll(): void {
    for (const d of this.list) if (d.dirty) d.save();
  }

  /** Files went elsewhere by this page's own doing. */
  went(from: string, to: string | null): string | undefined {
    let last: string | undefined;
    for (const d of this.list) {
      if (d.path !== from && !isBelow(d.path, from)) continue;
      if (to === null) this.close(d, true);
      else {
        d.move(to + d.path.slice(from.length));
        last = d.path;
      }
    }
    this.remember();
    return last;
  }

  private remember(): void {
    try {
      sessionStorage.setItem(this.key, JSON.stringify({ paths: this.list.map((d) => d.path), wrap: this.wrap }));
    } catch {
      // It is remembered as long as the page lives, then.
    }
    this.changed();
  }
}

const all = new Map<string, Documents>();

/** One for each box of the page, also when one leaves the box and comes back: what was typed is still being saved. */
export function documentsOf(box: string, api: Api, mayChange: boolean): Documents {
  let documents = all.get(box);
  if (!documents || documents.mayChange !== mayChange) {
    documents = new Documents(box, api, mayChange);
    all.set(box, documents);
  }
  return documents;
}
