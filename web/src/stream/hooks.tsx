// React's side of a box's stream. Every part of a box's page shares the one socket of its context.

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { useBoxStream } from "../box/context";
import type { Connection } from "./client";
import type { StreamEvent, TerminalRequest } from "./proto";

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
