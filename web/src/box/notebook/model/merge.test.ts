import { describe, expect, it } from "vitest";
import { lines, merge } from "./merge";

describe("merge", () => {
  it.each([
    ["only mine", "a\nb", "a\nB", "a\nb", "a\nB"],
    ["only theirs", "a\nb", "a\nb", "A\nb", "A\nb"],
    ["both the same", "a", "x", "x", "x"],
    ["apart", "a\nb\nc", "A\nb\nc", "a\nb\nC", "A\nb\nC"],
    ["added at both ends", "b", "a\nb", "b\nc", "a\nb\nc"],
    ["removed and changed apart", "a\nb\nc\nd", "b\nc\nd", "a\nb\nc\nD", "b\nc\nD"],
    ["no end of line at the end", "a\nb", "a\nb\n", "A\nb", "A\nb\n"],
    ["windows lines", "a\r\nb\r\nc", "A\r\nb\r\nc", "a\r\nb\r\nC", "A\r\nb\r\nC"],
  ])("%s", (_name, base, mine, theirs, want) => {
    expect(merge(base, mine, theirs)).toBe(want);
    expect(merge(base, theirs, mine)).toBe(want);
  });

  it.each([
    ["the same line", "a", "b", "c"],
    ["both wrote into an empty cell", "", "mine", "theirs"],
    ["removed here, changed there", "a\nb\nc", "a\nc", "a\nB\nc"],
  ])("leaves to a person: %s", (_name, base, mine, theirs) => {
    expect(merge(base, mine, theirs)).toBeNull();
  });

  it("gives up texts that are too large to compare, unless one is unchanged", () => {
    const big = (mark: string) => Array.from({ length: 5000 }, (_, i) => `${mark}${i}`).join("\n");
    expect(merge(big("a"), big("b"), big("c"))).toBeNull();
    expect(merge(big("a"), big("a"), big("c"))).toBe(big("c"));
  });

  it("splits into lines that join again", () => {
    for (const text of ["", "a", "a\n", "\n\n", "a\nb", "é\r\n\u2028x"]) expect(lines(text).join("")).toBe(text);
  });
});
