import { type Duration, type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** A size, such as "1.5 GiB". */
export function bytes(n: bigint | number): string {
  let value = Number(n);
  if (!Number.isFinite(value) || value < 0) return "–";
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Thousandths of a processor, such as "2 CPUs". */
export function cpus(millis: bigint | number): string {
  const n = Number(millis) / 1000;
  const text = Number.isInteger(n) ? String(n) : n.toFixed(n < 1 ? 2 : 1).replace(/0+$/, "");
  return `${text} ${n === 1 ? "CPU" : "CPUs"}`;
}

/** How long, in at most two units: "240 ms", "3.2 s", "4 min 10 s", "2 d 3 h". */
export function span(ms: number): string {
  if (!Number.isFinite(ms)) return "–";
  ms = Math.max(0, ms);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return two(Math.floor(s / 60), "min", s % 60, "s");
  if (s < 86400) return two(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "min");
  return two(Math.floor(s / 86400), "d", Math.floor((s % 86400) / 3600), "h");
}

function two(a: number, unitA: string, b: number, unitB: string): string {
  return b ? `${a} ${unitA} ${b} ${unitB}` : `${a} ${unitA}`;
}

export const durationMs = (d: Duration | undefined): number => (d ? Number(d.seconds) * 1000 + d.nanos / 1e6 : 0);
export const when = (t: Timestamp | undefined): Date | undefined => (t ? timestampDate(t) : undefined);

/** How long ago or ahead: "just now", "5 min ago", "in 2 h". */
export function relative(at: Date, now: number): string {
  const ms = at.getTime() - now;
  if (Math.abs(ms) < 5000) return "just now";
  const n = Math.abs(ms) / 1000;
  const text = n < 60 ? `${Math.round(n)} s` : n < 3600 ? `${Math.round(n / 60)} min` : n < 86400 ? `${Math.round(n / 3600)} h` : `${Math.round(n / 86400)} d`;
  return ms < 0 ? `${text} ago` : `in ${text}`;
}

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** One line for a person, in their own language's way. */
export const absolute = (at: Date): string => exact.format(at);

/** A size as people type it ("4GiB", "512 MB", "2g"), in bytes; null: it is none. Plain numbers are GiB. */
export function parseBytes(text: string): bigint | null {
  const m = /^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*$/i.exec(text);
  if (!m) return null;
  const unit = (m[2] || "g").toLowerCase();
  const power = { k: 1, m: 2, g: 3, t: 4 }[unit]!;
  return BigInt(Math.round(Number(m[1]) * 1024 ** power));
}

/** A length of time as people type it ("30 min", "2h", "90s", "1d"), in seconds; null: it is none. Plain numbers are minutes. */
export function parseSpan(text: string): number | null {
  const m = /^\s*(\d+(?:\.\d+)?)\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)?\s*$/i.exec(text);
  if (!m) return null;
  const unit = (m[2] || "m").toLowerCase()[0]!;
  return Math.round(Number(m[1]) * { s: 1, m: 60, h: 3600, d: 86400 }[unit]!);
}
