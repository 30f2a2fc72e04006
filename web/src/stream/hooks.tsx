// React's side of a box's stream. Every part of a box's page shares the one socket of its context.

import { useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { useBoxStream } from "../box/context";
import type { Connection } from "./client";
import type { BoxUsage, FileEvent, ListBoxListenersResponse, NotebookEvent, StreamEvent, TerminalRequest } from "./proto";

/** The state of the connection, for a banner. */
export function useConnection(): Connection & { retry: () => void } {
  const stream = useBoxStream();
  const connection = useSyncExternalStore(stream.subscribe, stream.connection);
  return useMemo(() => ({ ...connection, retry: () => stream.retry() }), [connection, stream]);
}

function useLatest<T>(value: T) {
  const ref = useRef(value);
  useEffect(() => {
    ref.current = value;
  });
  return ref;
}

export interface NotebookWatch {
  /** The next event of the journal: in order, and once. */
  onEvent: (event: NotebookEvent) => void;
  /** Events were lost: read again. `resume` goes on from the cursor of what was read. */
  onGap: (resume: (after: string) => void) => void;
  onEnded?: (message: string, reason: string) => void;
}

/**
 * The events of one notebook ("" for all of the box) behind a cursor. Give null while there is no cursor yet. A cursor that
 * changes later has no effect: the watch knows itself how far it is.
 */
export function useNotebookEvents(path: string, after: string | null, watch: NotebookWatch) {
  const stream = useBoxStream();
  const latest = useLatest({ after, watch });
  const ready = after !== null;
  useEffect(() => {
    const from = latest.current.after;
    if (!ready || from === null) return;
    const made = stream.watch({ kind: "notebooks", path, after: from }, (news, hold) => {
      const { watch } = latest.current;
      if (news.kind === "event" && news.event.case === "notebook") watch.onEvent(news.event.value);
      else if (news.kind === "gap") watch.onGap(hold.restart);
      else if (news.kind === "ended") watch.onEnded?.(news.message, news.reason);
    });
    return () => made.close();
  }, [stream, path, ready, latest]);
}

/** Changes of files below a path. After a break it tells "overflow": look at everything again. */
export function useFileEvents(path: string | null, recursive: boolean, onEvent: (event: Pick<FileEvent, "kind" | "path">) => void) {
  const stream = useBoxStream();
  const latest = useLatest(onEvent);
  useEffect(() => {
    if (path === null) return;
    let broke = false;
    const channel = stream.open({
      request: () => ({ case: "files", value: { path, recursive } }),
      event: (e) => {
        if (e.case === "file") latest.current(e.value);
      },
      link: (link) => {
        if (link === "live" && broke) latest.current({ kind: "overflow", path });
        broke = link === "lost";
      },
    });
    return channel.close;
  }, [stream, path, recursive, latest]);
}

/** What the box uses now, and on which ports programs listen. */
export function useUsage(seconds = 2, wanted = true): { usage: BoxUsage | null; listeners: ListBoxListenersResponse | null } {
  const stream = useBoxStream();
  const [usage, setUsage] = useState<BoxUsage | null>(null);
  const [listeners, setListeners] = useState<ListBoxListenersResponse | null>(null);
  useEffect(() => {
    if (!wanted) return;
    const channel = stream.open({
      request: () => ({ case: "usage", value: { seconds } }),
      event: (e) => {
        if (e.case === "usage") setUsage(e.value);
        else if (e.case === "listeners") setListeners(e.value);
      },
    });
    return channel.close;
  }, [stream, seconds, wanted]);
  return { usage, listeners };
}

export interface TerminalPeer {
  /** Connected, the first time or again: send `open`, or `attach` from the last offset shown. */
  onLive: () => void;
  onEvent: (event: StreamEvent) => void;
  onLost?: () => void;
}

/** The terminals' side of the box's stream. Channels and offsets are the terminals' own matter: see docs/terminals.md. */
export function useTerminal(peer: TerminalPeer): { send: (request: TerminalRequest) => boolean } {
  const stream = useBoxStream();
  const latest = useLatest(peer);
  useEffect(() => {
    const channel = stream.openTerminals({
      event: (e) => latest.current.onEvent(e),
      link: (link) => (link === "live" ? latest.current.onLive() : latest.current.onLost?.()),
    });
    return channel.close;
  }, [stream, latest]);
  return useMemo(() => ({ send: (request: TerminalRequest) => stream.send({ request: { case: "terminal", value: request } }) }), [stream]);
}
