// What the notebook asks of the box, and what a refusal says.

import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Api } from "../../lib/api";
import type { KernelSpec } from "../../gen/carrel/v1/notebooks_pb";
import { isPassing, message } from "../../lib/errors";
import type { Completions } from "./editor/help";
import type { Document, Edit } from "./model/types";
import { formatEdit, parseNotebook } from "./model/wire";

export interface Refusal {
  /** Whether nothing was done for sure; else nobody knows. */
  readonly definite: boolean;
  readonly reason: string;
  readonly cell: string;
  readonly message: string;
}

/** Reads google.rpc.ErrorInfo: 1 reason, 3 metadata. */
function readInfo(bytes: Uint8Array): { reason: string; metadata: Map<string, string> } {
  const r = new BinaryReader(bytes);
  let reason = "";
  const metadata = new Map<string, string>();
  while (r.pos < r.len) {
    const [field, type] = r.tag();
    if (field === 1) reason = r.string();
    else if (field === 3 && type === WireType.LengthDelimited) {
      const entry = new BinaryReader(r.bytes());
      let key = "";
      let value = "";
      while (entry.pos < entry.len) {
        const [n, t] = entry.tag();
        if (n === 1) key = entry.string();
        else if (n === 2) value = entry.string();
        else entry.skip(t);
      }
      metadata.set(key, value);
    } else r.skip(type);
  }
  return { reason, metadata };
}

/** What an error of the API says. */
export function refusal(err: unknown): Refusal {
  let reason = "";
  let cell = "";
  let definite = false;
  if (err instanceof ConnectError) {
    definite = !isPassing(err) && err.code !== Code.Canceled && err.code !== Code.Unauthenticated;
    for (const detail of err.details) {
      if (!("type" in detail) || detail.type !== "google.rpc.ErrorInfo" || !(detail.value instanceof Uint8Array)) continue;
      try {
        const info = readInfo(detail.value);
        reason = info.reason;
        cell = info.metadata.get("cell") ?? "";
      } catch {
        // A detail that cannot be read says nothing.
      }
    }
  }
  return { definite, reason, cell, message: message(err) };
}

/** The calls of one notebook. */
export class NotebookApi {
  constructor(
    private readonly api: Api,
    private readonly box: string,
    readonly path: string,
    /** Tells this page's edits from others'. */
    readonly client: string,
  ) {}

  async read(signal?: AbortSignal): Promise<Document> {
    return parseNotebook(await this.api.notebooks.getNotebook({ box: this.box, path: this.path }, { signal }));
  }

  async edit(requestId: string, edits: readonly Edit[]): Promise<string> {
    const { box, path, client } = this;
    const answer = await this.api.notebooks.editNotebook({ box, path, client, requestId, edits: edits.map(formatEdit) }, { timeoutMs: 30_000 });
    return answer.cursor;
  }

  async execute(requestId: string, cells: readonly string[], sources: Record<string, string>): Promise<void> {
    const { box, path } = this;
    await this.api.notebooks.execute({ box, path, cells: [...cells], sources, stopOnError: true, allowInput: true, requestId }, { timeoutMs: 60_000 });
  }

  async interrupt(): Promise<void> {
    await this.api.notebooks.interrupt({ box: this.box, path: this.path });
  }

  async answer(execution: string, value: string): Promise<void> {
    await this.api.notebooks.answerInput({ box: this.box, execution, value });
  }

  async startKernel(spec: string): Promise<void> {
    await this.api.notebooks.startKernel({ box: this.box, path: this.path, spec });
  }

  async restartKernel(kernel: string): Promise<void> {
    await this.api.notebooks.restartKernel({ box: this.box, kernel });
  }

  async shutdownKernel(kernel: string): Promise<void> {
    await this.api.notebooks.shutdownKernel({ box: this.box, kernel });
  }

  async complete(code: string, cursor: number, signal: AbortSignal): Promise<Completions> {
    const { box, path } = this;
    const { start, end, completions, truncated } = await this.api.notebooks.completeCode({ box, path, code, cursor }, { signal, timeoutMs: 15_000 });
    return { start, end, items: completions, more: truncated };
  }

  async inspect(code: string, cursor: number, signal: AbortSignal): Promise<string> {
    const { box, path } = this;
    const answer = await this.api.notebooks.inspectCode({ box, path, code, cursor }, { signal, timeoutMs: 15_000 });
    return answer.found ? answer.text + (answer.truncated ? "\n… there is more" : "") : "";
  }

  async specs(): Promise<{ specs: KernelSpec[]; defaultSpec: string }> {
    return this.api.notebooks.listKernelSpecs({ box: this.box });
  }
}
