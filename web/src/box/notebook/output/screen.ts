// Text of a box as a person may see it: colours of ANSI, carriage returns and backspaces as a terminal shows them, and every
// other control character, and whatever reorders text, made visible. What comes out are plain lines of styled text; nothing in
// them has a meaning to a browser.

export interface Style {
  /** Names of colours 0 to 15 ("c4"), or "#rrggbb"; "": the page's own. */
  readonly fg: string;
  readonly bg: string;
  readonly bold: boolean;
  readonly dim: boolean;
  readonly italic: boolean;
  readonly underline: boolean;
  readonly inverse: boolean;
  /** Not text of the program: a sign that stands for a character which is not shown. */
  readonly sign: boolean;
}

export interface Span {
  readonly text: string;
  readonly style: Style;
}
export type Line = readonly Span[];

export const plain: Style = { fg: "", bg: "", bold: false, dim: false, italic: false, underline: false, inverse: false, sign: false };

/** A line longer than this is continued on the next one, so that no browser has to lay out a megabyte in one go. In characters. */
const longestLine = 20_000;

// Runs of text that need no care; one control sequence at a time.
// eslint-disable-next-line no-control-regex
const token = /[^\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+|\u001b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\u0007\u001b]*(?:\u0007|\u001b\\)|[ -/]*[0-~])|\r\n|[^]/g;
// A sequence that may go on in the next piece.
// eslint-disable-next-line no-control-regex
const unfinished = /(?:\u001b(?:\[[0-?]*[ -/]*|[\]PX^_][^\u0007\u001b]{0,4096}\u001b?|[ -/]*)?|\r)$/;

/** A screen of endless height that text is written to, piece by piece. */
export class Screen {
  readonly lines: Span[][] = [[]];
  private row = 0;
  private col = 0;
  private style: Style = plain;
  private rest = "";

  /** Writes a piece. A sequence that is cut at its end waits for the next piece. */
  write(piece: string) {
    const text = this.rest + piece;
    const cut = unfinished.exec(text);
    this.rest = cut?.[0] ?? "";
    const whole = cut === null ? text : text.slice(0, cut.index);
    for (const [t] of whole.matchAll(token)) this.token(t);
  }


  private token(t: string) {
    const code = t.charCodeAt(0);
    if (t === "\n" || t === "\r\n") this.newline();
    else if (t === "\r") this.col = 0;
    else if (t === "\b") this.col = Math.max(0, this.col - 1);
    else if (t === "\t") this.put("\t", this.style);
    else if (t === "\u0007") return;
    else if (code === 0x1b) {
      if (t.length === 1) this.put("␛", { ...this.style, sign: true });
      else if (t[1] === "[") this.csi(t);
      // Titles, links and other strings are not for a notebook: their text is not shown.
    } else if (code < 0x20) this.put(String.fromCharCode(0x2400 + code), { ...this.style, sign: true });
    else if (code === 0x7f) this.put("␡", { ...this.style, sign: true });
    else if ((code >= 0x80 && code <= 0x9f) || isReorder(code)) {
      this.put(`⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`, { ...this.style, sign: true });
    } else this.put(t, this.style);
  }

  private newline() {
    this.row++;
    this.col = 0;
    if (this.row >= this.lines.length) this.lines.push([]);
  }

  private put(text: string, style: Style) {
    while (text !== "") {
      if (this.col >= longestLine) this.newline();
      const part = text.slice(0, longestLine - this.col);
      text = text.slice(part.length);
      // A line that changes is a new one: those that were given away stay as they are.
      const line = this.lines[this.row] as Span[];
      const length = lengthOf(line, this.col);
      if (this.col >= length) {
        const made = [...line];
        if (this.col > length) append(made, { text: " ".repeat(this.col - length), style: plain });
        append(made, { text: part, style });
        this.lines[this.row] = made;
      } else {
        const after = cutSpans(line, this.col + part.length, Infinity);
        const made = cutSpans(line, 0, this.col);
        append(made, { text: part, style });
        for (const span of after) append(made, span);
        this.lines[this.row] = made;
      }
      this.col += part.length;
    }
  }

  private csi(t: string) {
    const final = t.at(-1);
    const body = t.slice(2, -1);
    const n = Math.min(10_000, Math.max(1, Number.parseInt(body, 10) || 1));
    switch (final) {
      case "m":
        this.style = sgr(this.style, body);
        break;
      case "A":
        this.row = Math.max(0, this.row - n);
        break;
      case "B":
        for (let i = 0; i < Math.min(n, 100); i++) {
          const { col } = this;
          this.newline();
          this.col = col;
        }
        break;
      case "C":
        this.col = Math.min(longestLine - 1, this.col + n);
        break;
      case "D":
        this.col = Math.max(0, this.col - n);
        break;
      case "G":
        this.col = Math.min(longestLine - 1, n - 1);
        break;
      case "K": {
        const line = this.lines[this.row] as Span[];
        if (body === "2") this.lines[this.row] = [];
        else if (body === "1") this.lines[this.row] = [{ text: " ".repeat(this.col), style: plain }, ...cutSpans(line, this.col, Infinity)];
        else this.lines[this.row] = cutSpans(line, 0, this.col);
        break;
      }
    }
  }
}

function isReorder(code: number): boolean {
  return code === 0x61c || code === 0x200e || code === 0x200f || (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

/** The length of a line, counted no further than just past enough. */
function lengthOf(line: readonly Span[], enough: number): number {
  let n = 0;
  for (const span of line) {
    n += span.text.length;
    if (n > enough) return n;
  }
  return n;
}

function append(line: Span[], span: Span) {
  if (span.text === "") return;
  const last = line.at(-1);
  if (last !== undefined && same(last.style, span.style)) line[line.length - 1] = { text: last.text + span.text, style: last.style };
  else line.push(span);
}

function cutSpans(line: readonly Span[], from: number, to: number): Span[] {
  const out: Span[] = [];
  let at = 0;
  for (const span of line) {
    const text = span.text.slice(Math.max(0, from - at), Math.max(0, to - at));
    if (text !== "") out.push({ text, style: span.style });
    at += span.text.length;
  }
  return out;
}

function same(a: Style, b: Style): boolean {
  return (
    a === b ||
    (a.fg === b.fg && a.bg === b.bg && a.bold === b.bold && a.dim === b.dim && a.italic === b.italic && a.underline === b.underline && a.inverse === b.inverse && a.sign === b.sign)
  );
}

function hex(...parts: number[]): string {
  return "#" + parts.map((p) => Math.max(0, Math.min(255, p || 0)).toString(16).padStart(2, "0")).join("");
}

function palette(n: number): string {
  if (n < 16) return `c${Math.max(0, n)}`;
  if (n >= 232) {
    const v = 8 + 10 * (Math.min(n, 255) - 232);
    return hex(v, v, v);
  }
  const level = (x: number) => (x === 0 ? 0 : 55 + 40 * x);
  const m = n - 16;
  return hex(level(Math.floor(m / 36)), level(Math.floor(m / 6) % 6), level(m % 6));
}

/** The style after "select graphic rendition" (ECMA-48, 8.3.117, with the colours of xterm). */
function sgr(style: Style, body: string): Style {
  if (!/^[\d;:]*$/.test(body)) return style;
  const codes = body.split(/[;:]/).map((c) => Number.parseInt(c || "0", 10));
  let s = style;
  for (let i = 0; i < codes.length; i++) {
    const c = codes[i] as number;
    if (c === 0) s = plain;
    else if (c === 1) s = { ...s, bold: true };
    else if (c === 2) s = { ...s, dim: true };
    else if (c === 3) s = { ...s, italic: true };
    else if (c === 4) s = { ...s, underline: true };
    else if (c === 7) s = { ...s, inverse: true };
    else if (c === 22) s = { ...s, bold: false, dim: false };
    else if (c === 23) s = { ...s, italic: false };
    else if (c === 24) s = { ...s, underline: false };
    else if (c === 27) s = { ...s, inverse: false };
    else if (c >= 30 && c <= 37) s = { ...s, fg: `c${c - 30}` };
    else if (c >= 40 && c <= 47) s = { ...s, bg: `c${c - 40}` };
    else if (c >= 90 && c <= 97) s = { ...s, fg: `c${c - 82}` };
    else if (c >= 100 && c <= 107) s = { ...s, bg: `c${c - 92}` };
    else if (c === 39) s = { ...s, fg: "" };
    else if (c === 49) s = { ...s, bg: "" };
    else if (c === 38 || c === 48) {
      let colour = "";
      if (codes[i + 1] === 5) {
        colour = palette(codes[i + 2] ?? 0);
        i += 2;
      } else if (codes[i + 1] === 2) {
        colour = hex(codes[i + 2] ?? 0, codes[i + 3] ?? 0, codes[i + 4] ?? 0);
        i += 4;
      }
      s = c === 38 ? { ...s, fg: colour } : { ...s, bg: colour };
    }
  }
  return s;
}

export interface Piece {
  readonly text: string;
  /** An address that may be opened; "": text alone. */
  readonly href: string;
}

const address = /https?:\/\/[^\s<>"'`\u0000-\u0020\u007f-\u009f]+/g; // eslint-disable-line no-control-regex

/** A text with the web addresses in it told apart. */
export function links(text: string): Piece[] {
  const out: Piece[] = [];
  let at = 0;
  for (const m of text.matchAll(address)) {
    // What ends a sentence is not part of an address.
    const found = m[0].replace(/[.,;:!?)\]}]+$/, "");
    if (!URL.canParse(found)) continue;
    if (m.index > at) out.push({ text: text.slice(at, m.index), href: "" });
    out.push({ text: found, href: found });
    at = m.index + found.length;
  }
  if (at < text.length) out.push({ text: text.slice(at), href: "" });
  return out;
}
