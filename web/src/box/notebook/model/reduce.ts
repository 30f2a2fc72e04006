// The document after events of the journal and after edits: pure functions. An event whose position the document already
// has changes nothing, so that replay after any break gives the same document.

import type { JsonObject } from "@bufbuild/protobuf";
import type { NotebookEvent } from "../../../gen/carrel/v1/notebooks_pb";
import { standing } from "../../../stream/cursor";
import { appendOutput, bundle, object, outputKey, parseOutput } from "./nbformat";
import type { Cell, Document, Edit, MimeBundle, Output, Run } from "./types";
import { parseEdit, parseKernel, parseRun } from "./wire";

/** The document after events, in order. Costs one copy of what changed, however many events there are. */
export function applyEvents(doc: Document, events: readonly NotebookEvent[]): Document {
  const work = new Work(doc);
  for (const event of events) work.event(event);
  return work.done();
}

/** The document after edits; those that do not fit it (any more) change nothing. */
export function applyEdits(doc: Document, edits: readonly Edit[]): Document {
  const work = new Work(doc);
  for (const edit of edits) work.edit(edit);
  return work.done();
}

/** A document while it is being changed: parts are copied the first time they are touched. */
class Work {
  private d: { -readonly [K in keyof Document]: Document[K] };
  private readonly cells: Map<string, Cell>;
  private readonly runs: Map<string, Run>;
  /** Output lists that belong to this change and may be pushed to. */
  private readonly own = new Map<string, Output[]>();
  private changed = false;

  constructor(private readonly from: Document) {
    this.d = { ...from };
    this.cells = new Map(from.cells);
    this.runs = new Map(from.runs);
  }

  done(): Document {
    if (!this.changed) return this.from;
    return { ...this.d, cells: this.cells, runs: this.runs };
  }

  event(e: NotebookEvent) {
    const how = standing(e.cursor, this.d.cursor);
    if (how === "seen") return;
    if (e.path !== "" && e.path !== this.d.path) return;
    const body = e.event;
    if (how === "other-journal" || body.case === "gap") {
      this.touch({ stale: true });
      return;
    }
    if (how === "new") this.touch({ cursor: e.cursor });
    switch (body.case) {
      case "queued":
        this.queued(parseRun(body.value));
        break;
      case "started":
        this.started(e, body.value.executionCount);
        break;
      case "output": {
        const output = parseOutput(body.value);
        if (output !== null) this.output(e, output);
        break;
      }
      case "displayUpdate":
        this.update(body.value.displayId, bundle(body.value.data), object(body.value.metadata));
        break;
      case "clearOutput":
        this.mine(e, (cell) => (body.value.wait ? { ...cell, clearNext: true } : { ...cell, outputs: [], clearNext: false }));
        break;
      case "truncated":
        this.output(e, { kind: "truncated", key: outputKey(), bytes: Number(body.value.bytes), file: body.value.file });
        break;
      case "question":
        this.run(e.execution, { question: { prompt: body.value.prompt, password: body.value.password } });
        break;
      case "answered":
        this.run(e.execution, { question: null });
        break;
      case "ended":
        this.ended(parseRun(body.value));
        break;
      case "kernelChanged":
        this.touch({ kernel: body.value.id === "" ? null : parseKernel(body.value) });
        break;
      case "edited": {
        this.touch({ revision: body.value.revision });
        for (const message of body.value.edits) {
          const edit = parseEdit(message);
          // A newer page made an edit that this one does not know.
          if (edit === null) this.touch({ stale: true });
          else this.edit(edit);
        }
        break;
      }
      case "reloaded":
        this.touch({ stale: !body.value.removed, removed: body.value.removed });
        break;
      case "unsaved":
        this.touch({ unsaved: body.value });
        break;
    }
  }

  edit(edit: Edit) {
    switch (edit.kind) {
      case "insert": {
        const { cell } = edit;
        if (cell.id === "" || this.cells.has(cell.id)) return;
        this.cells.set(cell.id, { ...cell, execution: "", clearNext: false });
        this.touch({ order: insertAfter(this.d.order, cell.id, edit.after) });
        break;
      }
      case "remove":
        if (!this.cells.delete(edit.cell)) return;
        this.own.delete(edit.cell);
        this.touch({ order: this.d.order.filter((id) => id !== edit.cell) });
        break;
      case "move":
        if (!this.cells.has(edit.cell) || edit.cell === edit.after) return;
        this.touch({
          order: insertAfter(
            this.d.order.filter((id) => id !== edit.cell),
            edit.cell,
            edit.after,
          ),
        });
        break;
      case "source":
        this.cell(edit.cell, (cell) => (cell.source === edit.source ? cell : { ...cell, source: edit.source }));
        break;
      case "type":
        this.cell(edit.cell, (cell) => {
          if (cell.type === edit.type) return cell;
          // What only code has does not outlive its being code.
          return { ...cell, type: edit.type, ...(edit.type === "code" ? {} : { outputs: [], count: 0 }) };
        });
        break;
      case "metadata":
        this.cell(edit.cell, (cell) => ({ ...cell, metadata: edit.metadata }));
        break;
      case "clear":
        for (const id of edit.cell === "*" ? this.d.order : [edit.cell]) {
          this.cell(id, (cell) => (cell.outputs.length === 0 && cell.count === 0 ? cell : { ...cell, outputs: [], count: 0, clearNext: false }));
        }
        break;
      case "notebook":
        this.touch({ metadata: edit.metadata });
        break;
    }
  }

  private touch(change: Partial<Document>) {
    this.changed = true;
    Object.assign(this.d, change);
  }

  private cell(id: string, change: (cell: Cell) => Cell) {
    const was = this.cells.get(id);
    if (was === undefined) return;
    const now = change(was);
    if (now === was) return;
    if (now.outputs !== was.outputs) this.own.delete(id);
    this.cells.set(id, now);
    this.changed = true;
  }

  /** Changes the cell of an event, unless a newer execution has it by now. */
  private mine(e: NotebookEvent, change: (cell: Cell) => Cell) {
    this.cell(e.cell, (cell) => (e.execution !== "" && cell.execution !== "" && cell.execution !== e.execution ? cell : change(cell)));
  }

  private run(id: string, change: Partial<Run>) {
    const was = this.runs.get(id);
    if (was === undefined) return;
    this.runs.set(id, { ...was, ...change });
    this.changed = true;
  }

  private queued(run: Run) {
    if (this.runs.has(run.id)) return;
    const cell = this.cells.get(run.cell);
    // Only the newest execution of a cell is of interest.
    if (cell !== undefined && cell.execution !== "" && ended(this.runs.get(cell.execution))) this.runs.delete(cell.execution);
    this.runs.set(run.id, run);
    this.cell(run.cell, (c) => (ended(this.runs.get(c.execution)) ? { ...c, execution: run.id } : c));
    this.changed = true;
  }

  private started(e: NotebookEvent, count: number) {
    const at = e.time === undefined ? 0 : Number(e.time.seconds) * 1000 + Math.floor(e.time.nanos / 1e6);
    this.run(e.execution, { state: "running", started: at, count });
    this.cell(e.cell, (cell) => ({ ...cell, execution: e.execution, outputs: [], count, clearNext: false }));
  }

  private output(e: NotebookEvent, output: Output) {
    const cell = this.cells.get(e.cell);
    if (cell === undefined || (e.execution !== "" && cell.execution !== "" && cell.execution !== e.execution)) return;
    const kept = cell.clearNext ? [] : (this.own.get(cell.id) ?? [...cell.outputs]);
    appendOutput(kept, output);
    this.own.set(cell.id, kept);
    this.cells.set(cell.id, { ...cell, outputs: kept, clearNext: false });
    this.changed = true;
  }

  private update(displayId: string, data: MimeBundle, metadata: JsonObject) {
    if (displayId === "") return;
    for (const id of this.d.order) {
      this.cell(id, (cell) => {
        if (!cell.outputs.some((o) => o.kind === "rich" && o.displayId === displayId)) return cell;
        return { ...cell, outputs: cell.outputs.map((o) => (o.kind === "rich" && o.displayId === displayId ? { ...o, data, metadata } : o)) };
      });
    }
  }

  private ended(run: Run) {
    const was = this.runs.get(run.id);
    this.runs.set(run.id, { ...run, cell: run.cell || was?.cell || "", queued: run.queued || was?.queued || 0, started: run.started || was?.started || 0, question: null });
    this.changed = true;
    this.cell(run.cell || was?.cell || "", (cell) => {
      if (cell.execution !== "" && cell.execution !== run.id) return cell;
      // Queued again while it ran: that one is of interest now.
      const next = [...this.runs.values()].find((r) => r.cell === cell.id && r.state === "queued");
      return { ...cell, execution: next?.id ?? run.id, count: run.count || cell.count };
    });
  }
}

/** True for an execution that is over or unknown. */
export function ended(run: Run | undefined): boolean {
  return run === undefined || (run.state !== "queued" && run.state !== "running");
}

/** An order with id behind after; behind nothing or a cell that is gone: first, and last. */
export function insertAfter(order: readonly string[], id: string, after: string): string[] {
  if (after === "") return [id, ...order];
  const at = order.indexOf(after);
  if (at < 0) return [...order, id];
  return [...order.slice(0, at + 1), id, ...order.slice(at + 1)];
}

/** Place of each queued execution in its kernel's queue, from 1; the running one is not counted. */
export function queuePlaces(doc: Document): ReadonlyMap<string, number> {
  const places = new Map<string, number>();
  for (const run of doc.runs.values()) if (run.state === "queued") places.set(run.id, places.size + 1);
  return places;
}

/** The running execution of a document, if there is one. */
export function running(doc: Document): Run | undefined {
  for (const run of doc.runs.values()) if (run.state === "running") return run;
  return undefined;
}

/** Outputs larger than this are not compared. In characters of JSON. */
const mostCompared = 1_000_000;

/** A document that was read again, with the outputs of the one before where they are the same: what is shown of them stays as it is. */
export function keepOutputs(was: Document, now: Document): Document {
  let cells: Map<string, Cell> | null = null;
  const text = (outputs: readonly Output[]) => JSON.stringify(outputs, (key, value: unknown) => (key === "key" ? undefined : value));
  for (const [id, cell] of now.cells) {
    const old = was.cells.get(id);
    if (old === undefined || old.outputs.length !== cell.outputs.length || cell.outputs.length === 0) continue;
    const before = text(old.outputs);
    if (before.length > mostCompared || before !== text(cell.outputs)) continue;
    cells ??= new Map(now.cells);
    cells.set(id, { ...cell, outputs: old.outputs });
  }
  return cells === null ? now : { ...now, cells };
}
