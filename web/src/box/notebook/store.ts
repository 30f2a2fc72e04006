// The notebook on this page: the document, what was changed here, and the commands on it. Components read snapshots and call methods;
// nothing here knows of React.

import type { BoxStream, Hold } from "../../stream/client";
import type { NotebookEvent } from "../../gen/carrel/v1/notebooks_pb";
import { message } from "../../lib/errors";
import { type NotebookApi, refusal } from "./api";
import type { CodeHelp } from "./editor/help";
import { newCell, randomHex } from "./model/nbformat";
import { ended, running } from "./model/reduce";
import type { Keeper } from "./keeper";
import { conflicts, newSync, settled, type Sync, sync, type SyncEffect, type SyncInput, toKeep } from "./model/sync";
import type { Cell, CellType, Document, Edit, NewCell } from "./model/types";

export interface Snapshot {
  readonly doc: Document | null;
  readonly sync: Sync | null;
  /** Why there is no document. */
  readonly error: unknown;
  /** Cells that were told to run and are not yet known to be queued. */
  readonly asked: ReadonlySet<string>;
  /** What a screen reader is told. */
  readonly announcement: string;
  readonly canUndo: boolean;
  readonly canRedo: boolean;
}

/** Short words, for what stands beside the caret. */
const helpRefusals: Readonly<Record<string, string>> = {
  kernel_busy: "The kernel is busy and answers this when it is done",
  kernel_slow: "The kernel did not answer in time",
  no_kernel: "No kernel runs yet. Run a cell, then it knows more",
};

/** How often the view follows a flood of events at most, in ms. */
const frame = 33;

export class NotebookStore {
  private snapshot: Snapshot = { doc: null, sync: null, error: undefined, asked: new Set(), announcement: "", canUndo: false, canRedo: false };
  private readonly listeners = new Set<() => void>();
  private readonly timers = new Set<ReturnType<typeof setTimeout>>();
  private events: NotebookEvent[] = [];
  private flushing: ReturnType<typeof setTimeout> | undefined;
  private hold: Hold | null = null;
  private reading = false;
  private readAgain = false;
  private closed = false;
  private undos: { undo: Edit[]; redo: Edit[] }[] = [];
  private redos: { undo: Edit[]; redo: Edit[] }[] = [];
  private clipboard: NewCell[] = [];

  constructor(
    private readonly api: NotebookApi,
    private readonly stream: BoxStream,
    private readonly say: (text: string, bad: boolean) => void,
    /** Keeps what is not saved; null: nothing may be changed here. */
    private readonly keeper: Keeper | null = null,
  ) {}

  /** What the kernel knows of code. */
  readonly help: CodeHelp = {
    complete: (code, cursor, signal) => this.api.complete(code, cursor, signal),
    inspect: (code, cursor, signal) => this.api.inspect(code, cursor, signal),
    refusal: (err) => helpRefusals[refusal(err).reason] ?? message(err),
  };

  subscribe = (changed: () => void): (() => void) => {
    this.listeners.add(changed);
    return () => this.listeners.delete(changed);
  };

  read = (): Snapshot => this.snapshot;

  /** Reads the notebook and follows it until `close`. */
  open() {
    this.closed = false;
    this.keeper?.open();
    void this.load();
  }

  close() {
    this.flush();
    this.closed = true;
    this.hold?.close();
    this.hold = null;
    clearTimeout(this.flushing);
    for (const t of this.timers) clearTimeout(t);
    this.timers.clear();
    this.keepAtOnce();
    this.keeper?.close();
  }

  /** The page may be gone a moment later. */
  keepAtOnce = () => {
    const { sync: state } = this.snapshot;
    if (state !== null && !settled(state)) this.keeper?.keepAtOnce(toKeep(state));
  };

  /** True when leaving the page now would lose something. */
  unsaved(): boolean {
    return this.snapshot.sync !== null && !settled(this.snapshot.sync);
  }

  reload = () => {
    this.set({ error: undefined });
    void this.load();
  };

  // Texts and structure

  type(cell: string, text: string) {
    this.input({ type: "typed", cell, text });
  }

  resolve(cell: string, text: string) {
    this.input({ type: "resolved", cell, text });
  }

  flush() {
    if (this.snapshot.sync !== null) this.input({ type: "flush" });
  }

  /** Makes edits that can be undone. */
  edit(edits: Edit[]) {
    const { doc } = this.snapshot;
    if (doc === null || edits.length === 0) return;
    this.undos.push({ undo: inverse(doc, edits), redo: edits });
    if (this.undos.length > 100) this.undos.shift();
    this.redos = [];
    this.apply(edits);
  }

  /** Texts are typed, so that they are merged with what others type; the rest goes at once, and takes the texts along. */
  private apply(edits: readonly Edit[]) {
    const rest: Edit[] = [];
    for (const e of edits) {
      if (e.kind === "source") this.input({ type: "typed", cell: e.cell, text: e.source });
      else rest.push(e);
    }
    if (rest.length > 0) this.input({ type: "edit", edits: rest });
    else this.flush();
  }

  undo() {
    const last = this.undos.pop();
    if (last === undefined) return;
    this.redos.push(last);
    this.apply(last.undo);
  }

  redo() {
    const last = this.redos.pop();
    if (last === undefined) return;
    this.undos.push(last);
    this.apply(last.redo);
  }

  /** Puts a new cell behind another ("" : first) and gives its id. */
  insert(after: string, type: CellType, source = ""): string {
    const cell = newCell(type, source);
    this.edit([{ kind: "insert", after, cell }]);
    return cell.id;
  }

  before(id: string): string {
    const order = this.snapshot.doc?.order ?? [];
    return order[order.indexOf(id) - 1] ?? "";
  }

  /** Removes cells; a notebook keeps at least one. Gives the cell that is selected then. */
  remove(ids: readonly string[]): string {
    const { doc } = this.snapshot;
    if (doc === null) return "";
    const left = doc.order.filter((id) => !ids.includes(id));
    const at = doc.order.indexOf(ids[0] ?? "");
    const edits: Edit[] = ids.filter((id) => doc.cells.has(id)).map((cell) => ({ kind: "remove", cell }));
    let next = left[Math.min(at, left.length - 1)] ?? "";
    if (left.length === 0) {
      const cell = newCell("code");
      edits.push({ kind: "insert", after: "", cell });
      next = cell.id;
    }
    this.edit(edits);
    return next;
  }

  move(ids: readonly string[], by: -1 | 1) {
    const { doc } = this.snapshot;
    const first = ids[0];
    const last = ids.at(-1);
    if (doc === null || first === undefined || last === undefined) return;
    const { order } = doc;
    if (by < 0) {
      const above = order[order.indexOf(first) - 1];
      if (above !== undefined) this.edit([{ kind: "move", cell: above, after: last }]);
    } else {
      const below = order[order.indexOf(last) + 1];
      if (below !== undefined) this.edit([{ kind: "move", cell: below, after: order[order.indexOf(first) - 1] ?? "" }]);
    }
  }

  changeType(ids: readonly string[], type: CellType) {
    this.edit(ids.filter((id) => this.cell(id)?.type !== type).map((cell) => ({ kind: "type", cell, type })));
  }

  /** Cuts a cell in two at a place in its text; gives the id of the second. */
  split(id: string, at: number): string {
    const cell = this.cell(id);
    if (cell === undefined) return id;
    const head = cell.source.slice(0, at).replace(/\n$/, "");
    const tail = cell.source.slice(at).replace(/^\n/, "");
    const made: NewCell = { ...newCell(cell.type, tail), metadata: cell.metadata };
    this.edit([
      { kind: "source", cell: id, source: head },
      { kind: "insert", after: id, cell: made },
    ]);
    return made.id;
  }

  /** Joins cells that follow each other, or one with the one below. */
  merge(ids: readonly string[]) {
    const { doc } = this.snapshot;
    if (doc === null) return;
    let all = [...ids];
    if (all.length === 1) {
      const below = doc.order[doc.order.indexOf(all[0] as string) + 1];
      if (below === undefined) return;
      all = [...all, below];
    }
    const [first, ...rest] = all;
    if (first === undefined) return;
    const joined = all.map((id) => this.cell(id)?.source ?? "").join("\n");
    this.edit([{ kind: "source", cell: first, source: joined }, ...rest.map((cell): Edit => ({ kind: "remove", cell }))]);
  }

  copy(ids: readonly string[]) {
    const cells = ids.map((id) => this.cell(id)).filter((c) => c !== undefined);
    if (cells.length > 0) this.clipboard = cells.map(toNew);
  }

  /** Puts what was copied behind a cell; gives the last new id, or "". */
  paste(after: string): string {
    const cells = this.clipboard.map((c) => ({ ...c, id: newCell("code").id }));
    let at = after;
    const edits = cells.map((cell): Edit => {
      const e: Edit = { kind: "insert", after: at, cell };
      at = cell.id;
      return e;
    });
    this.edit(edits);
    return cells.at(-1)?.id ?? "";
  }

  clearOutputs(cell: string) {
    this.edit([{ kind: "clear", cell }]);
  }

  setMetadata(id: string, change: Record<string, boolean | undefined>, under?: string) {
    const cell = this.cell(id);
    if (cell === undefined) return;
    const whole = { ...cell.metadata };
    const part = under === undefined ? whole : { ...((whole[under] as object | undefined) ?? {}) };
    for (const [key, value] of Object.entries(change)) {
      if (value === undefined) delete (part as Record<string, unknown>)[key];
      else (part as Record<string, unknown>)[key] = value;
    }
    if (under !== undefined) {
      if (Object.keys(part).length === 0) delete whole[under];
      else whole[under] = part as (typeof whole)[string];
    }
    this.input({ type: "edit", edits: [{ kind: "metadata", cell: id, metadata: whole }] });
  }

  // Running

  /** Runs cells: saves what was typed, then queues them. */
  async run(ids: readonly string[]) {
    const doc = this.snapshot.doc;
    const state = this.snapshot.sync;
    if (doc === null || state === null) return;
    const cells = ids.filter((id) => doc.cells.get(id)?.type === "code" && doc.cells.get(id)?.source.trim() !== "");
    if (cells.length === 0) return;
    const open = conflicts(state).filter((id) => cells.includes(id));
    if (open.length > 0) {
      this.say("This cell was changed here and elsewhere. Choose its text first, then run it.", true);
      return;
    }
    this.set({ asked: new Set([...this.snapshot.asked, ...cells]) });
    const id = randomHex(12);
    try {
      await this.saved(cells);
      const now = this.snapshot.doc;
      const sources: Record<string, string> = {};
      for (const cell of cells) sources[cell] = now?.cells.get(cell)?.source ?? "";
      await this.patiently(() => this.api.execute(id, cells, sources));
    } catch (err) {
      const r = refusal(err);
      this.say(r.reason === "cell_changed" ? "A cell was changed elsewhere a moment ago. Look at it, and run it again." : r.message, true);
      if (r.reason === "cell_changed") void this.load();
    } finally {
      const asked = new Set(this.snapshot.asked);
      for (const cell of cells) asked.delete(cell);
      this.set({ asked });
    }
  }

  runAll() {
    return this.run(this.snapshot.doc?.order ?? []);
  }

  async interrupt() {
    await this.act(() => this.api.interrupt());
  }

  /** Restarts the kernel, or starts it when there is none. */
  async restart(): Promise<boolean> {
    const kernel = this.snapshot.doc?.kernel;
    return this.act(async () => {
      if (kernel) await this.api.restartKernel(kernel.id);
      else await this.api.startKernel("");
    });
  }

  async restartAndRunAll() {
    if (await this.restart()) await this.runAll();
  }

  async chooseKernel(spec: string, displayName: string, language: string) {
    const { doc } = this.snapshot;
    if (doc === null) return;
    await this.act(async () => {
      if (doc.kernel) await this.api.shutdownKernel(doc.kernel.id);
      this.input({
        type: "edit",
        edits: [{ kind: "notebook", metadata: { ...doc.metadata, kernelspec: { name: spec, display_name: displayName, language } } }],
      });
      await this.saved([]);
      await this.api.startKernel(spec);
    });
  }

  async shutdown() {
    const kernel = this.snapshot.doc?.kernel;
    if (kernel) await this.act(() => this.api.shutdownKernel(kernel.id));
  }

  async answer(execution: string, value: string): Promise<boolean> {
    try {
      await this.api.answer(execution, value);
      return true;
    } catch (err) {
      const r = refusal(err);
      this.say(r.reason === "no_question" ? "Somebody else has answered already." : r.message, r.reason !== "no_question");
      return false;
    }
  }

  private async act(f: () => Promise<void>): Promise<boolean> {
    try {
      await f();
      return true;
    } catch (err) {
      this.say(message(err), true);
      return false;
    }
  }

  /** Repeats what nobody knows the outcome of; only for requests that are done once however often they come. */
  private async patiently(f: () => Promise<void>) {
    for (let tries = 0; ; tries++) {
      try {
        await f();
        return;
      } catch (err) {
        if (refusal(err).definite || tries >= 5 || this.closed) throw err;
        await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** tries));
      }
    }
  }

  /** Resolves when the server has the texts of these cells and every other edit. */
  private saved(cells: readonly string[]): Promise<void> {
    this.flush();
    return new Promise((resolve, reject) => {
      const done = () => {
        const s = this.snapshot.sync;
        return s === null || (s.flight === null && s.queue.length === 0 && cells.every((c) => !s.drafts.has(c)));
      };
      if (done()) {
        resolve();
        return;
      }
      const stop = this.subscribe(() => {
        if (done()) {
          stop();
          resolve();
        } else if (this.snapshot.sync !== null && cells.some((c) => this.snapshot.sync?.drafts.get(c)?.theirs != null)) {
          stop();
          reject(new Error("This cell was changed here and elsewhere. Choose its text first, then run it."));
        } else if (this.closed) {
          stop();
          reject(new Error("The notebook was closed."));
        } else if (this.snapshot.sync?.flight === null) {
          // Typed while it was being saved.
          queueMicrotask(() => this.flush());
        }
      });
    });
  }

  // What keeps it going

  private cell(id: string): Cell | undefined {
    return this.snapshot.doc?.cells.get(id);
  }

  private async load() {
    if (this.reading) {
      this.readAgain = true;
      return;
    }
    this.reading = true;
    try {
      const doc = await this.api.read();
      if (this.closed) return;
      const { sync: state } = this.snapshot;
      if (state === null) {
        await this.begin(doc);
      } else {
        this.input({ type: "loaded", doc });
      }
      if (this.hold === null) this.watch(doc.cursor);
      else this.hold.restart(doc.cursor);
      for (const repair of state === null ? doc.repairs : []) this.say(repair, false);
    } catch (err) {
      if (this.closed) return;
      if (this.snapshot.doc === null) this.set({ error: err });
      else if (!refusal(err).definite) this.later(2000, () => void this.load());
      else this.say(message(err), true);
    } finally {
      this.reading = false;
      if (this.readAgain && !this.closed) {
        this.readAgain = false;
        void this.load();
      }
    }
  }

  /** Begins with a document, and with what a page before this one could not save. */
  private async begin(doc: Document) {
    const left = await this.keeper?.left();
    if (this.closed) return;
    this.set({ sync: newSync(doc), doc, error: undefined });
    if (left === undefined) return;
    this.input({ type: "restored", cells: left.cells });
    const now = this.snapshot.sync;
    void left.taken(now === null ? [] : toKeep(now));
  }

  private watch(after: string) {
    this.hold = this.stream.watch({ kind: "notebooks", path: this.api.path, after }, (news) => {
      if (news.kind === "event" && news.event.case === "notebook") this.hear(news.event.value);
      else if (news.kind === "gap") void this.load();
      else if (news.kind === "ended") {
        this.hold?.close();
        this.hold = null;
        this.later(3000, () => void this.load());
      }
    });
  }

  private hear(event: NotebookEvent) {
    this.events.push(event);
    this.flushing ??= setTimeout(() => {
      this.flushing = undefined;
      const { events } = this;
      this.events = [];
      this.input({ type: "events", events });
    }, frame);
  }

  private later(ms: number, f: () => void) {
    const t = setTimeout(() => {
      this.timers.delete(t);
      if (!this.closed) f();
    }, ms);
    this.timers.add(t);
  }

  private input(input: SyncInput) {
    const before = this.snapshot.sync;
    if (before === null) return;
    const { state, effects } = sync(before, input, () => randomHex(12));
    if (state !== before) {
      const announcement = announce(before.doc, state.doc) || this.snapshot.announcement;
      this.set({ sync: state, doc: state.view, announcement });
      this.keeper?.keep(() => (this.snapshot.sync === null ? [] : toKeep(this.snapshot.sync)), !settled(state));
    }
    for (const effect of effects) this.effect(effect);
  }

  private effect(effect: SyncEffect) {
    switch (effect.type) {
      case "send":
        void this.send(effect.id, effect.edits);
        break;
      case "resend":
        this.later(effect.ms, () => void this.send(effect.id, effect.edits));
        break;
      case "timer":
        this.later(effect.ms, () => this.input({ type: "timer" }));
        break;
      case "read":
        void this.load();
        break;
      case "say":
        this.say(effect.message, effect.good !== true);
        break;
    }
  }

  private async send(id: string, edits: readonly Edit[]) {
    try {
      const cursor = await this.api.edit(id, edits);
      this.input({ type: "answered", id, cursor });
    } catch (err) {
      const r = refusal(err);
      if (r.definite) this.input({ type: "refused", id, reason: r.reason, cell: r.cell, message: r.message });
      else this.input({ type: "lost", id, message: r.message });
    }
  }

  private set(change: Partial<Snapshot>) {
    this.snapshot = { ...this.snapshot, ...change, canUndo: this.undos.length > 0, canRedo: this.redos.length > 0 };
    for (const changed of this.listeners) changed();
  }
}

function toNew({ id, type, source, metadata, attachments, outputs, count }: Cell): NewCell {
  return { id, type, source, metadata, attachments, outputs, count };
}

/** What takes edits back. */
export function inverse(doc: Document, edits: readonly Edit[]): Edit[] {
  const out: Edit[] = [];
  const before = (id: string, order: readonly string[]) => order[order.indexOf(id) - 1] ?? "";
  let order = [...doc.order];
  for (const e of edits) {
    switch (e.kind) {
      case "insert": {
        out.unshift({ kind: "remove", cell: e.cell.id });
        const at = order.indexOf(e.after);
        order.splice(e.after === "" ? 0 : at < 0 ? order.length : at + 1, 0, e.cell.id);
        break;
      }
      case "remove": {
        const cell = doc.cells.get(e.cell);
        if (cell === undefined) break;
        out.unshift({ kind: "insert", after: before(e.cell, order), cell: toNew(cell) });
        order = order.filter((id) => id !== e.cell);
        break;
      }
      case "move": {
        out.unshift({ kind: "move", cell: e.cell, after: before(e.cell, order) });
        order = order.filter((id) => id !== e.cell);
        const at = order.indexOf(e.after);
        order.splice(e.after === "" ? 0 : at < 0 ? order.length : at + 1, 0, e.cell);
        break;
      }
      case "source":
      case "type":
      case "clear": {
        // All of a cell comes back with it: its text, its kind and its outputs.
        for (const id of e.kind === "clear" && e.cell === "*" ? doc.order : [e.kind === "clear" ? e.cell : e.cell]) {
          const cell = doc.cells.get(id);
          if (cell === undefined) continue;
          if (e.kind === "source") out.unshift({ kind: "source", cell: id, source: cell.source });
          else if (e.kind === "type" && cell.outputs.length === 0) out.unshift({ kind: "type", cell: id, type: cell.type });
          else if (cell.outputs.length > 0 || cell.count > 0) out.unshift({ kind: "remove", cell: id }, { kind: "insert", after: before(id, order), cell: toNew(cell) });
        }
        break;
      }
      case "metadata": {
        const cell = doc.cells.get(e.cell);
        if (cell !== undefined) out.unshift({ kind: "metadata", cell: e.cell, metadata: cell.metadata });
        break;
      }
      case "notebook":
        out.unshift({ kind: "notebook", metadata: doc.metadata });
        break;
    }
  }
  return out;
}

/** What changed, in words for who does not see it. */
function announce(was: Document, now: Document): string {
  if (was === now) return "";
  const words: string[] = [];
  if (was.runs !== now.runs) {
    for (const run of now.runs.values()) {
      const old = was.runs.get(run.id);
      if (old?.state === run.state && old.question === run.question) continue;
      const place = now.order.indexOf(run.cell) + 1;
      if (place === 0) continue;
      if (run.question !== null && old?.question !== run.question) words.push(`Cell ${place} asks: ${run.question.prompt}`);
      else if (run.state === "ok" && !ended(old)) words.push(`Cell ${place} is done.`);
      else if (run.state === "error") words.push(`Cell ${place} failed.`);
      else if (run.state === "lost" || run.state === "cancelled") words.push(`Cell ${place} was not finished.`);
    }
    if (words.length === 0 && running(now) !== undefined && running(was) === undefined) words.push("Running.");
  }
  if (was.kernel?.health !== now.kernel?.health && now.kernel !== null && (now.kernel.health === "dead" || now.kernel.health === "unresponsive")) {
    words.push(`The kernel is ${now.kernel.health}. ${now.kernel.message}`);
  }
  return words.join(" ");
}
