import { describe, expect, it } from "vitest";
import { bytes, cpus, parseBytes, parseSpan, relative, span } from "./format";

describe("sizes and times for people", () => {
  it("names sizes in binary units, with a decimal where it tells something", () => {
    expect([0, 512, 1536, 1 << 30, 150 * 1024 ** 3 + 7].map(bytes)).toEqual(["0 B", "512 B", "1.5 KiB", "1 GiB", "150 GiB"]);
    expect(bytes(-1)).toBe("–");
    expect(bytes(5n * 1024n ** 4n)).toBe("5 TiB");
  });
  it("names processors", () => {
    expect([1000, 2000, 500, 250, 1500n].map(cpus)).toEqual(["1 CPU", "2 CPUs", "0.5 CPUs", "0.25 CPUs", "1.5 CPUs"]);
  });
  it("names lengths of time in at most two units", () => {
    expect([0, 240, 3210, 42_000, 250_000, 3_600_000, 90_000_000, -5, NaN].map(span)).toEqual(["0 ms", "240 ms", "3.2 s", "42 s", "4 min 10 s", "1 h", "1 d 1 h", "0 ms", "–"]);
  });
  it("counts from now, both ways", () => {
    const now = Date.UTC(2026, 0, 1);
    const at = (ms: number) => relative(new Date(now + ms), now);
    expect([at(1000), at(-30_000), at(-300_000), at(7_200_000), at(-172_800_000)]).toEqual(["just now", "30 s ago", "5 min ago", "in 2 h", "2 d ago"]);
  });
  it("reads sizes as people type them, and nothing else", () => {
    expect(["4GiB", "512 mb", "2g", "1.5G", "3"].map(parseBytes)).toEqual([4n << 30n, 512n << 20n, 2n << 30n, 3n << 29n, 3n << 30n]);
    expect(["", "four", "-1G", "1 GiB more", "1e3"].map(parseBytes)).toEqual([null, null, null, null, null]);
  });
  it("reads times as people type them, and nothing else", () => {
    expect(["30 min", "2h", "90s", "1d", "5"].map(parseSpan)).toEqual([1800, 7200, 90, 86400, 300]);
    expect(["", "soon", "-1h", "1 fortnight"].map(parseSpan)).toEqual([null, null, null, null]);
  });
});
