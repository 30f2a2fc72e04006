// Watches of a few directories and files at once, each a channel of the box's stream.

import { useEffect, useRef } from "react";
import type { BoxStream } from "../../stream";

/** The stream of a page has 32 channels for everything, and a box 64 watches for everybody. */
const most = 10;

export type Told = (path: string, event: { kind: string; path: string }) => void;

/**
 * Tells of changes in these directories (not below them) and of these files, the first ones if there are too many. "overflow" says to look at
 * all of `path` again, and "unwatched" that nothing more will be told of it.
 */
export function usePaths(stream: BoxStream, paths: readonly string[], told: Told): void {
  const open = useRef(new Map<string, () => void>());
  const latest = useRef(told);
  useEffect(() => {
    latest.current = told;
  });
  useEffect(() => {
    const all = open.current;
    return () => {
      for (const close of all.values()) close();
      all.clear();
    };
  }, [stream]);
  const key = paths.slice(0, most).join("\0");
  useEffect(() => {
    const wanted = new Set(key ? key.split("\0") : []);
    for (const [path, close] of open.current) {
      if (wanted.has(path)) continue;
      close();
      open.current.delete(path);
    }
    for (const path of wanted) if (!open.current.has(path)) open.current.set(path, watch(stream, path, (event) => latest.current(path, event)));
  }, [stream, key]);
}

function watch(stream: BoxStream, path: string, told: (event: { kind: string; path: string }) => void): () => void {
  let broke = false;
  return stream.open({
    request: () => ({ case: "files", value: { path, recursive: false } }),
    event: (e) => {
      if (e.case === "file") told(e.value);
      else if (e.case === "error") told({ kind: "unwatched", path });
    },
    link: (link) => {
      if (link === "live" && broke) told({ kind: "overflow", path });
      broke = link === "lost";
    },
  }).close;
}
