// From the bytes of a file to a text that can be edited and back, exactly.

/** A larger file is not edited here, in bytes. */
export const most = 5 << 20;
/** So much of a file that is not edited is shown on demand, in bytes. */
export const sample = 1 << 20;

export interface Text {
  /** Lines as CodeMirror has them: parted by \n. */
  text: string;
  /** What parts the lines on the disk. */
  eol: "\n" | "\r\n";
  /** It is no UTF-8: it can be looked at only. */
  damaged: boolean;
}

/** Text has no NUL; what has one is a picture, a program, or text in another encoding. */
export const isBinary = (data: Uint8Array): boolean => data.subarray(0, 64 << 10).includes(0);

/** A text is edited with \r\n only when all its lines have it; in any other, \r is a character that is shown. */
export function decode(data: Uint8Array): Text {
  let text: string;
  let damaged = false;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(data);
    damaged = true;
  }
  const dos = text.includes("\r\n") && !/(^|[^\r])\n|\r(?!\n)/.test(text);
  return { text: dos ? text.replaceAll("\r\n", "\n") : text, eol: dos ? "\r\n" : "\n", damaged };
}

export const encode = (text: string, eol: Text["eol"]): string => (eol === "\r\n" ? text.replaceAll("\n", "\r\n") : text);

/** The one change that makes b of a; null: they are the same. It never cuts a pair of surrogates. */
export function difference(a: string, b: string): { from: number; to: number; insert: string } | null {
  if (a === b) return null;
  let from = 0;
  while (from < a.length && from < b.length && a[from] === b[from]) from++;
  if (from > 0 && isHigh(a.charCodeAt(from - 1))) from--;
  let [endA, endB] = [a.length, b.length];
  while (endA > from && endB > from && a[endA - 1] === b[endB - 1]) [endA, endB] = [endA - 1, endB - 1];
  if (endA < a.length && isHigh(a.charCodeAt(endA - 1)) && endA > from) [endA, endB] = [endA + 1, endB + 1];
  return { from, to: endA, insert: b.slice(from, endB) };
}

const isHigh = (unit: number): boolean => unit >= 0xd800 && unit < 0xdc00;

const pictures: Readonly<Record<string, string>> = {
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
  avif: "image/avif",
  bmp: "image/bmp",
  ico: "image/x-icon",
};

/** The type of a picture by its file's name; undefined: it is none. */
export const pictureType = (name: string): string | undefined => pictures[/\.([a-z]+)$/i.exec(name)?.[1]?.toLowerCase() ?? ""];
export const isSVG = (name: string): boolean => /\.svg$/i.test(name);
