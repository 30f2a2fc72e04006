// A notebook as the page holds it. Everything here is plain data that is never changed in place.

import type { JsonObject } from "@bufbuild/protobuf";

export type CellType = "code" | "markdown" | "raw";

/** Data of an output by MIME type, as nbformat has it. */
export type MimeBundle = Readonly<Record<string, unknown>>;

export interface StreamOutput {
  readonly kind: "stream";
  readonly key: number;
  readonly name: string;
  readonly text: string;
}
export interface RichOutput {
  readonly kind: "rich";
  readonly key: number;
  readonly type: "display_data" | "execute_result";
  readonly data: MimeBundle;
  readonly metadata: JsonObject;
  /** "": cannot be updated. */
  readonly displayId: string;
  readonly count: number;
}
export interface ErrorOutput {
  readonly kind: "error";
  readonly key: number;
  readonly name: string;
  readonly value: string;
  readonly traceback: readonly string[];
}
/** More was written than is kept. */
export interface TruncatedOutput {
  readonly kind: "truncated";
  readonly key: number;
  readonly bytes: number;
  readonly file: string;
}
export type Output = StreamOutput | RichOutput | ErrorOutput | TruncatedOutput;

export interface Cell {
  readonly id: string;
  readonly type: CellType;
  readonly source: string;
  readonly metadata: JsonObject;
  /** Pictures and the like that a markdown cell brings with it. */
  readonly attachments: JsonObject | null;
  readonly outputs: readonly Output[];
  /** 0: none. */
  readonly count: number;
  /** The newest execution of this cell, "" for none that is known. */
  readonly execution: string;
  /** A clear_output that waits for the next output. */
  readonly clearNext: boolean;
}

export type RunState = "queued" | "running" | "ok" | "error" | "cancelled" | "lost";

export interface Run {
  readonly id: string;
  readonly cell: string;
  readonly state: RunState;
  /** Milliseconds since 1970; 0: not yet. */
  readonly queued: number;
  readonly started: number;
  readonly ended: number;
  readonly count: number;
  readonly message: string;
  readonly startedBy: string;
  readonly question: { readonly prompt: string; readonly password: boolean } | null;
}

export type KernelHealth = "none" | "starting" | "idle" | "busy" | "unresponsive" | "dead" | "restarting";

export interface KernelInfo {
  readonly id: string;
  readonly spec: string;
  readonly displayName: string;
  readonly language: string;
  readonly health: KernelHealth;
  readonly message: string;
  readonly restarts: number;
  readonly queued: number;
  readonly prepared: boolean;
}

export interface Document {
  readonly path: string;
  readonly revision: bigint;
  /** How far events are in it. */
  readonly cursor: string;
  readonly order: readonly string[];
  readonly cells: ReadonlyMap<string, Cell>;
  readonly metadata: JsonObject;
  readonly kernel: KernelInfo | null;
  readonly runs: ReadonlyMap<string, Run>;
  /** Why the last change is not in the file; "": it is. */
  readonly unsaved: string;
  readonly repairs: readonly string[];
  /** The document must be read again: events were lost, or are not understood. */
  readonly stale: boolean;
  readonly removed: boolean;
}

/** An edit as EditNotebook takes it, in the page's words. */
export type Edit =
  | { kind: "insert"; after: string; cell: NewCell }
  | { kind: "remove"; cell: string }
  | { kind: "move"; cell: string; after: string }
  | { kind: "source"; cell: string; source: string; expected?: string }
  | { kind: "type"; cell: string; type: CellType }
  | { kind: "metadata"; cell: string; metadata: JsonObject }
  /** "*": of all cells. */
  | { kind: "clear"; cell: string }
  | { kind: "notebook"; metadata: JsonObject };

export interface NewCell {
  readonly id: string;
  readonly type: CellType;
  readonly source: string;
  readonly metadata: JsonObject;
  readonly attachments: JsonObject | null;
  readonly outputs: readonly Output[];
  readonly count: number;
}
