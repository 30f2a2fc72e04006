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

/** The boxes of an organisation as they are, changes included as they happen. */
export function BoxesProvider({ org, children }: { org: string; children: ReactNode }) {
  const [boxes, setBoxes] = useState<ReadonlyMap<string, Box>>();
  const [link, setLink] = useState<{ link: Link; error: unknown }>({ link: "connecting", error: undefined });
  useEffect(() => {
    const stop = new AbortController();
    const once = async (signal: AbortSignal, live: () => void) => {
      let fresh: Map<string, Box> | undefined = new Map();
      for await (const change of api.boxes.watchBoxes({ org }, { signal })) {
        if (change.box) {
          const box = change.box;
          if (fresh) fresh.set(box.id, box);
          else setBoxes((all) => put(all, box));
        }
        if (change.synced && fresh) {
          for (const [id, box] of fresh) if (box.state === State.DELETED) fresh.delete(id);
          setBoxes(fresh);
          fresh = undefined;
          live();
        }
      }
    };
    void follow(once, (l, error) => setLink({ link: l, error }), stop.signal);
    return () => {
      stop.abort();
      setBoxes(undefined);
      setLink({ link: "connecting", error: undefined });
    };
  }, [org]);
  const value = useMemo(() => ({ boxes, link: link.link, error: link.error }), [boxes, link]);
  return <BoxesContext value={value}>{children}</BoxesContext>;
}

/** A map with a box put in, or taken out when it is deleted. */
export function put(all: ReadonlyMap<string, Box> | undefined, box: Box): ReadonlyMap<string, Box> {
  const next = new Map(all);
  if (box.state === State.DELETED) next.delete(box.id);
  else next.set(box.id, box);
  return next;
}

export const useBoxes = (): Boxes => useContext(BoxesContext);
