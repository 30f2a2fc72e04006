// Files on their way into the box: a few at a time, large ones in parts that go on where a broken connection left them, and a question
// where a name is taken. It outlives the part of the page that shows it.

import { baseOf, freeName, join, parentOf } from "./names";

/** A larger file goes in parts of this size, in bytes. */
export const partSize = 8 << 20;
/** So many files are on their way at once. */
const atOnce = 3;

export type Phase = "queued" | "sending" | "waiting" | "asking" | "done" | "failed" | "cancelled" | "skipped";

export interface Upload {
  readonly id: number;
  readonly path: string;
  /** Below what was dropped: "photos/1.jpg". */
  readonly label: string;
  readonly size: number;
  readonly sent: number;
  readonly phase: Phase;
  /** Why it waits or failed. */
  readonly words: string;
}

/** How the other side answered a request. */
export interface Answer {
  /** The status of HTTP; 0: nobody answered. */
  status: number;
  reason: string;
  message: string;
  /** Bytes that are kept of an upload in parts. */
  offset?: number;
}

export interface Put {
  path: string;
  body: Blob;
  /** Make it only where nothing is. */
  fresh: boolean;
  /** Of an upload in parts. */
  part?: { id: string; from: number; total: number };
  modified: Date;
}

/** What uploads need of the box. */
export interface Carrier {
  put: (put: Put, progress: (bytes: number) => void, signal: AbortSignal) => Promise<Answer>;
  /** How many bytes of an upload are kept. */
  kept: (path: string, id: string, signal: AbortSignal) => Promise<number>;
  /** null: nothing is there. */
  look: (path: string, signal: AbortSignal) => Promise<{ size: number; modified: Date | undefined } | null>;
  makeDirectory: (path: string, signal: AbortSignal) => Promise<void>;
  /** Waits before the nth attempt anew. */
  wait: (attempt: number, signal: AbortSignal) => Promise<void>;
}

export interface Picked {
  file: File;
  /** Below the directory it is dropped on. */
  relative: string;
}

export type Clash = "replace" | "both" | "skip";

interface Job extends Upload {
  file: Blob & { lastModified?: number };
  fresh: boolean;
  abort: AbortController;
  path: string;
  sent: number;
  phase: Phase;
  words: string;
}

/** Failures after which the same request may well succeed. */
const isPassing = (a: Answer): boolean => a.status === 0 || a.status === 408 || a.status === 429 || (a.status >= 500 && a.status !== 501 && a.status !== 507) || a.reason === "box_not_running" || a.reason === "upload_taken_over";

/** The part that begins at an offset. */
export function partAt(size: number, offset: number): { from: number; to: number; last: boolean } {
  // All bytes are kept, but the file was not put in its place: the last one is sent again.
  const from = Math.min(offset, Math.max(0, size - 1));
  const to = Math.min(size, from + partSize);
  return { from, to, last: to === size };
}

/** Names an upload by what is uploaded, so that the same file, dropped again after a reload, goes on where it was. */
export function uploadId(path: string, size: number, modified: number): string {
  let [a, b] = [0x811c9dc5, 0x01000193];
  for (const c of `${path}\0${size}\0${modified}`) {
    a = Math.imul(a ^ c.codePointAt(0)!, 0x01000193);
    b = Math.imul(b ^ c.codePointAt(0)!, 0x85ebca6b) ^ (b >>> 13);
  }
  return `web-${(a >>> 0).toString(16)}${(b >>> 0).toString(16)}-${size}-${modified}`;
}

export class Uploads {
  private jobs: Job[] = [];
  private shown: readonly Upload[] = [];
  private next = 1;
  private live = true;
  private rule: Clash | undefined;
  private readonly listeners = new Set<() => void>();

  constructor(
    private readonly carrier: Carrier,
    /** Told of each file that is there now. */
    private readonly arrived: (path: string) => void,
  ) {}

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };
  readonly list = (): readonly Upload[] => this.shown;

  /** While the box does not run, nothing is sent. */
  setLive(live: boolean): void {
    if (this.live === live) return;
    this.live = live;
    this.go();
  }

  add(directory: string, picked: readonly Picked[]): void {
    if (this.jobs.every((j) => over(j.phase))) {
      this.jobs = [];
      this.rule = undefined;
    }
    for (const { file, relative } of picked) {
      this.jobs.push({ id: this.next++, path: join(directory, relative), label: relative, size: file.size, sent: 0, phase: "queued", words: "", file, fresh: true, abort: new AbortController() });
    }
    this.go();
  }

  /** Directories that have nothing in them. */
  async addDirectories(directory: string, relative: readonly string[]): Promise<void> {
    for (const r of relative) await this.carrier.makeDirectory(join(directory, r), new AbortController().signal);
  }

  /** What is to be done where a name is taken. */
  answer(id: number, clash: Clash, forAll: boolean): void {
    if (forAll) this.rule = clash;
    for (const job of this.jobs) if (job.phase === "asking" && (job.id === id || forAll)) this.settle(job, clash);
    this.go();
  }

  cancel(id: number): void {
    for (const job of this.jobs) {
      if (job.id !== id || over(job.phase)) continue;
      job.abort.abort();
      this.set(job, { phase: "cancelled", words: "" });
    }
    this.go();
  }

  cancelAll(): void {
    for (const job of [...this.jobs]) this.cancel(job.id);
  }

  retry(id: number): void {
    for (const job of this.jobs) {
      if (job.id !== id || (job.phase !== "failed" && job.phase !== "cancelled")) continue;
      job.abort = new AbortController();
      this.set(job, { phase: "queued", words: "" });
    }
    this.go();
  }

  /** Takes what has ended out of the list. */
  clear(): void {
    this.jobs = this.jobs.filter((j) => !over(j.phase));
    this.changed();
  }

  private settle(job: Job, clash: Clash): void {
    if (clash === "skip") return this.set(job, { phase: "skipped" });
    if (clash === "replace") job.fresh = false;
    else {
      const taken = new Set(this.jobs.map((j) => j.path));
      job.path = join(parentOf(job.path), freeName(baseOf(job.path), (name) => taken.has(join(parentOf(job.path), name))));
    }
    this.set(job, { phase: "queued", sent: 0 });
  }

  private set(job: Job, change: Partial<Pick<Job, "phase" | "sent" | "words">>): void {
    Object.assign(job, change);
    this.changed();
  }

  private changed(): void {
    this.shown = this.jobs.map((j) => ({ id: j.id, path: j.path, label: j.label, size: j.size, sent: j.sent, phase: j.phase, words: j.words }));
    for (const l of this.listeners) l();
  }

  private go(): void {
    if (this.live) {
      let busy = this.jobs.filter((j) => j.phase === "sending" || j.phase === "waiting").length;
      for (const job of this.jobs) {
        if (busy >= atOnce) break;
        if (job.phase !== "queued") continue;
        busy++;
        job.phase = "sending";
        void this.run(job).finally(() => this.go());
      }
    }
    this.changed();
  }

  /** Sends one file until it is there, refused, or given up. */
  private async run(job: Job): Promise<void> {
    const { signal } = job.abort;
    for (let attempt = 0; !signal.aborted; attempt++) {
      let answer: Answer;
      try {
        answer = await this.send(job, attempt > 0, signal);
      } catch (err) {
        answer = err instanceof Unreadable ? { status: 400, reason: "", message: err.message } : { status: 0, reason: "", message: "The connection broke" };
      }
      if (signal.aborted) return;
      if (answer.status >= 200 && answer.status < 300) return this.there(job);
      if (answer.status === 412 && job.fresh) {
        // An answer that was lost may have been that it is there.
        if (attempt > 0 && (await this.isThere(job, signal))) return this.there(job);
        if (this.rule) return this.settle(job, this.rule);
        return this.set(job, { phase: "asking", words: "A file of this name is there already." });
      }
      if (!isPassing(answer)) return this.set(job, { phase: "failed", words: answer.message });
      this.set(job, { phase: "waiting", words: "The connection broke: it goes on by itself." });
      await this.carrier.wait(attempt, signal);
      while (!this.live && !signal.aborted) await this.carrier.wait(4, signal);
      if (!signal.aborted) this.set(job, { phase: "sending", words: "" });
    }
  }

  private there(job: Job): void {
    this.set(job, { phase: "done", sent: job.size, words: "" });
    this.arrived(job.path);
  }

  private async isThere(job: Job, signal: AbortSignal): Promise<boolean> {
    try {
      const found = await this.carrier.look(job.path, signal);
      return found !== null && found.size === job.size && found.modified?.getTime() === (job.file.lastModified ?? 0);
    } catch {
      return false;
    }
  }

  private async send(job: Job, again: boolean, signal: AbortSignal): Promise<Answer> {
    const modified = new Date(job.file.lastModified ?? 0);
    const request = { path: job.path, fresh: job.fresh, modified };
    if (job.size <= partSize) return this.carrier.put({ ...request, body: await readable(job.file) }, (n) => this.set(job, { sent: n }), signal);
    const id = uploadId(job.path, job.size, modified.getTime());
    let offset = await this.carrier.kept(job.path, id, signal);
    if (again && offset >= job.size && (await this.isThere(job, signal))) return { status: 200, reason: "", message: "" };
    for (;;) {
      const part = partAt(job.size, offset);
      this.set(job, { sent: part.from });
      const body = await readable(job.file.slice(part.from, part.to));
      const answer = await this.carrier.put({ ...request, body, part: { id, from: part.from, total: job.size } }, (n) => this.set(job, { sent: part.from + n }), signal);
      if (answer.status === 202 && !part.last) {
        offset = answer.offset ?? part.to;
        continue;
      }
      if (answer.reason === "upload_offset") offset = await this.carrier.kept(job.path, id, signal);
      else return answer;
    }
  }
}

export const over = (phase: Phase): boolean => phase === "done" || phase === "failed" || phase === "cancelled" || phase === "skipped";

/** The file on the user's own disk cannot be read. */
class Unreadable extends Error {}

/** Sees that a file can be read at all: browsers say of one that was changed or removed no more than that the network failed. */
async function readable(part: Blob): Promise<Blob> {
  try {
    if (part.size > 0) await part.slice(0, 1).arrayBuffer();
  } catch {
    throw new Unreadable("It cannot be read on this computer any more: it was changed, moved or removed. Choose it again.");
  }
  return part;
}

export interface Sum {
  files: number;
  done: number;
  failed: number;
  asking: number;
  running: boolean;
  sent: number;
  size: number;
}

/** All uploads in one line. */
export function sum(list: readonly Upload[]): Sum {
  const all: Sum = { files: 0, done: 0, failed: 0, asking: 0, running: false, sent: 0, size: 0 };
  for (const u of list) {
    if (u.phase === "cancelled" || u.phase === "skipped") continue;
    all.files++;
    all.size += u.size;
    all.sent += u.sent;
    if (u.phase === "done") all.done++;
    else if (u.phase === "failed") all.failed++;
    else if (u.phase === "asking") all.asking++;
    else all.running = true;
  }
  return all;
}
