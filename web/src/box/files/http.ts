// Contents of files over plain HTTP (docs/files.md): what RPC is not made for.

import { ConnectError } from "@connectrpc/connect";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import type { FileInfo } from "../../gen/carrel/v1/files_pb";
import { type Api, headerUI } from "../../lib/api";
import { backoff } from "../../lib/backoff";
import { isNotFound, sentence } from "../../lib/errors";
import { signedOut } from "../../lib/signin";
import { fileAddress } from "./names";
import type { Answer, Carrier, Put } from "./upload";
import type { Entry } from "./tree";

interface ErrorBody {
  message?: string;
  details?: { reason?: string }[];
}

/** What a body says of an error. */
export function errorOf(status: number, text: string): Answer {
  let body: ErrorBody = {};
  try {
    body = JSON.parse(text) as ErrorBody;
  } catch {
    // Somebody between here and Carrel answered.
  }
  const reason = body.details?.find((d) => typeof d.reason === "string")?.reason ?? "";
  return { status, reason, message: sentence(body.message ?? "") || `The server answered with the status ${status}.` };
}

/** An error's reason, a word for programs; empty: it has none. */
export function reasonOf(err: unknown): string {
  if (err instanceof ReadError) return err.answer.reason;
  if (!(err instanceof ConnectError)) return "";
  for (const d of err.details) {
    // ErrorInfo's first field is the reason; its message is not among the generated ones.
    if ("type" in d && d.type.endsWith("ErrorInfo") && "debug" in d && d.debug && typeof d.debug === "object" && "reason" in d.debug) return String(d.debug.reason);
    if ("type" in d && d.type === "google.rpc.ErrorInfo" && d.value instanceof Uint8Array && d.value[0] === 0x0a) return new TextDecoder().decode(d.value.subarray(2, 2 + (d.value[1] ?? 0)));
  }
  return "";
}

/** A content that could not be read. */
export class ReadError extends Error {
  constructor(readonly answer: Answer) {
    super(answer.message);
  }
}

export interface Content {
  data: Uint8Array<ArrayBuffer>;
  etag: string;
  /** Of the whole file; more than `data` has when only its beginning was asked for. */
  size: number;
}

/** Reads a file, or its first bytes, or (when it has more than `most`) only its size. */
export async function readContent(box: string, path: string, options: { first?: number; most?: number; signal?: AbortSignal } = {}): Promise<Content> {
  const answer = await fetch(fileAddress(box, path), {
    headers: { ...headerUI, ...(options.first !== undefined && { Range: `bytes=0-${options.first - 1}` }) },
    credentials: "same-origin",
    redirect: "error",
    cache: "no-store",
    ...(options.signal && { signal: options.signal }),
  });
  if (answer.status === 401) signedOut();
  if (answer.status === 416) return { data: new Uint8Array(), etag: "", size: 0 }; // an empty file has no first byte
  if (!answer.ok) throw new ReadError(errorOf(answer.status, await answer.text()));
  if (!answer.headers.has("ETag")) throw new ReadError({ status: 409, reason: "is_directory", message: "It is a directory." });
  const length = Number(answer.headers.get("Content-Length") ?? 0);
  if (options.most !== undefined && length > options.most) {
    await answer.body?.cancel();
    return { data: new Uint8Array(), etag: unquote(answer.headers.get("ETag")), size: length };
  }
  const data = new Uint8Array(await answer.arrayBuffer());
  const total = /\/(\d+)$/.exec(answer.headers.get("Content-Range") ?? "")?.[1];
  return { data, etag: unquote(answer.headers.get("ETag")), size: total ? Number(total) : data.length };
}

const unquote = (etag: string | null): string => (etag ?? "").replace(/^W\//, "").replace(/^"|"$/g, "");

export interface Written extends Answer {
  etag: string;
}

/** Writes a file. `match` is the etag of what is replaced, "none" where nothing must be, or empty for whatever is there. */
export async function writeContent(box: string, path: string, body: Blob | Uint8Array<ArrayBuffer> | string, match: string, signal?: AbortSignal): Promise<Written> {
  let answer: Response;
  try {
    answer = await fetch(fileAddress(box, path), {
      method: "PUT",
      headers: { ...headerUI, ...condition(match) },
      body,
      credentials: "same-origin",
      redirect: "error",
      // A page that goes away has it sent still, as far as browsers do that.
      keepalive: typeof body === "string" && body.length < 15_000,
      ...(signal && { signal }),
    });
  } catch {
    return { status: 0, reason: "", message: "Carrel cannot be reached at the moment.", etag: "" };
  }
  if (answer.status === 401) signedOut();
  if (!answer.ok) return { ...errorOf(answer.status, await answer.text().catch(() => "")), etag: "" };
  return { status: answer.status, reason: "", message: "", etag: unquote(answer.headers.get("ETag")) };
}

const condition = (match: string): Record<string, string> => (match === "none" ? { "If-None-Match": "*" } : match ? { "If-Match": `"${match}"` } : {});

/** Carries uploads: with a request that tells how much of it has gone, which fetch does not. */
export function carrier(box: string, api: Api): Carrier {
  return {
    put: (put, progress, signal) => send(box, put, progress, signal),
    kept: async (path, uploadId, signal) => Number((await api.files.statUpload({ box, path, uploadId }, { signal })).offset),
    look: async (path, signal) => {
      try {
        const info = await api.files.statFile({ box, path }, { signal });
        return { size: Number(info.size), modified: info.modifyTime && timestampDate(info.modifyTime) };
      } catch (err) {
        if (isNotFound(err)) return null;
        throw err;
      }
    },
    makeDirectory: async (path, signal) => {
      await api.files.makeDirectory({ box, path, parents: true }, { signal });
    },
    wait: backoff,
  };
}

function send(box: string, put: Put, progress: (bytes: number) => void, signal: AbortSignal): Promise<Answer> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(new DOMException("given up", "AbortError"));
    const query: Record<string, string> = { parents: "1", modify_time: put.modified.toISOString(), ...(put.part && { upload_id: put.part.id }) };
    const request = new XMLHttpRequest();
    request.open("PUT", fileAddress(box, put.path, query));
    for (const [name, value] of Object.entries({ ...headerUI, ...condition(put.fresh ? "none" : "") })) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    if (put.part) request.setRequestHeader("Content-Range", `bytes ${put.part.from}-${put.part.from + put.body.size - 1}/${put.part.total}`);
    request.upload.onprogress = (e) => progress(e.loaded);
    const abort = () => request.abort();
    signal.addEventListener("abort", abort);
    request.onloadend = () => {
      signal.removeEventListener("abort", abort);
      if (signal.aborted) return reject(new DOMException("given up", "AbortError"));
      if (request.status === 401) signedOut();
      if (request.status >= 200 && request.status < 300) {
        const offset = request.getResponseHeader("Upload-Offset");
        resolve({ status: request.status, reason: "", message: "", ...(offset !== null && { offset: Number(offset) }) });
      } else if (request.status === 0) resolve({ status: 0, reason: "", message: "The connection broke." });
      else resolve(errorOf(request.status, request.responseText));
    };
    request.send(put.body);
  });
}

/** Has the browser keep a file, or a directory as an archive. */
export function download(box: string, path: string, archive: boolean): void {
  const link = document.createElement("a");
  link.href = fileAddress(box, path, { download: "1", ...(archive && { archive: "tar.zst" }) });
  link.download = "";
  document.body.append(link);
  link.click();
  link.remove();
}

export function entryOf(info: FileInfo): Entry {
  return {
    path: info.path,
    name: info.path.slice(info.path.lastIndexOf("/") + 1),
    type: info.type,
    size: Number(info.size),
    modified: info.modifyTime && timestampDate(info.modifyTime),
    target: info.target,
  };
}
