// Between nbformat 4.5, as messages carry it, and the page's document. What comes may be of any shape: a box wrote it.

import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import type { Cell, CellType, MimeBundle, NewCell, Output } from "./types";

let lastKey = 0;

/** A key for a new output, never used before on this page. */
export function outputKey(): number {
  return ++lastKey;
}

/** Text that nbformat may have split into lines. */
export function joined(value: unknown): string {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.map((line) => (typeof line === "string" ? line : "")).join("");
  return "";
}

export function object(value: unknown): JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : {};
}

function whole(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) ? Math.max(0, Math.trunc(value)) : 0;
}

/** A MIME bundle with its texts joined; JSON types stay as they are. */
export function bundle(value: unknown): MimeBundle {
  const data: Record<string, unknown> = {};
  for (const [type, content] of Object.entries(object(value))) {
    data[type] = isJSON(type) ? content : Array.isArray(content) ? joined(content) : content;
  }
  return data;
}

export function isJSON(type: string): boolean {
  return type === "application/json" || type.endsWith("+json");
}

/** An output of nbformat, or null for what is none. */
export function parseOutput(value: unknown): Output | null {
  const o = object(value);
  const key = outputKey();
  switch (o.output_type) {
    case "stream":
      return { kind: "stream", key, name: o.name === "stderr" ? "stderr" : "stdout", text: joined(o.text) };
    case "display_data":
    case "execute_result": {
      const id = object(o.transient).display_id;
      return {
        kind: "rich",
        key,
        type: o.output_type,
        data: bundle(o.data),
        metadata: object(o.metadata),
        displayId: typeof id === "string" ? id : "",
        count: whole(o.execution_count),
      };
    }
    case "error":
      return {
        kind: "error",
        key,
        name: joined(o.ename),
        value: joined(o.evalue),
        traceback: Array.isArray(o.traceback) ? o.traceback.map(joined) : [],
      };
    default:
      return null;
  }
}

export function formatOutput(output: Output): JsonObject | null {
  switch (output.kind) {
    case "stream":
      return { output_type: "stream", name: output.name, text: output.text };
    case "rich": {
      const o: JsonObject = { output_type: output.type, data: output.data as JsonObject, metadata: output.metadata };
      if (output.type === "execute_result") o.execution_count = output.count || null;
      return o;
    }
    case "error":
      return { output_type: "error", ename: output.name, evalue: output.value, traceback: [...output.traceback] };
    case "truncated":
      return null;
  }
}

export function cellType(value: unknown): CellType {
  return value === "markdown" || value === "raw" ? value : "code";
}

/** A cell of nbformat. Streams of one name that follow each other become one. */
export function parseCell(value: unknown): Cell {
  const c = object(value);
  const outputs: Output[] = [];
  for (const raw of Array.isArray(c.outputs) ? c.outputs : []) {
    const output = parseOutput(raw);
    if (output !== null) appendOutput(outputs, output);
  }
  return {
    id: typeof c.id === "string" ? c.id : "",
    type: cellType(c.cell_type),
    source: joined(c.source),
    metadata: object(c.metadata),
    attachments: c.attachments === undefined ? null : object(c.attachments),
    outputs,
    count: whole(c.execution_count),
    execution: "",
    clearNext: false,
  };
}

/** Adds an output to a list of one's own. */
export function appendOutput(outputs: Output[], output: Output) {
  const last = outputs.at(-1);
  if (output.kind === "stream" && last?.kind === "stream" && last.name === output.name) {
    outputs[outputs.length - 1] = { ...last, text: last.text + output.text };
  } else {
    outputs.push(output);
  }
}

export function formatCell(cell: NewCell): JsonObject {
  const c: JsonObject = { id: cell.id, cell_type: cell.type, metadata: cell.metadata, source: cell.source };
  if (cell.type === "code") {
    c.outputs = cell.outputs.map(formatOutput).filter((o): o is JsonObject => o !== null) as JsonValue[];
    c.execution_count = cell.count || null;
  } else if (cell.attachments !== null) {
    c.attachments = cell.attachments;
  }
  return c;
}

/** A new, empty cell. */
export function newCell(type: CellType, source = ""): NewCell {
  return { id: cellId(), type, source, metadata: {}, attachments: null, outputs: [], count: 0 };
}

/** An id that nbformat takes: 8 letters and digits of a random UUID, as Jupyter makes them, and four more. */
export function cellId(): string {
  return randomHex(6);
}

/** 2·bytes hexadecimal digits. */
export function randomHex(bytes: number): string {
  const b = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
}
