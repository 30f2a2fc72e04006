import { backoff, whenVisible } from "./backoff";
import { isAborted, isNotFound, isSignedOut } from "./errors";
import { signedOut } from "./signin";

export type Link = "connecting" | "live" | "lost";

/** How long a page that nobody looks at keeps its streams, in milliseconds. A browser has few connections for all tabs together. */
const hiddenPatience = 60_000;

/**
 * Keeps a stream going until `signal` is given up: `once` runs it from its beginning to its end, which is the loss of the connection, and calls
 * `live` when it has all that was there. It is run again after a pause that grows, and not while the page is hidden for long.
 */
export async function follow(once: (signal: AbortSignal, live: () => void) => Promise<void>, link: (link: Link, error?: unknown) => void, signal: AbortSignal): Promise<void> {
  for (let attempt = 0; !signal.aborted; attempt++) {
    await whenVisible(signal);
    if (signal.aborted) return;
    const round = new AbortController();
    const give = () => round.abort();
    signal.addEventListener("abort", give);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const hidden = () => {
      clearTimeout(timer);
      if (document.hidden) timer = setTimeout(give, hiddenPatience);
    };
    document.addEventListener("visibilitychange", hidden);
    let error: unknown;
    try {
      await once(round.signal, () => {
        attempt = 0;
        link("live");
      });
    } catch (err) {
      error = err;
    } finally {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", hidden);
      signal.removeEventListener("abort", give);
    }
    if (signal.aborted) return;
    if (isSignedOut(error)) return signedOut();
    if (round.signal.aborted) continue; // hidden for long
    link("lost", isAborted(error) ? undefined : error);
    if (isNotFound(error)) return;
    await backoff(attempt, signal);
  }
}
