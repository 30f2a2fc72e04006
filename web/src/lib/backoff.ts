// How long to wait before something is tried again.

const first = 300;
const most = 30_000;
const hiddenLeast = 15_000;

/**
 * Milliseconds before try number attempt (0 is the first after a break): doubling from 0.3 s to 30 s, of which a
 * random half is taken off so that a thousand pages do not come back at once. For a page that nobody sees at least
 * 15 s. random is in [0, 1).
 */
export function delay(attempt: number, random: number, hidden: boolean): number {
  const whole = Math.min(most, first * 2 ** Math.min(attempt, 16));
  const wait = Math.round(whole * (1 - random / 2));
  return hidden ? Math.max(hiddenLeast, wait) : wait;
}

/** Waits so before try number attempt, but at most 10 s, and less when the network comes back. */
export function backoff(attempt: number, signal: AbortSignal): Promise<void> {
  const ms = Math.min(10_000, delay(attempt, Math.random(), false));
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
}

/** Resolves when somebody looks at the page (again), or `signal` is given up. */
export function whenVisible(signal: AbortSignal): Promise<void> {
  if (!document.hidden || signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
  });
}
