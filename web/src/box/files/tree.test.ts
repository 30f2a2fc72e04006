import { describe, expect, it } from "vitest";
import { type Entry, type Tree, choose, find, movedTo, newTree, openDirectories, placeFor, read, rows, setOpen, topmost, typed, withEntry } from "./tree";

const home = "/home/carrel";
const file = (path: string): Entry => ({ path, name: path.slice(path.lastIndexOf("/") + 1), type: "file", size: 1, modified: undefined, target: "" });
const directory = (path: string): Entry => ({ ...file(path), type: "directory" });
const names = (tree: Tree) => rows(tree).map((r) => (r.kind === "entry" ? `${"  ".repeat(r.level - 1)}${r.entry.name}` : `${"  ".repeat(r.level - 1)}<${r.kind}>`));

function some(): Tree {
  let tree = read(newTree(home), home, [file(`${home}/b10`), file(`${home}/b9`), directory(`${home}/src`), file(`${home}/.env`)], "", 1);
  tree = setOpen(tree, `${home}/src`, true);
  return read(tree, `${home}/src`, [file(`${home}/src/a.py`), directory(`${home}/src/lib`)], "", 1);
}

describe("the tree", () => {
  it("has directories first, then names as people order them, and hides dots", () => {
    expect(names(some())).toEqual(["src", "  lib", "  a.py", "b9", "b10"]);
    expect(names({ ...some(), hidden: true })).toContain(".env");
  });
  it("says of a directory that is read in pages that there is more", () => {
    const tree = read(some(), `${home}/src`, [file(`${home}/src/a.py`)], "a.py", 1);
    expect(names(tree)).toEqual(["src", "  a.py", "  <more>", "b9", "b10"]);
    const row = rows(tree)[1]!;
    expect(row.kind === "entry" && row.of).toBe(-1); // how many there are is not known
  });
  it("takes one entry in and out", () => {
    let tree = withEntry(some(), `${home}/new`, file(`${home}/new`));
    expect(names(tree)).toContain("new");
    tree = choose(tree, `${home}/new`, "only");
    tree = withEntry(tree, `${home}/new`, null);
    expect(names(tree)).not.toContain("new");
    expect(tree.chosen.size).toBe(0);
  });
  it("closes what is below with a directory", () => {
    let tree = setOpen(some(), `${home}/src/lib`, true);
    expect(openDirectories(tree)).toEqual([home, `${home}/src`, `${home}/src/lib`]);
    tree = setOpen({ ...tree, active: `${home}/src/lib` }, `${home}/src`, false);
    expect(openDirectories(tree)).toEqual([home]);
    expect(tree.active).toBe(`${home}/src`);
  });
  it("forgets an open directory that is gone", () => {
    const tree = withEntry(some(), `${home}/src`, null);
    expect(openDirectories(tree)).toEqual([home]);
  });
  it("chooses one, one more, and a range", () => {
    let tree = choose(some(), `${home}/src/lib`, "only");
    tree = choose(tree, `${home}/b9`, "range");
    expect([...tree.chosen]).toEqual([`${home}/src/lib`, `${home}/src/a.py`, `${home}/b9`]);
    tree = choose(tree, `${home}/src/a.py`, "toggle");
    expect([...tree.chosen]).toEqual([`${home}/src/lib`, `${home}/b9`]);
  });
  it("does not do to what is in a directory what is done to the directory", () => {
    expect(topmost([`${home}/src/a.py`, `${home}/src`, `${home}/src2`])).toEqual([`${home}/src`, `${home}/src2`]);
  });
  it("finds the next name that begins with what is typed", () => {
    const seen = rows(some());
    expect(typed(seen, `${home}/b9`, "b")).toBe(`${home}/b10`);
    expect(typed(seen, `${home}/b10`, "b")).toBe(`${home}/b9`);
    expect(typed(seen, `${home}/b9`, "b9")).toBe(`${home}/b9`);
    expect(typed(seen, `${home}/b9`, "z")).toBeUndefined();
  });
  it("moves nothing into itself or where it is", () => {
    expect(movedTo(`${home}/src`, `${home}/src/lib`)).toBeUndefined();
    expect(movedTo(`${home}/src`, home)).toBeUndefined();
    expect(movedTo(`${home}/b9`, `${home}/src`)).toBe(`${home}/src/b9`);
    expect(movedTo(`${home}/b9`, "/")).toBe("/b9");
  });
  it("puts new things where one is", () => {
    expect(placeFor({ ...some(), active: `${home}/src` })).toBe(`${home}/src`);
    expect(placeFor({ ...some(), active: `${home}/b9` })).toBe(home);
    expect(placeFor({ ...some(), active: `${home}/src/lib` })).toBe(`${home}/src`);
  });
  it("remembers where links lead when a directory is read again", () => {
    const link: Entry = { ...file(`${home}/link`), type: "symlink", target: "src" };
    let tree = withEntry(some(), link.path, { ...link, leadsToDirectory: true });
    tree = read(tree, home, [link], "", 1);
    expect(find(tree, link.path)?.leadsToDirectory).toBe(true);
    tree = read(tree, home, [{ ...link, target: "elsewhere" }], "", 1);
    expect(find(tree, link.path)?.leadsToDirectory).toBeUndefined();
  });
});
