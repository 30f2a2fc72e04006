import { useCallback, useSyncExternalStore } from "react";
import { relative } from "./format";

// One clock for every relative time on the page: it ticks once a second while somebody looks.
let now = Date.now();
let timer: ReturnType<typeof setInterval> | undefined;
const listeners = new Set<() => void>();

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  timer ??= setInterval(() => {
    if (document.hidden) return;
    now = Date.now();
    for (const l of listeners) l();
  }, 1000);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
}

function current(): number {
  if (listeners.size === 0) now = Date.now();
  return now;
}

/** The present time in milliseconds, anew each second. */
export function useNow(): number {
  return useSyncExternalStore(subscribe, current);
}

/** How long ago or ahead a time is, in words; what uses it is drawn anew when they change. */
export function useSince(at: Date): string {
  return useSyncExternalStore(subscribe, useCallback(() => relative(at, current()), [at]));
}
