// A server of one notebook for tests: it refuses, answers and tells as the contract in notebooks.proto says.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { NotebookEventSchema, type NotebookEvent } from "../../../gen/carrel/v1/notebooks_pb";
import { newCell } from "./nbformat";
import { applyEdits } from "./reduce";
import type { Cell, Document, Edit } from "./types";
import { formatEdit } from "./wire";

export function event(cursor: string, init: Omit<MessageInitShape<typeof NotebookEventSchema>, "$typeName" | "cursor">): NotebookEvent {
  return create(NotebookEventSchema, { cursor, path: "a.ipynb", ...init });
}

export function document(...sources: string[]): Document {
  const cells = new Map<string, Cell>(
    sources.map((source, i) => [`c${i}`, { ...newCell("code", source), id: `c${i}`, execution: "", clearNext: false }]),
  );
  return {
    path: "a.ipynb",
    revision: 1n,
    cursor: "j.0",
    order: [...cells.keys()],
    cells,
    metadata: {},
    kernel: null,
    runs: new Map(),
    unsaved: "",
    repairs: [],
    stale: false,
    removed: false,
  };
}

export type Answer = { ok: true; cursor: string } | { ok: false; reason: string; cell: string; message: string };

export class NotebookServer {
  readonly events: NotebookEvent[] = [];
  private readonly answers = new Map<string, Answer>();
  constructor(public doc: Document) {}

  edit(id: string, edits: readonly Edit[]): Answer {
    const before = this.answers.get(id);
    if (before !== undefined) return before;
    const answer = this.tryEdit(edits);
    if (answer.ok) this.answers.set(id, answer);
    return answer;
  }

  private tryEdit(edits: readonly Edit[]): Answer {
    let doc = this.doc;
    for (const edit of edits) {
      const target = edit.kind === "insert" || edit.kind === "notebook" ? null : edit.cell;
      if (target !== null && target !== "*" && !doc.cells.has(target)) {
        return { ok: false, reason: "cell_not_found", cell: target, message: "There is no such cell." };
      }
      if (edit.kind === "insert" && doc.cells.has(edit.cell.id)) {
        return { ok: false, reason: "cell_exists", cell: edit.cell.id, message: "There is such a cell." };
      }
      if (edit.kind === "source" && edit.expected !== undefined) {
        const now = doc.cells.get(edit.cell)?.source;
        if (now !== edit.expected && now !== edit.source) {
          return { ok: false, reason: "cell_changed", cell: edit.cell, message: "The cell has changed." };
        }
      }
      doc = applyEdits(doc, [edit]);
    }
    const cursor = `j.${this.events.length + 1}`;
    const revision = doc.revision + 1n;
    this.doc = { ...doc, revision, cursor };
    this.events.push(event(cursor, { event: { case: "edited", value: { revision, edits: edits.map(formatEdit) } } }));
    return { ok: true, cursor };
  }
}
