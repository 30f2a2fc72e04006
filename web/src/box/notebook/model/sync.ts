// What this page changed and the server does not have yet, as a pure function of what happened.
//
// The *document* is what the server said. *Drafts* are texts of cells that were typed here. *Operations* are the other
// edits made here. One request is in *flight* at a time; a request that was answered is *acked* until the event that tells
// of it has come. What a person sees is the document with all of these laid over it.
//
// Nothing typed is dropped: a text that somebody else changed too is merged by lines, or kept beside theirs as a conflict
// until a person chooses; the text of a cell that was removed elsewhere comes back as a new cell.

import type { NotebookEvent } from "../../../gen/carrel/v1/notebooks_pb";
import { reached } from "../../../stream/cursor";
import { merge } from "./merge";
import { cellId } from "./nbformat";
import { applyEdits, applyEvents, keepOutputs } from "./reduce";
import type { Document, Edit, NewCell } from "./types";

export interface Draft {
  /** The server's text that this one was made from. */
  readonly base: string;
  readonly text: string;
  /** The server's text, changed where this one was changed too; null: no conflict. */
  readonly theirs: string | null;
}

interface Flight {
  readonly id: string;
  readonly edits: readonly Edit[];
  /** The edits are those of the operations, then those of the sources. */
  readonly operations: readonly Operation[];
  readonly sources: ReadonlyMap<string, string>;
  /** Lost on its way, maybe: sent again with the same id. */
  readonly tries: number;
}

interface Operation {
  readonly edits: readonly Edit[];
}

export interface Sync {
  readonly doc: Document;
  readonly drafts: ReadonlyMap<string, Draft>;
  readonly queue: readonly Operation[];
  readonly flight: Flight | null;
  readonly acked: readonly { readonly edits: readonly Edit[]; readonly cursor: string }[];
  /** Operations are sent one by one, after several together were refused. */
  readonly single: boolean;
  /** The save timer runs. */
  readonly due: boolean;
  /** Why the server did not take the last request; "": it did. It is tried again. */
  readonly trouble: string;
  /** What a person sees. */
  readonly view: Document;
}

export type SyncInput =
  | { type: "events"; events: readonly NotebookEvent[] }
  /** The notebook was read (again); events that came meanwhile, those after its cursor, go on top. */
  | { type: "loaded"; doc: Document }
  | { type: "typed"; cell: string; text: string }
  | { type: "edit"; edits: readonly Edit[] }
  /** Send what there is now. */
  | { type: "flush" }
  | { type: "timer" }
  | { type: "answered"; id: string; cursor: string }
  /** Definitely not done. */
  | { type: "refused"; id: string; reason: string; cell: string; message: string }
  /** Nobody knows whether it was done. */
  | { type: "lost"; id: string; message: string }
  /** A person chose the text of a cell in conflict. */
  | { type: "resolved"; cell: string; text: string }
  /** What a page that is gone had typed and not sent, or sent without an answer. */
  | { type: "restored"; cells: readonly KeptCell[] };

export type SyncEffect =
  | { type: "send"; id: string; edits: readonly Edit[] }
  /** Give "timer" after so many ms. */
  | { type: "timer"; ms: number }
  /** Send the same again after so many ms, with the same id. */
  | { type: "resend"; id: string; edits: readonly Edit[]; ms: number }
  | { type: "read" }
  | { type: "say"; message: string; good?: boolean };

/** A cell whose text the server does not have, as it is kept for another page. */
export interface KeptCell {
  readonly cell: NewCell;
  /** The cell before it. */
  readonly after: string;
  /** The text that it was made from. */
  readonly base: string;
  /** The server may not have the cell. */
  readonly isNew: boolean;
}

/** A typed text is sent at latest so many ms later. */
export const saveAfter = 400;

export function newSync(doc: Document): Sync {
  return { doc, drafts: new Map(), queue: [], flight: null, acked: [], single: false, due: false, trouble: "", view: doc };
}

/** True when the server has everything. */
export function settled(s: Sync): boolean {
  return s.drafts.size === 0 && s.queue.length === 0 && s.flight === null;
}

/** What would be lost with this page: texts, and new cells. Other edits are made again by hand. */
export function toKeep(s: Sync): KeptCell[] {
  const made = new Map<string, NewCell>();
  for (const op of [...(s.flight?.operations ?? []), ...s.queue]) for (const e of op.edits) if (e.kind === "insert") made.set(e.cell.id, e.cell);
  const kept: KeptCell[] = [];
  for (const [i, id] of s.view.order.entries()) {
    const insert = made.get(id);
    const draft = s.drafts.get(id);
    const cell = s.view.cells.get(id);
    if (cell === undefined || (insert === undefined && draft === undefined)) continue;
    const { type, source, metadata, attachments } = cell;
    const { outputs, count } = insert ?? { outputs: [], count: 0 };
    kept.push({ cell: { id, type, source, metadata, attachments, outputs, count }, after: s.view.order[i - 1] ?? "", base: draft?.base ?? insert?.source ?? "", isNew: insert !== undefined });
  }
  return kept;
}

/** The id of the cell that takes the text of one that is gone: always the same, so that putting it back twice makes one cell. */
function idFor({ cell, base }: KeptCell): string {
  let a = 0x811c9dc5;
  let b = 0x1b873593;
  for (const c of `${cell.id}\0${base}\0${cell.source}`) {
    a = Math.imul(a ^ (c.codePointAt(0) ?? 0), 0x01000193);
    b = Math.imul(b ^ a, 0x85ebca6b) ^ (b >>> 13);
  }
  return `kept-${(a >>> 0).toString(16)}${(b >>> 0).toString(16)}`;
}

/** Cells whose text waits for a person's choice. */
export function conflicts(s: Sync): string[] {
  return [...s.drafts].filter(([, d]) => d.theirs !== null).map(([id]) => id);
}

export function sync(state: Sync, input: SyncInput, requestId: () => string): { state: Sync; effects: SyncEffect[] } {
  const t = new Turn(state, requestId);
  t.take(input);
  return t.done();
}

class Turn {
  private s: { -readonly [K in keyof Sync]: Sync[K] };
  private readonly effects: SyncEffect[] = [];

  constructor(
    private readonly from: Sync,
    private readonly requestId: () => string,
  ) {
    this.s = { ...from };
  }

  done() {
    const { s, from } = this;
    const same =
      s.doc === from.doc && s.drafts === from.drafts && s.queue === from.queue && s.flight === from.flight && s.acked === from.acked;
    if (!same) s.view = this.lay();
    return { state: s as Sync, effects: this.effects };
  }

  take(input: SyncInput) {
    switch (input.type) {
      case "events":
        this.events(applyEvents(this.s.doc, input.events));
        break;
      case "loaded":
        this.events(keepOutputs(this.s.doc, input.doc));
        break;
      case "typed":
        this.typed(input.cell, input.text);
        break;
      case "edit":
        this.edit(input.edits);
        break;
      case "flush":
      case "timer":
        this.s.due = false;
        this.send();
        break;
      case "answered":
        this.answered(input.id, input.cursor);
        break;
      case "refused":
        this.refused(input);
        break;
      case "lost": {
        const { flight } = this.s;
        if (flight?.id !== input.id) break;
        this.s.flight = { ...flight, tries: flight.tries + 1 };
        this.s.trouble = input.message;
        this.effects.push({ type: "resend", id: flight.id, edits: flight.edits, ms: Math.min(10_000, 500 * 2 ** Math.min(flight.tries, 8)) });
        break;
      }
      case "resolved": {
        const draft = this.s.drafts.get(input.cell);
        if (draft === undefined) break;
        this.draft(input.cell, { base: draft.theirs ?? draft.base, text: input.text, theirs: null });
        this.send();
        break;
      }
      case "restored":
        this.restored(input.cells);
        break;
    }
  }

  /** The document with what was answered and not told of yet. */
  private server(): Document {
    return this.s.acked.length === 0 ? this.s.doc : applyEdits(this.s.doc, this.s.acked.flatMap((a) => a.edits));
  }

  private lay(): Document {
    const { doc, acked, flight, queue, drafts } = this.s;
    const edits: Edit[] = acked.flatMap((a) => [...a.edits]);
    if (flight !== null) edits.push(...flight.edits);
    for (const op of queue) edits.push(...op.edits);
    for (const [cell, d] of drafts) edits.push({ kind: "source", cell, source: d.text });
    return edits.length === 0 ? doc : applyEdits(doc, edits);
  }

  private draft(cell: string, draft: Draft | null) {
    const drafts = new Map(this.s.drafts);
    if (draft === null || (draft.theirs === null && draft.text === draft.base)) drafts.delete(cell);
    else drafts.set(cell, draft);
    this.s.drafts = drafts;
  }

  private soon() {
    if (this.s.due) return;
    this.s.due = true;
    this.effects.push({ type: "timer", ms: saveAfter });
  }

  private events(doc: Document) {
    if (doc === this.s.doc) return;
    const was = this.s.doc;
    this.s.doc = doc;
    if (doc.stale && !was.stale) this.effects.push({ type: "read" });
    const acked = this.s.acked.filter((a) => !reached(doc.cursor, a.cursor));
    if (acked.length !== this.s.acked.length) this.s.acked = acked;
    this.rebase(was);
  }

  /** Brings drafts onto the texts that the server has now. */
  private rebase(was: Document) {
    if (this.s.drafts.size === 0) return;
    const server = this.server();
    for (const [id, draft] of this.s.drafts) {
      const cell = server.cells.get(id);
      if (cell === undefined) {
        this.orphan(id, draft, was);
        continue;
      }
      const theirs = cell.source;
      const known = draft.theirs ?? draft.base;
      if (theirs === known) continue;
      if (theirs === this.s.flight?.sources.get(id)) {
        // Our own, told of before it was answered.
        this.draft(id, { ...draft, base: theirs, theirs: null });
        continue;
      }
      const merged = merge(draft.base, draft.text, theirs);
      if (merged === null) {
        this.draft(id, { ...draft, theirs });
        continue;
      }
      this.draft(id, { base: theirs, text: merged, theirs: null });
      this.soon();
    }
  }

  /** The cell of a draft is gone from the server. */
  private orphan(id: string, draft: Draft, was: Document) {
    const isNew = [...(this.s.flight?.operations ?? []), ...this.s.queue].some((op) => op.edits.some((e) => e.kind === "insert" && e.cell.id === id));
    if (isNew) return;
    this.draft(id, null);
    const gone = was.cells.get(id);
    if (gone === undefined || draft.text.trim() === "") return;
    const before = was.order[was.order.indexOf(id) - 1] ?? "";
    const { type, metadata, attachments } = gone;
    this.queue([{ kind: "insert", after: before, cell: { id: cellId(), type, source: draft.text, metadata, attachments, outputs: [], count: 0 } }]);
    this.effects.push({ type: "say", message: "A cell was removed elsewhere while you were writing in it. It was put back with your text." });
    this.soon();
  }

  /** Puts back what was kept. What the server has by now changes nothing. */
  private restored(cells: readonly KeptCell[]) {
    let back = false;
    for (const kept of cells) {
      const { id, source: text } = kept.cell;
      const here = this.lay();
      const cell = here.cells.get(id);
      if (cell === undefined) {
        const made = { ...kept.cell, id: kept.isNew ? id : idFor(kept) };
        if (text.trim() === "" || here.cells.has(made.id)) continue;
        this.queue([{ kind: "insert", after: here.cells.has(kept.after) ? kept.after : (here.order.at(-1) ?? ""), cell: made }]);
        back = true;
        continue;
      }
      const merged = merge(kept.base, text, cell.source);
      if (merged === cell.source || cell.source === text) continue;
      const base = this.sourceToCome(id) ?? cell.source;
      this.draft(id, merged === null ? { base: kept.base, text, theirs: cell.source } : { base, text: merged, theirs: null });
      back = true;
    }
    if (!back) return;
    this.soon();
    this.effects.push({ type: "say", message: "What you had typed before and was not saved is back.", good: true });
  }

  private queue(edits: readonly Edit[]) {
    this.s.queue = [...this.s.queue, { edits }];
  }

  private typed(cell: string, text: string) {
    const draft = this.s.drafts.get(cell);
    if (draft !== undefined) {
      this.draft(cell, { ...draft, text });
    } else {
      const base = this.sourceToCome(cell);
      if (base === undefined || base === text) return;
      this.draft(cell, { base, text, theirs: null });
    }
    this.soon();
  }

  /** The text that a cell has at the server once what was sent has been done. */
  private sourceToCome(cell: string): string | undefined {
    const { flight, queue } = this.s;
    const edits = [...(flight?.operations ?? []), ...queue].flatMap((op) => [...op.edits]);
    const sent = flight?.sources.get(cell);
    if (sent !== undefined) return sent;
    const here = edits.length === 0 ? this.server() : applyEdits(this.server(), edits);
    return here.cells.get(cell)?.source;
  }

  private edit(edits: readonly Edit[]) {
    for (const e of edits) if (e.kind === "remove") this.draft(e.cell, null);
    this.queue(edits);
    this.send();
  }

  private send() {
    if (this.s.flight !== null) return;
    const operations = this.s.single ? this.s.queue.slice(0, 1) : this.s.queue;
    const edits = operations.flatMap((op) => [...op.edits]);
    const server = this.server();
    const sources = new Map<string, string>();
    if (!this.s.single || operations.length === 0) {
      const after = edits.length === 0 ? server : applyEdits(server, edits);
      for (const [id, draft] of this.s.drafts) {
        if (draft.theirs !== null || !after.cells.has(id)) continue;
        edits.push({ kind: "source", cell: id, source: draft.text, expected: draft.base });
        sources.set(id, draft.text);
        if (this.s.single) break;
      }
    }
    if (edits.length === 0) {
      this.s.single = false;
      return;
    }
    const id = this.requestId();
    this.s.flight = { id, edits, operations, sources, tries: 0 };
    this.s.queue = this.s.queue.slice(operations.length);
    this.effects.push({ type: "send", id, edits });
  }

  private answered(id: string, cursor: string) {
    const { flight } = this.s;
    if (flight?.id !== id) return;
    this.s.flight = null;
    this.s.trouble = "";
    if (!reached(this.s.doc.cursor, cursor)) this.s.acked = [...this.s.acked, { edits: flight.edits, cursor }];
    for (const [cell, text] of flight.sources) {
      const draft = this.s.drafts.get(cell);
      // Unless somebody changed it after us, and we know already.
      if (draft !== undefined && draft.theirs === null && (this.server().cells.get(cell)?.source ?? text) === text) this.draft(cell, { ...draft, base: text });
    }
    this.rebase(this.s.doc);
    if (this.s.queue.length > 0 || this.s.single) this.send();
    else if (this.s.drafts.size > 0) this.soon();
  }

  private refused(r: { id: string; reason: string; cell: string; message: string }) {
    const { flight } = this.s;
    if (flight?.id !== r.id) return;
    this.s.flight = null;
    this.s.trouble = "";
    if (r.reason === "cell_changed") {
      this.s.queue = [...flight.operations, ...this.s.queue];
      const draft = this.s.drafts.get(r.cell);
      if (draft !== undefined && draft.theirs === null && this.server().cells.get(r.cell)?.source === draft.base) {
        // The server knows of a change that we do not: read, and merge when it has come.
        this.effects.push({ type: "read" });
        this.soon();
        return;
      }
      this.soon();
      return;
    }
    const parts = flight.operations.length + flight.sources.size;
    if (parts > 1) {
      // One of several: find out which.
      this.s.queue = [...flight.operations, ...this.s.queue];
      this.s.single = true;
      this.send();
      return;
    }
    // Alone, and refused: an operation is given up, a text is kept and said.
    this.effects.push({ type: "say", message: r.message });
    this.effects.push({ type: "read" });
    for (const cell of flight.sources.keys()) {
      this.s.trouble = r.message;
      const draft = this.s.drafts.get(cell);
      if (draft === undefined) continue;
      // Others first, the next time.
      this.draft(cell, null);
      this.draft(cell, draft);
    }
    if (this.s.queue.length > 0) this.send();
  }
}
