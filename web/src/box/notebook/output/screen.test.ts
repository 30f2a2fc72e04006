import { describe, expect, it } from "vitest";
import { links, Screen } from "./screen";

function shown(...pieces: string[]): string[] {
  const s = new Screen();
  for (const p of pieces) s.write(p);
  return s.lines.map((l) => l.map((x) => x.text).join(""));
}
const styles = (text: string) => {
  const s = new Screen();
  s.write(text);
  return s.lines[0]?.map((x) => [x.text, x.style.fg, x.style.bg, x.style.bold] as const);
};

describe("a screen", () => {
  it.each([
    ["lines", "a\nb\r\nc", ["a", "b", "c"]],
    ["a carriage return writes over", "10%\r99%", ["99%"]],
    ["what is shorter leaves the rest", "hello\rJ", ["Jello"]],
    ["erasing to the end", "hello\r\u001b[Khi", ["hi"]],
    ["backspace", "ab\bc", ["ac"]],
    ["two progress bars", "a 1\nb 1\u001b[A\ra 2\n\rb 2", ["a 2", "b 2"]],
    ["bells are not shown", "a\u0007b", ["ab"]],
  ])("%s", (_name, text, want) => {
    expect(shown(text)).toEqual(want);
    // However it is cut.
    for (let i = 0; i <= text.length; i++) expect(shown(text.slice(0, i), text.slice(i))).toEqual(want);
  });

  it("knows colours", () => {
    expect(styles("\u001b[1;31mred\u001b[0m plain")).toEqual([
      ["red", "c1", "", true],
      [" plain", "", "", false],
    ]);
    expect(styles("\u001b[38;5;196ma\u001b[48;2;1;2;3mb")).toEqual([
      ["a", "#ff0000", "", false],
      ["b", "#ff0000", "#010203", false],
    ]);
    expect(styles("\u001b[91mx\u001b[39my")?.map((s) => s[1])).toEqual(["c9", ""]);
    expect(styles("\u001b[38;2;999;-5;x;url(evil)mx")?.[0]?.[1] ?? "").toMatch(/^(#[0-9a-f]{6})?$/);
  });

  it("shows what would not be seen or would reorder text", () => {
    expect(shown("a\u0000b\u007f")).toEqual(["a␀b␡"]);
    expect(shown("x\u202eevil\u2066\u200f")).toEqual(["x⟨U+202E⟩evil⟨U+2066⟩⟨U+200F⟩"]);
    expect(shown("\u009b31m")).toEqual(["⟨U+009B⟩31m"]);
  });

  it("drops links, titles and other strings, however they end", () => {
    expect(shown("\u001b]8;;javascript:alert(1)\u0007click\u001b]8;;\u0007")).toEqual(["click"]);
    expect(shown("\u001b]0;title\u001b\\text\u001bPdevice\u001b\\more")).toEqual(["textmore"]);
    expect(shown("a\u001b]0;never ended")).toEqual(["a"]);
  });

  it("takes any bytes without failing or growing out of bounds", () => {
    const s = new Screen();
    s.write("\u001b[999999999B\u001b[999999999C!\u001b[999999999A\u001b[;;;m\u001b[?25l\u001b(B");
    expect(s.lines.length).toBeLessThanOrEqual(101);
    const long = new Screen();
    for (let i = 0; i < 100; i++) long.write("x".repeat(10_000));
    expect(Math.max(...long.lines.map((l) => l.reduce((n, x) => n + x.text.length, 0)))).toBeLessThanOrEqual(20_000);
    expect(long.lines.reduce((n, l) => n + l.reduce((m, x) => m + x.text.length, 0), 0)).toBe(1_000_000);
  });
});

describe("links in text", () => {
  it("are web addresses alone", () => {
    expect(links("see https://a.example/x?y=1. And (http://b.example)")).toEqual([
      { text: "see ", href: "" },
      { text: "https://a.example/x?y=1", href: "https://a.example/x?y=1" },
      { text: ". And (", href: "" },
      { text: "http://b.example", href: "http://b.example" },
      { text: ")", href: "" },
    ]);
    for (const text of ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "https://"]) {
      expect(links(text)).toEqual([{ text, href: "" }]);
    }
  });
});
