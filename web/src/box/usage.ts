import { useEffect, useState } from "react";
import type { BoxUsage } from "../gen/carrel/v1/notebooks_pb";
import type { BoxListener } from "../gen/carrel/v1/ports_pb";
import { when } from "../lib/format";
import { useUsage } from "../stream/hooks";
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
  const { live } = useBox();
  const { usage, listeners } = useUsage(seconds, live);
  const [two, setTwo] = useState<{ before: BoxUsage | null; now: BoxUsage | null }>({ before: null, now: null });
  useEffect(() => setTwo((t) => ({ before: t.now, now: usage })), [usage]);
  if (!live || !two.now) return { now: null, cpuMillis: undefined, listeners: live ? listeners?.listeners : undefined };
  return { now: two.now, cpuMillis: cpuBetween(two.before, two.now), listeners: listeners?.listeners };
}
