import { type DependencyList, useCallback, useEffect, useRef, useState } from "react";
import { isAborted } from "./errors";

export interface Loaded<T> {
  /** The newest answer; it stays while another one is awaited or fails. */
  data: T | undefined;
  error: unknown;
  loading: boolean;
  /** Asks again. */
  reload: () => void;
}

/** Asks once for each change of `deps`, and with `every` (milliseconds) again and again while the page is looked at. */
export function useLoad<T>(ask: (signal: AbortSignal) => Promise<T>, deps: DependencyList, every?: number): Loaded<T> {
  const [state, setState] = useState<{ data: T | undefined; error: unknown; loading: boolean }>({ data: undefined, error: undefined, loading: true });
  const [round, setRound] = useState(0);
  const latest = useRef(ask);
  useEffect(() => {
    latest.current = ask;
  });
  useEffect(() => {
    const abort = new AbortController();
    setState((s) => ({ ...s, loading: true }));
    latest
      .current(abort.signal)
      .then((data) => {
        if (!abort.signal.aborted) setState({ data, error: undefined, loading: false });
      })
      .catch((error: unknown) => {
        if (!abort.signal.aborted && !isAborted(error)) setState((s) => ({ data: s.data, error, loading: false }));
      });
    return () => abort.abort();
    // eslint-disable-next-line react-hooks/exhaustive-deps -- what it depends on is the caller's to say
  }, [round, ...deps]);
  useEffect(() => {
    if (!every) return;
    const timer = setInterval(() => {
      if (!document.hidden) setRound((r) => r + 1);
    }, every);
    return () => clearInterval(timer);
  }, [every]);
  const reload = useCallback(() => setRound((r) => r + 1), []);
  return { ...state, reload };
}
