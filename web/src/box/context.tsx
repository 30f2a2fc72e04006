import { createContext, useContext } from "react";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import type { Api } from "../lib/api";
import type { BoxStream } from "../stream";

/** The tabs of a box's page, in their order. Each is the default export of ./<name>/index.tsx and its own chunk. */
export const tabs = ["notebook", "files", "editor", "terminal", "ports", "activity", "events", "logs"] as const;
export type Tab = (typeof tabs)[number];

/** What every part of a box's page is given. */
export interface BoxContextValue {
  /** The box as it is now; anew with each change. */
  box: Box;
  /** Its processes run: it can be talked to. Parts say something of their own when it is not. */
  live: boolean;
  /** The user may change things; viewers may only look. */
  mayChange: boolean;
  api: Api;
  /** The one stream of this box on this page. */
  stream: BoxStream;
  /** A REST path of this box: path("fs/notes.txt"). Fit for fetch (with `headerUI` of lib/api), links, and images. */
  path: (rest: string, query?: Record<string, string>) => string;
  /** The same as a WebSocket URL. */
  socket: (rest: string, query?: Record<string, string>) => string;
  /** Goes to a tab; `query` is the part's own, kept in the page's URL. */
  open: (tab: Tab, query?: Record<string, string>) => void;
  /** The part's own query of the page's URL. */
  query: URLSearchParams;
}

export const BoxContext = createContext<BoxContextValue | null>(null);

export function useBox(): BoxContextValue {
  const value = useContext(BoxContext);
  if (!value) throw new Error("useBox outside a box's page");
  return value;
}

/** The stream of this page's box; see BoxStream.open. */
export const useBoxStream = (): BoxStream => useBox().stream;
