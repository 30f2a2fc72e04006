import { Code, ConnectError } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Link, follow } from "./follow";

describe("a stream that is followed", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => vi.useRealTimers());

  it("is begun again when it ends, after pauses that grow and start anew once it lived", async () => {
    const stop = new AbortController();
    const began: number[] = [];
    const links: Link[] = [];
    vi.spyOn(Math, "random").mockReturnValue(0);
    const done = follow(
      async (_signal, live) => {
        began.push(Date.now());
        if (began.length === 4) live();
        throw new ConnectError("gone", Code.Unavailable);
      },
      (link) => links.push(link),
      stop.signal,
    );
    await vi.advanceTimersByTimeAsync(3500);
    stop.abort();
    await vi.advanceTimersByTimeAsync(1);
    await done;
    expect(began.slice(1).map((t, i) => t - began[i]!)).toEqual([300, 600, 1200, 300, 600]);
    expect(links.slice(0, 5)).toEqual(["lost", "lost", "lost", "live", "lost"]);
  });

  it("is tried at once when the network comes back", async () => {
    const stop = new AbortController();
    let began = 0;
    const done = follow(
      async () => {
        began++;
        throw new TypeError("Failed to fetch");
      },
      () => {},
      stop.signal,
    );
    await vi.advanceTimersByTimeAsync(0);
    expect(began).toBe(1);
    dispatchEvent(new Event("online"));
    await vi.advanceTimersByTimeAsync(0);
    expect(began).toBe(2);
    stop.abort();
    await vi.advanceTimersByTimeAsync(0);
    await done;
  });

  it("is not begun again for what is not there", async () => {
    const links: unknown[] = [];
    await follow(
      () => Promise.reject(new ConnectError("no", Code.NotFound)),
      (link, error) => links.push(link, error),
      new AbortController().signal,
    );
    expect(links).toHaveLength(2);
  });
});
