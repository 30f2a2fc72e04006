// Which of an output's representations is shown, and how.

import type { MimeBundle } from "../model/types";

export type Way = "html" | "markdown" | "latex" | "svg" | "image" | "json" | "javascript" | "text" | "none";

export interface Shown {
  readonly type: string;
  readonly way: Way;
  /** There is something richer that this page does not show, such as an interactive widget. */
  readonly richer: string;
}

// In Jupyter's order: what says more comes first.
const ways: readonly (readonly [string, Way])[] = [
  ["text/html", "html"],
  ["text/markdown", "markdown"],
  ["image/svg+xml", "svg"],
  ["text/latex", "latex"],
  ["image/png", "image"],
  ["image/jpeg", "image"],
  ["image/webp", "image"],
  ["image/gif", "image"],
  ["image/bmp", "image"],
  ["application/json", "json"],
  ["application/javascript", "javascript"],
  ["text/javascript", "javascript"],
  ["text/plain", "text"],
];

const interactive: Readonly<Record<string, string>> = {
  "application/vnd.jupyter.widget-view+json": "An interactive widget",
  "application/vnd.bokehjs_exec.v0+json": "A Bokeh application",
};

/** The best representation of a bundle that this page can show. Types are compared exactly: "text/html;x" is not HTML. */
export function choose(data: MimeBundle): Shown {
  let richer = "";
  for (const [type, name] of Object.entries(interactive)) if (Object.hasOwn(data, type)) richer = name;
  for (const [type, way] of ways) if (Object.hasOwn(data, type) && data[type] !== undefined && data[type] !== null) return { type, way, richer };
  for (const type of Object.keys(data)) {
    if (type.endsWith("+json") && !Object.hasOwn(interactive, type)) return { type, way: "json", richer };
    if (type.startsWith("text/")) return { type, way: "text", richer };
  }
  return { type: "", way: "none", richer };
}

/** Base64 as an output has it: whitespace is allowed, anything else is not. "" for what is none. */
export function base64(value: unknown): string {
  if (typeof value !== "string") return "";
  const text = value.replace(/\s+/g, "");
  return /^[A-Za-z0-9+/]+={0,2}$/.test(text) ? text : "";
}

/** The address of a picture. An SVG as a picture runs no script and loads nothing. "": there is none. */
export function pictureURL(type: string, value: unknown): string {
  if (type === "image/svg+xml") {
    if (typeof value !== "string" || value.trim() === "") return "";
    try {
      return `data:image/svg+xml;charset=utf-8,${encodeURIComponent(value)}`;
    } catch {
      return ""; // half a character
    }
  }
  const data = base64(value);
  return data === "" ? "" : `data:${type};base64,${data}`;
}

/** A whole number of pixels that an output asks for, within reason. */
export function pixels(value: unknown): number | undefined {
  const n = typeof value === "string" ? Number(value) : value;
  return typeof n === "number" && Number.isFinite(n) && n >= 1 ? Math.min(10_000, Math.round(n)) : undefined;
}
