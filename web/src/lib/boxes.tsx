import { type ReactNode, createContext, useContext, useEffect, useMemo, useState } from "react";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { State } from "../gen/carrel/v1/common_pb";
import { api } from "./api";
import { type Link, follow } from "./follow";

interface Boxes {
  /** By id; undefined: nothing has come yet. */
  boxes: ReadonlyMap<string, Box> | undefined;
  link: Link;
  error: unknown;
}

const BoxesContext = createContext<Boxes>({ boxes: undefined, link: "connecting", error: undefined });

/** How long a change may wait for others before it is drawn, in milliseconds. */
const together = 50;

/** The boxes of an organisation as they are, changes included as they happen. */
export function BoxesProvider({ org, children }: { org: string; children: ReactNode }) {
  const [boxes, setBoxes] = useState<ReadonlyMap<string, Box>>();
  const [link, setLink] = useState<{ link: Link; error: unknown }>({ link: "connecting", error: undefined });
  useEffect(() => {
    const stop = new AbortController();
    // Changes that come close together are drawn once.
    let waiting: Box[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    const draw = () => {
      timer = undefined;
      const some = waiting;
      waiting = [];
      setBoxes((all) => put(all, some));
    };
    const change = (box: Box) => {
      waiting.push(box);
      timer ??= setTimeout(draw, together);
    };
    const once = async (signal: AbortSignal, live: () => void) => {
      let fresh: Map<string, Box> | undefined = new Map();
      for await (const { box, synced } of api.boxes.watchBoxes({ org }, { signal })) {
        if (box && fresh) fresh.set(box.id, box);
        else if (box) change(box);
        if (synced && fresh) {
          for (const [id, box] of fresh) if (box.state === State.DELETED) fresh.delete(id);
          // What waited from the connection before is older.
          waiting = [];
          setBoxes(fresh);
          fresh = undefined;
          live();
        }
      }
    };
    void follow(once, (l, error) => setLink({ link: l, error }), stop.signal);
    return () => {
      stop.abort();
      clearTimeout(timer);
      setBoxes(undefined);
      setLink({ link: "connecting", error: undefined });
    };
  }, [org]);
  const value = useMemo(() => ({ boxes, link: link.link, error: link.error }), [boxes, link]);
  return <BoxesContext value={value}>{children}</BoxesContext>;
}

/** A map with boxes put in, or taken out where they are deleted. */
export function put(all: ReadonlyMap<string, Box> | undefined, changed: readonly Box[]): ReadonlyMap<string, Box> {
  const next = new Map(all);
  for (const box of changed) {
    if (box.state === State.DELETED) next.delete(box.id);
    else next.set(box.id, box);
  }
  return next;
}

export const useBoxes = (): Boxes => useContext(BoxesContext);
