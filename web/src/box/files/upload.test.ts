import { describe, expect, it } from "vitest";
import { type Answer, type Carrier, type Put, type Upload, Uploads, partAt, partSize, sum, uploadId } from "./upload";

const good: Answer = { status: 200, reason: "", message: "" };

/** A box that keeps what it is sent, and can be told how to fail. */
class Box implements Carrier {
  files = new Map<string, { size: number; modified: Date }>();
  kepts = new Map<string, number>();
  puts: Put[] = [];
  faults: (Answer | "lost" | "answer lost")[] = [];
  running = 0;
  most = 0;
  waits = 0;

  async put(put: Put, progress: (n: number) => void, signal: AbortSignal): Promise<Answer> {
    this.puts.push(put);
    this.most = Math.max(this.most, ++this.running);
    await Promise.resolve();
    this.running--;
    if (signal.aborted) throw new Error("given up");
    const fault = this.faults.shift();
    if (fault === "lost") {
      if (put.part) this.kepts.set(put.part.id, put.part.from + Math.floor(put.body.size / 2));
      throw new TypeError("failed to fetch");
    }
    if (fault && fault !== "answer lost") return fault;
    if (put.fresh && this.files.has(put.path)) return { status: 412, reason: "file_exists", message: "It is there." };
    progress(put.body.size);
    if (put.part) {
      const { id, from, total } = put.part;
      if (from !== (this.kepts.get(id) ?? 0)) return { status: 409, reason: "upload_offset", message: "elsewhere" };
      this.kepts.set(id, from + put.body.size);
      if (from + put.body.size < total) return { ...good, status: 202, offset: from + put.body.size };
    }
    this.files.set(put.path, { size: put.part?.total ?? put.body.size, modified: put.modified });
    if (fault === "answer lost") throw new TypeError("failed to fetch");
    return good;
  }
  async kept(_: string, id: string) {
    return this.kepts.get(id) ?? 0;
  }
  async look(path: string) {
    return this.files.get(path) ?? null;
  }
  async makeDirectory() {}
  async wait() {
    this.waits++;
    await Promise.resolve();
  }
}

const file = (name: string, size = 3) => new File([new Uint8Array(size)], name, { lastModified: 1_700_000_000_000 });

async function until(uploads: Uploads, ready: (list: readonly Upload[]) => boolean): Promise<readonly Upload[]> {
  if (ready(uploads.list())) return uploads.list();
  return new Promise((resolve) => {
    const end = uploads.subscribe(() => {
      if (!ready(uploads.list())) return;
      end();
      resolve(uploads.list());
    });
  });
}
const ended = (list: readonly Upload[]) => list.every((u) => !["queued", "sending", "waiting"].includes(u.phase));

describe("uploads", () => {
  it("come a few at a time, and all", async () => {
    const box = new Box();
    const arrived: string[] = [];
    const uploads = new Uploads(box, (p) => arrived.push(p));
    uploads.add("/home/carrel", Array.from({ length: 10 }, (_, i) => ({ file: file(`f${i}`), relative: `d/f${i}` })));
    const list = await until(uploads, ended);
    expect(list.every((u) => u.phase === "done")).toBe(true);
    expect(arrived).toHaveLength(10);
    expect(box.most).toBe(3);
    expect(sum(list)).toMatchObject({ files: 10, done: 10, sent: 30, size: 30, running: false });
  });

  it("go in parts when they are large, and on where a broken connection left them", async () => {
    const box = new Box();
    box.faults = [undefined as unknown as Answer, "lost"];
    const uploads = new Uploads(box, () => {});
    uploads.add("/home/carrel", [{ file: file("big", partSize * 2 + 5), relative: "big" }]);
    await until(uploads, ended);
    expect(box.files.get("/home/carrel/big")?.size).toBe(partSize * 2 + 5);
    const from = box.puts.map((p) => p.part?.from);
    // The second part was lost half-way; from there it goes on, in parts as long as ever.
    expect(from).toEqual([0, partSize, partSize * 1.5]);
    expect(box.waits).toBe(1);
  });

  it("take a file whose answer was lost for what it is", async () => {
    const box = new Box();
    box.faults = ["answer lost"];
    const uploads = new Uploads(box, () => {});
    uploads.add("/h", [{ file: file("a"), relative: "a" }]);
    expect((await until(uploads, ended))[0]!.phase).toBe("done");
  });

  it("ask where a name is taken, and do as they are told", async () => {
    const box = new Box();
    for (const name of ["a", "b", "c.txt"]) box.files.set(`/h/${name}`, { size: 99, modified: new Date(0) });
    const uploads = new Uploads(box, () => {});
    uploads.add("/h", ["a", "b", "c.txt"].map((name) => ({ file: file(name), relative: name })));
    const asked = await until(uploads, (l) => l.every((u) => u.phase === "asking"));
    expect(box.files.get("/h/a")!.size).toBe(99); // nothing is replaced unasked
    uploads.answer(asked[0]!.id, "replace", false);
    uploads.answer(asked[1]!.id, "skip", false);
    uploads.answer(asked[2]!.id, "both", true);
    const list = await until(uploads, ended);
    expect(list.map((u) => u.phase)).toEqual(["done", "skipped", "done"]);
    expect([...box.files].map(([p, f]) => [p, f.size])).toEqual([["/h/a", 3], ["/h/b", 99], ["/h/c.txt", 99], ["/h/c (2).txt", 3]]);
  });

  it("stop at what will not pass, and say why", async () => {
    const box = new Box();
    box.faults = [{ status: 507, reason: "disk_full", message: "The disk is full." }];
    const uploads = new Uploads(box, () => {});
    uploads.add("/h", [{ file: file("a"), relative: "a" }]);
    const list = await until(uploads, ended);
    expect(list[0]).toMatchObject({ phase: "failed", words: "The disk is full." });
    uploads.retry(list[0]!.id);
    expect((await until(uploads, ended))[0]!.phase).toBe("done");
  });

  it("wait for a box that does not run, and can be given up", async () => {
    const box = new Box();
    const uploads = new Uploads(box, () => {});
    uploads.setLive(false);
    uploads.add("/h", [{ file: file("a"), relative: "a" }, { file: file("b"), relative: "b" }]);
    expect(box.puts).toHaveLength(0);
    uploads.cancel(uploads.list()[0]!.id);
    uploads.setLive(true);
    expect((await until(uploads, ended)).map((u) => u.phase)).toEqual(["cancelled", "done"]);
  });
});

describe("parts", () => {
  it("cover a file without a hole", () => {
    const size = partSize * 3 + 1;
    let offset = 0;
    const ends: number[] = [];
    for (;;) {
      const p = partAt(size, offset);
      expect(p.from).toBe(offset);
      ends.push(p.to);
      if (p.last) break;
      offset = p.to;
    }
    expect(ends.at(-1)).toBe(size);
  });
  it("send the last byte again when all came but the file is not in its place", () => {
    expect(partAt(10, 10)).toEqual({ from: 9, to: 10, last: true });
  });
  it("have an id by what is uploaded", () => {
    expect(uploadId("/h/a", 1, 2)).toBe(uploadId("/h/a", 1, 2));
    expect(uploadId("/h/a", 1, 2)).not.toBe(uploadId("/h/b", 1, 2));
    expect(uploadId("/h/a", 1, 2)).not.toBe(uploadId("/h/a", 1, 3));
  });
});
