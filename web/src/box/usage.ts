import { useEffect, useState } from "react";
import type { BoxUsage } from "../gen/carrel/v1/notebooks_pb";
import type { BoxListener } from "../gen/carrel/v1/ports_pb";
import { when } from "../lib/format";
import { useBox } from "./context";

export interface Use {
  /** The newest figures of the box; none before the first, and while it does not run. */
  now: BoxUsage | null;
  /** Thousandths of a processor between the last two figures. */
  cpuMillis: number | undefined;
  /** The ports on which its programs listen. */
  listeners: readonly BoxListener[] | undefined;
}

/** Thousandths of a processor used between two figures; not known when the box began anew or its clock stood. */
export function cpuBetween(before: BoxUsage | null, now: BoxUsage): number | undefined {
  const from = when(before?.time)?.getTime();
  const to = when(now.time)?.getTime();
  const used = before ? Number(now.cpuMillis - before.cpuMillis) : -1;
  return from !== undefined && to !== undefined && to > from && used >= 0 ? Math.round((used * 1000) / (to - from)) : undefined;
}

/** What the box uses and where it listens, as it changes. */
export function useBoxUse(seconds = 2): Use {
  const { live, stream } = useBox();
  const [two, setTwo] = useState<{ before: BoxUsage | null; now: BoxUsage | null }>({ before: null, now: null });
  const [listeners, setListeners] = useState<readonly BoxListener[]>();
  useEffect(() => {
    if (!live) return;
    const channel = stream.open({
      request: () => ({ case: "usage", value: { seconds } }),
      event: (e) => {
        if (e.case === "usage") setTwo((t) => ({ before: t.now, now: e.value }));
        else if (e.case === "listeners") setListeners(e.value.listeners);
      },
    });
    return () => {
      channel.close();
      setTwo({ before: null, now: null });
      setListeners(undefined);
    };
  }, [stream, seconds, live]);
  return { now: two.now, cpuMillis: two.now ? cpuBetween(two.before, two.now) : undefined, listeners };
}
