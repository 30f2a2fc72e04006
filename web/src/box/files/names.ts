// Names of files. A box chooses them, so they are shown with everything in them that would not be seen or would turn the text around; and
// they are bytes: one that is not UTF-8 has the character U+10FF00+b in place of a byte b (docs/files.md).

const byteBase = 0x10ff00;
const isByte = (point: number): boolean => point >= byteBase + 0x80 && point <= byteBase + 0xff;

/** Controls, what has no width, what sets the direction, and lone halves of pairs. */
const odd = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Cn}\u115f\u1160\u3164\uffa0]/u;

/** A part of a name as it is shown. */
export interface Piece {
  text: string;
  /** The text stands for a character or byte that is not shown as it is. */
  odd: boolean;
}

const named: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function token(character: string): string {
  const point = character.codePointAt(0)!;
  if (isByte(point)) return `\\x${(point - byteBase).toString(16)}`;
  return named[character] ?? `\\u{${point.toString(16)}}`;
}

/** A name in pieces, those that must not be taken for plain text marked. */
export function pieces(name: string): Piece[] {
  const all: Piece[] = [];
  for (const character of name) {
    const isOdd = odd.test(character) && character !== "\u200d";
    const text = isOdd ? token(character) : character;
    const last = all.at(-1);
    if (last && last.odd === isOdd) last.text += text;
    else all.push({ text, odd: isOdd });
  }
  return all;
}

/** A name as one line of text that can be read anywhere: labels, titles, messages. */
export const plain = (name: string): string =>
  pieces(name)
    .map((p) => p.text)
    .join("");

export const baseOf = (path: string): string => path.slice(path.lastIndexOf("/") + 1);
export const parentOf = (path: string): string => path.slice(0, Math.max(1, path.lastIndexOf("/")));
export const join = (directory: string, name: string): string => (directory === "/" ? `/${name}` : `${directory}/${name}`);
export const isBelow = (path: string, directory: string): boolean => path.startsWith(directory === "/" ? "/" : `${directory}/`);

/** The bytes of a name; U+10FF00+b is one. */
export function bytesOf(name: string): number {
  let n = 0;
  for (const character of name) {
    const point = character.codePointAt(0)!;
    n += isByte(point) ? 1 : point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  }
  return n;
}

/** Why a file cannot have this name; empty: it can. */
export function wrongName(name: string): string {
  if (name === "") return "Give it a name.";
  if (name === "." || name === "..") return "This name means a directory that is there always.";
  if (name.includes("/")) return "A name has no slash. Make the directory first, or move it there.";
  if (name.includes("\0")) return "A name has no NUL character.";
  if (bytesOf(name) > 255) return "A name has at most 255 bytes.";
  return "";
}

/** A name that is not among those there: "a.txt" becomes "a (2).txt". */
export function freeName(name: string, taken: (name: string) => boolean): string {
  if (!taken(name)) return name;
  const dot = name.lastIndexOf(".");
  const [stem, end] = dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ""];
  for (let n = 2; ; n++) {
    const next = `${stem} (${n})${end}`;
    if (!taken(next)) return next;
  }
}

/** A name with its place in an address: bytes that are no UTF-8 as they are. */
export function escapeName(name: string): string {
  let text = "";
  for (const character of name) {
    const point = character.codePointAt(0)!;
    if (isByte(point)) text += `%${(point - byteBase).toString(16).toUpperCase()}`;
    else if (point >= 0xd800 && point <= 0xdfff) text += "%EF%BF%BD";
    else text += encodeURIComponent(character);
  }
  return text;
}

/** The address of a file's content, for fetch, links and images. */
export function fileAddress(box: string, path: string, query: Record<string, string> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `/v1/boxes/${encodeURIComponent(box)}/fs${path.split("/").map(escapeName).join("/")}${search ? `?${search}` : ""}`;
}

const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/** Orders names as people do: file2 before file10. */
export const byName = (a: string, b: string): number => order.compare(a, b) || (a < b ? -1 : a > b ? 1 : 0);
