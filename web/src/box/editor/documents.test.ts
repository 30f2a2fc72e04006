import { describe, expect, it, vi } from "vitest";
import type { Api } from "../../lib/api";

const files = new Map<string, { text: string; etag: string }>();
vi.mock("./drafts", () => ({ find: async (_: string, path: string) => kept.get(path) ?? null, keep: async (_: string, path: string, draft: unknown) => void (draft ? kept.set(path, draft) : kept.delete(path)), keepAtOnce: () => {} }));
vi.mock("../files/http", () => ({
  readContent: async (_: string, path: string) => {
    const file = files.get(path)!;
    const data = new TextEncoder().encode(file.text);
    return { data, etag: file.etag, size: data.length };
  },
  writeContent: async (_: string, path: string, body: string, match: string) => {
    if (files.get(path)?.etag !== match) return { status: 412, reason: "file_changed", message: "", etag: "" };
    files.set(path, { text: body, etag: `${match}+` });
    return { status: 200, reason: "", message: "", etag: `${match}+` };
  },
}));
const kept = new Map<string, unknown>();
const { Documents } = await import("./documents");

const api = { files: { statFile: async ({ path }: { path: string }) => ({ type: "file", etag: files.get(path)!.etag }) } } as unknown as Api;

async function open(path: string) {
  const documents = new Documents("box", api, true);
  documents.setLive(true);
  const document = documents.open(path);
  await vi.waitFor(() => expect(document.kind).toBe("text"));
  return document;
}

describe("a file that was typed into before the page was loaded again", () => {
  it("is a conflict when it changed on the disk meanwhile", async () => {
    files.set("/a", { text: "theirs", etag: "2" });
    kept.set("/a", { text: "mine", etag: "1", eol: "\n", time: 0 });
    const document = await open("/a");
    expect(document.sync.phase).toBe("conflict");
    expect([document.text, document.theirs]).toEqual(["mine", "theirs"]);
    document.save();
    expect(files.get("/a")!.text).toBe("theirs");
    document.resolve("mine");
    await vi.waitFor(() => expect(files.get("/a")!.text).toBe("mine"));
    await vi.waitFor(() => expect(kept.has("/a")).toBe(false));
  });
  it("is saved when it did not", async () => {
    files.set("/b", { text: "old", etag: "1" });
    kept.set("/b", { text: "mine", etag: "1", eol: "\n", time: 0 });
    const document = await open("/b");
    expect(document.sync.phase).toBe("idle");
    document.save();
    await vi.waitFor(() => expect(files.get("/b")!.text).toBe("mine"));
  });
  it("needs nothing when what was typed is on the disk", async () => {
    files.set("/c", { text: "mine", etag: "2" });
    kept.set("/c", { text: "mine", etag: "1", eol: "\n", time: 0 });
    const document = await open("/c");
    expect(document.dirty).toBe(false);
    await vi.waitFor(() => expect(kept.has("/c")).toBe(false));
  });
});
