// Between messages of the API and the page's document: the one place that knows both.

import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import {
  ExecutionState,
  KernelState,
  type Execution,
  type Kernel,
  type Notebook,
  type NotebookEdit,
  type NotebookEditSchema,
} from "../../../gen/carrel/v1/notebooks_pb";
import { cellType, formatCell, object, parseCell } from "./nbformat";
import type { Cell, Document, Edit, KernelHealth, KernelInfo, Run, RunState } from "./types";

function millis(t: Timestamp | undefined): number {
  return t === undefined ? 0 : Number(t.seconds) * 1000 + Math.floor(t.nanos / 1e6);
}

const runStates: Record<ExecutionState, RunState> = {
  [ExecutionState.UNSPECIFIED]: "queued",
  [ExecutionState.QUEUED]: "queued",
  [ExecutionState.RUNNING]: "running",
  [ExecutionState.OK]: "ok",
  [ExecutionState.ERROR]: "error",
  [ExecutionState.CANCELLED]: "cancelled",
  [ExecutionState.LOST]: "lost",
};

export function parseRun(e: Execution): Run {
  return {
    id: e.id,
    cell: e.cell,
    state: runStates[e.state] ?? "lost",
    queued: millis(e.queueTime),
    started: millis(e.startTime),
    ended: millis(e.endTime),
    count: e.executionCount,
    message: e.message,
    startedBy: e.startedBy,
    question: e.question === undefined ? null : { prompt: e.question.prompt, password: e.question.password },
  };
}

const healths: Record<KernelState, KernelHealth> = {
  [KernelState.UNSPECIFIED]: "none",
  [KernelState.STARTING]: "starting",
  [KernelState.IDLE]: "idle",
  [KernelState.BUSY]: "busy",
  [KernelState.UNRESPONSIVE]: "unresponsive",
  [KernelState.DEAD]: "dead",
  [KernelState.RESTARTING]: "restarting",
};

export function parseKernel(k: Kernel): KernelInfo {
  return {
    id: k.id,
    spec: k.spec,
    displayName: k.displayName || k.spec,
    language: k.language,
    health: healths[k.state] ?? "none",
    message: k.message,
    restarts: k.restarts,
    queued: k.queued,
    prepared: k.prepared,
  };
}

/** The document that GetNotebook read. */
export function parseNotebook(n: Notebook): Document {
  const content = object(n.content);
  const order: string[] = [];
  const cells = new Map<string, Cell>();
  for (const raw of Array.isArray(content.cells) ? content.cells : []) {
    const cell = parseCell(raw);
    if (cell.id === "" || cells.has(cell.id)) continue;
    order.push(cell.id);
    cells.set(cell.id, cell);
  }
  const runs = new Map<string, Run>();
  for (const e of n.executions) {
    const run = parseRun(e);
    runs.set(run.id, run);
    const cell = cells.get(run.cell);
    if (cell !== undefined) {
      const outputs =
        e.truncatedBytes > 0n ? [...cell.outputs, { kind: "truncated" as const, key: -1, bytes: Number(e.truncatedBytes), file: e.outputFile }] : cell.outputs;
      cells.set(run.cell, { ...cell, execution: run.id, outputs });
    }
  }
  return {
    path: n.path,
    revision: n.revision,
    cursor: n.cursor,
    order,
    cells,
    metadata: object(content.metadata),
    kernel: n.kernel === undefined || n.kernel.id === "" ? null : parseKernel(n.kernel),
    runs,
    unsaved: n.unsaved,
    repairs: n.repairs,
    stale: false,
    removed: false,
  };
}

export type EditInit = MessageInitShape<typeof NotebookEditSchema>;

export function formatEdit(edit: Edit): EditInit {
  switch (edit.kind) {
    case "insert":
      return { edit: { case: "insert", value: { after: edit.after, cell: formatCell(edit.cell) } } };
    case "remove":
      return { edit: { case: "remove", value: edit.cell } };
    case "move":
      return { edit: { case: "move", value: { cell: edit.cell, after: edit.after } } };
    case "source":
      return { edit: { case: "source", value: { cell: edit.cell, source: edit.source, expected: edit.expected } } };
    case "type":
      return { edit: { case: "type", value: { cell: edit.cell, type: edit.type } } };
    case "metadata":
      return { edit: { case: "metadata", value: { cell: edit.cell, metadata: edit.metadata } } };
    case "clear":
      return { edit: { case: "clearOutputs", value: edit.cell } };
    case "notebook":
      return { edit: { case: "notebookMetadata", value: edit.metadata } };
  }
}

/** An edit that came with an event; null for one that this page does not know. */
export function parseEdit(message: NotebookEdit): Edit | null {
  const e = message.edit;
  switch (e.case) {
    case "insert": {
      const { id, type, source, metadata, attachments, outputs, count } = parseCell(e.value.cell);
      return { kind: "insert", after: e.value.after, cell: { id, type, source, metadata, attachments, outputs, count } };
    }
    case "remove":
      return { kind: "remove", cell: e.value };
    case "move":
      return { kind: "move", cell: e.value.cell, after: e.value.after };
    case "source":
      return { kind: "source", cell: e.value.cell, source: e.value.source };
    case "type":
      return { kind: "type", cell: e.value.cell, type: cellType(e.value.type) };
    case "metadata":
      return { kind: "metadata", cell: e.value.cell, metadata: object(e.value.metadata) };
    case "clearOutputs":
      return { kind: "clear", cell: e.value };
    case "notebookMetadata":
      return { kind: "notebook", metadata: object(e.value) as JsonObject };
    default:
      return null;
  }
}
