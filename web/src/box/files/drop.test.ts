import { describe, expect, it } from "vitest";
import { dropped } from "./drop";

const file = (name: string) => ({ isFile: true, name, file: (ok: (f: File) => void) => ok(new File(["x"], name)) });
/** Gives its children in portions, as browsers do. */
function directory(name: string, ...children: unknown[]) {
  return {
    isFile: false,
    name,
    createReader: () => {
      const left = [...children];
      return { readEntries: (ok: (e: unknown[]) => void) => ok(left.splice(0, 2)) };
    },
  };
}
const transfer = (entries: unknown[], files: File[] = []) => ({ items: entries.map((e) => ({ kind: "file", webkitGetAsEntry: () => e })), files }) as unknown as DataTransfer;

describe("a drop", () => {
  it("is every file of every directory, and the empty directories", async () => {
    const { files, empty } = await dropped(transfer([file("a"), directory("d", file("1"), file("2"), file("3"), directory("e"), directory("f", file("4")))]));
    expect(files.map((f) => f.relative)).toEqual(["a", "d/1", "d/2", "d/3", "d/f/4"]);
    expect(empty).toEqual(["d/e"]);
  });
  it("of files without a file system is the files", async () => {
    const { files } = await dropped(transfer([null], [new File(["x"], "pasted.png")]));
    expect(files.map((f) => f.relative)).toEqual(["pasted.png"]);
  });
});
