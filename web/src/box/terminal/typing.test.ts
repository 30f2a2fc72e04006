import { describe, expect, it } from "vitest";
import { Typing, isAutomatic } from "./typing";

const bytes = (n: number) => new Uint8Array(n).fill(97);

describe("what is typed", () => {
  it("is numbered from the beginning on, in pieces", () => {
    const typing = new Typing();
    expect(typing.add(bytes(3))!.map((t) => t.offset)).toEqual([0n]);
    expect(typing.add(bytes(70_000))!.map((t) => [t.offset, t.data.length])).toEqual([[3n, 65_536], [65_539n, 4464]]);
  });
  it("is kept until it was taken, and given again", () => {
    const typing = new Typing();
    typing.add(bytes(3));
    typing.add(bytes(4));
    typing.took(3n);
    expect(typing.again().map((t) => t.offset)).toEqual([3n]);
    typing.took(2n); // late news
    expect(typing.again()).toHaveLength(1);
    typing.took(7n);
    expect(typing.again()).toEqual([]);
  });
  it("is refused when a box takes nothing", () => {
    const typing = new Typing();
    expect(typing.add(bytes(150_000))).not.toBeNull();
    expect(typing.add(bytes(150_000))).toBeNull();
    typing.took(150_000n);
    expect(typing.add(bytes(150_000))!.map((t) => t.offset)[0]).toBe(150_000n);
  });
});

describe("answers of the terminal", () => {
  it.each(["\x1b[24;80R", "\x1b[?1;2c", "\x1b[>0;276;0c", "\x1b]11;rgb:0000/0000/0000\x1b\\", "\x1bP1$r0m\x1b\\", "\x1b[0n\x1b[1;1R", "\x1b[I"])("%j is one", (data) => {
    expect(isAutomatic(data)).toBe(true);
  });
  it.each(["ls\r", "\x1b[A", "\x1bOP", "R", "\x1b", "\x1b[24;80Rls"])("%j is typed", (data) => {
    expect(isAutomatic(data)).toBe(false);
  });
});
