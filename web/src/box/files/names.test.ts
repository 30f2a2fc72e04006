import { describe, expect, it } from "vitest";
import { bytesOf, escapeName, fileAddress, freeName, pieces, plain, wrongName } from "./names";

describe("names of files", () => {
  it("show what would not be seen or would turn the text around", () => {
    expect(plain("rlo\u202etxt.exe")).toBe("rlo\\u{202e}txt.exe");
    expect(plain("we\nird\u0007")).toBe("we\\nird\\u{7}");
    expect(plain("zero\u200bwidth\ufeff")).toBe("zero\\u{200b}width\\u{feff}");
    expect(pieces("a\u202eb")).toEqual([
      { text: "a", odd: false },
      { text: "\\u{202e}", odd: true },
      { text: "b", odd: false },
    ]);
  });
  it("show bytes that are no UTF-8", () => {
    expect(plain("bad\u{10ffe9}name")).toBe("bad\\xe9name");
  });
  it("stay as they are when there is nothing odd in them", () => {
    for (const name of ["ä 100%.txt", "日本語", "<b>x</b>", "👩‍💻.md"]) expect(plain(name)).toBe(name);
  });
  it("come into addresses as their bytes", () => {
    expect(escapeName("bad\u{10ffe9}name #1")).toBe("bad%E9name%20%231");
    expect(fileAddress("b1", "/home/carrel/a?b", { download: "1" })).toBe("/v1/boxes/b1/fs/home/carrel/a%3Fb?download=1");
  });
  it("are refused where a file system would", () => {
    expect(wrongName("a/b")).not.toBe("");
    expect(wrongName("..")).not.toBe("");
    expect(wrongName("ä".repeat(128))).not.toBe("");
    expect(wrongName("\u{10ffe9}".repeat(255))).toBe("");
    expect(wrongName("notes.txt")).toBe("");
  });
  it("count their bytes", () => {
    expect(bytesOf("aä€😀\u{10ffe9}")).toBe(1 + 2 + 3 + 4 + 1);
  });
  it("are made free by a number", () => {
    const there = new Set(["a.txt", "a (2).txt", ".env"]);
    expect(freeName("a.txt", (n) => there.has(n))).toBe("a (3).txt");
    expect(freeName(".env", (n) => there.has(n))).toBe(".env (2)");
    expect(freeName("b", (n) => there.has(n))).toBe("b");
  });
});
