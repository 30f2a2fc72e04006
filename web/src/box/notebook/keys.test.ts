import { describe, expect, it } from "vitest";
import { CommandKeys, everywhere } from "./keys";

const k = (key: string, mods = "") => ({ key, ctrl: mods.includes("c"), shift: mods.includes("s"), alt: mods.includes("a") });

describe("keys", () => {
  it.each([
    ["Enter", "s", "run-next"],
    ["Enter", "c", "run-stay"],
    ["Enter", "a", "run-insert"],
    ["Enter", "", "edit"],
    ["a", "", "insert-above"],
    ["b", "", "insert-below"],
    ["Z", "s", "redo"],
    ["M", "s", "merge"],
    ["3", "", "heading-3"],
    ["ArrowUp", "s", "extend-up"],
    ["ArrowUp", "a", "move-up"],
    ["a", "c", "select-all"],
    ["c", "c", null],
    ["q", "", null],
    ["constructor", "", null],
  ])("%s %s", (key, mods, want) => {
    expect(new CommandKeys().read(k(key, mods), 0)).toBe(want);
  });

  it("that are dangerous are pressed twice, soon, with none between", () => {
    const c = new CommandKeys();
    expect([c.read(k("d"), 0), c.read(k("d"), 500)]).toEqual([null, "delete"]);
    expect([c.read(k("d"), 1000), c.read(k("d"), 5000), c.read(k("i"), 5100), c.read(k("d"), 5200)]).toEqual([null, null, null, null]);
    expect([c.read(k("0"), 6000), c.read(k("0"), 6100), c.read(k("0"), 6200)]).toEqual([null, "restart", null]);
  });

  it("of editing are few", () => {
    expect(everywhere(k("d"))).toBeNull();
    expect(everywhere(k("_", "cs"))).toBe("split");
    expect(everywhere(k("s", "c"))).toBe("save");
  });
});
