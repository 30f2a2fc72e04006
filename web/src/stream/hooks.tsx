// React's side of a box's stream. Put StreamProvider around a box's page; every tab under it shares one socket.

import { createContext, type ReactNode, useContext, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { BoxStream, type Connection, type Hold, type Tell } from "./client";
import type { BoxUsage, FileEvent, ListBoxListenersResponse, NotebookEvent, TerminalEvent, TerminalRequest } from "./proto";
import type { Want } from "./session";

const StreamContext = createContext<BoxStream | null>(null);

export interface StreamProviderProps {
  box: string;
  /** Called when the sign-in has ended. */
  onSignIn?: () => Promise<void> | void;
  children: ReactNode;
}

/** Holds the stream of a box for everything under it. The socket is made when the first part watches something. */
export function StreamProvider({ box, onSignIn, children }: StreamProviderProps) {
  const [stream, setStream] = useState<BoxStream | null>(null);
  const signIn = useLatest(onSignIn);
  useEffect(() => {
    const made = new BoxStream({ box, onSignIn: () => signIn.current?.() });
    setStream(made);
    return () => {
      made.dispose();
      setStream(null);
    };
  }, [box, signIn]);
  return <StreamContext.Provider value={stream}>{children}</StreamContext.Provider>;
}

/** The stream of the box, or null before it exists. */
export function useStream(): BoxStream | null {
  return useContext(StreamContext);
}

const none: Connection = { phase: "idle", retryIn: 0, broken: false, offline: false, message: "" };
const noSubscription = () => () => {};

/** The state of the connection, for a banner. */
export function useConnection(): Connection & { retry: () => void } {
  const stream = useStream();
  const connection = useSyncExternalStore(stream?.subscribe ?? noSubscription, () => stream?.connection() ?? none);
  return useMemo(() => ({ ...connection, retry: () => stream?.retry() }), [connection, stream]);
}

function useLatest<T>(value: T) {
  const ref = useRef(value);
  useEffect(() => {
    ref.current = value;
  });
  return ref;
}

/** Watches something while mounted. The hold is null until the stream exists. */
function useWatch(want: Want | null, tell: Tell): React.RefObject<Hold | null> {
  const stream = useStream();
  const latest = useLatest(tell);
  const hold = useRef<Hold | null>(null);
  const key = want === null ? "" : JSON.stringify(want);
  useEffect(() => {
    if (stream === null || key === "") return;
    const made = stream.watch(JSON.parse(key) as Want, (news, at) => latest.current(news, at));
    hold.current = made;
    return () => {
      hold.current = null;
      made.close();
    };
  }, [stream, key, latest]);
  return hold;
}

export interface NotebookWatch {
  /** The event of the journal, in order and once. */
  onEvent: (event: NotebookEvent) => void;
  /** Events were lost: read again. `resume` goes on from the cursor of what was read. */
  onGap: (resume: (after: string) => void) => void;
  onEnded?: (message: string, reason: string) => void;
}

/**
 * The events of one notebook ("" for all of the box) after a cursor. Give null while there is no cursor yet. A cursor that
 * changes later has no effect: the watch knows itself how far it is.
 */
export function useNotebookEvents(path: string, after: string | null, watch: NotebookWatch) {
  const from = useRef(after);
  if (from.current === null || after === null) from.current = after;
  const want: Want | null = from.current === null ? null : { kind: "notebooks", path, after: from.current };
  useWatch(want, (news, hold) => {
    switch (news.kind) {
      case "notebook":
        watch.onEvent(news.event);
        break;
      case "gap":
        watch.onGap((cursor) => hold.restart(cursor));
        break;
      case "ended":
        watch.onEnded?.(news.message, news.reason);
        break;
    }
  });
}

/** Changes of files below a path. After a break it tells "overflow": look at everything again. */
export function useFileEvents(path: string | null, recursive: boolean, onEvent: (event: Pick<FileEvent, "kind" | "path">) => void) {
  const broke = useRef(false);
  useWatch(path === null ? null : { kind: "files", path, recursive }, (news) => {
    if (news.kind === "file") {
      if (broke.current) {
        broke.current = false;
        onEvent({ kind: "overflow", path: path ?? "" });
      }
      onEvent(news.event);
    } else if (news.kind === "detached") {
      broke.current = true;
    }
  });
}

/** What the box uses now, and on which ports programs listen. */
export function useUsage(seconds = 2, wanted = true): { usage: BoxUsage | null; listeners: ListBoxListenersResponse | null } {
  const [usage, setUsage] = useState<BoxUsage | null>(null);
  const [listeners, setListeners] = useState<ListBoxListenersResponse | null>(null);
  useWatch(wanted ? { kind: "usage", seconds } : null, (news) => {
    if (news.kind === "usage") setUsage(news.usage);
    else if (news.kind === "listeners") setListeners(news.listeners);
  });
  return { usage, listeners };
}

export interface TerminalPeer {
  /** Connected, the first time or again: send `open` or `attach` from the last offset shown, on this channel. */
  onAttach: (channel: number, send: (request: TerminalRequest) => boolean) => void;
  onEvent: (event: TerminalEvent) => void;
  onDetached?: () => void;
}

/** One terminal's channel on the box's stream. Offsets are the terminal's own matter: see docs/terminals.md. */
export function useTerminal(peer: TerminalPeer | null): { send: (request: TerminalRequest) => boolean } {
  const hold = useWatch(peer === null ? null : { kind: "terminal" }, (news, at) => {
    if (news.kind === "attach") peer?.onAttach(news.channel, at.send);
    else if (news.kind === "terminal") peer?.onEvent(news.event);
    else if (news.kind === "detached") peer?.onDetached?.();
  });
  return useMemo(() => ({ send: (request: TerminalRequest) => hold.current?.send(request) ?? false }), [hold]);
}
