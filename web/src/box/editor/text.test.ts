import { describe, expect, it } from "vitest";
import { decode, difference, encode, isBinary, pictureType } from "./text";

const bytes = (s: string) => new TextEncoder().encode(s);

describe("text", () => {
  it("comes back as it was, ends of lines and the last one included", () => {
    for (const s of ["", "a", "a\n", "a\r\nb\r\n", "a\r\nb", "a\r\nb\n", "a\rb", "\ufeffa\n", "a\n\r\nb\r\r\n", "😀\r\n"]) {
      const { text, eol, damaged } = decode(bytes(s));
      expect(damaged).toBe(false);
      expect(encode(text, eol)).toBe(s);
    }
  });
  it("is edited with the ends of lines that all of it has", () => {
    expect(decode(bytes("a\r\nb\r\n"))).toMatchObject({ text: "a\nb\n", eol: "\r\n" });
    expect(decode(bytes("a\r\nb\n"))).toMatchObject({ text: "a\r\nb\n", eol: "\n" });
  });
  it("that is no UTF-8 is known as such", () => {
    expect(decode(new Uint8Array([0x61, 0xe9, 0x62]))).toMatchObject({ damaged: true, text: "a\ufffdb" });
  });
  it("has no NUL", () => {
    expect(isBinary(new Uint8Array([1, 0, 2]))).toBe(true);
    expect(isBinary(bytes("ä\x01"))).toBe(false);
  });
});

describe("the difference of two texts", () => {
  it("is one change that makes the other", () => {
    for (const [a, b] of [["abc", "aXc"], ["", "x"], ["aaa", "aa"], ["abab", "ab"], ["😀😁", "😀😂"], ["😀", "😁"], ["x😀y", "x😁y"], ["same", "same"]] as const) {
      const d = difference(a, b);
      expect(d ? a.slice(0, d.from) + d.insert + a.slice(d.to) : a).toBe(b);
      if (d) expect(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(d.insert)).toBe(false);
    }
  });
});

describe("pictures", () => {
  it("are told by the name", () => {
    expect(pictureType("a.PNG")).toBe("image/png");
    expect(pictureType("a.svg")).toBeUndefined();
    expect(pictureType("png")).toBeUndefined();
  });
});
