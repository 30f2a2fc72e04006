import type { Box } from "../gen/carrel/v1/boxes_pb";
import { span, when } from "../lib/format";
import { useNow } from "../lib/now";
import { isLive } from "../lib/states";
import { Spinner } from "../ui/button";
import { Icon } from "../ui/icon";

export interface Step {
  name: string;
  /** Milliseconds that it took, or has taken until now. */
  ms: number;
  done: boolean;
}

const words: Record<string, string> = {
  asked: "Finding a machine",
  assigned: "Handing it over",
  starting: "Preparing and starting",
  running: "Ready",
};

/** The steps of a box's start with their times, from when it was asked for and the phases of its run. */
export function stepsOf(box: Pick<Box, "state" | "phases" | "stateTime">, since: number | undefined, now: number): Step[] {
  const marks: { name: string; at: number }[] = [];
  if (since !== undefined) marks.push({ name: "asked", at: since });
  for (const p of box.phases) {
    const at = when(p.time)?.getTime();
    if (at !== undefined && (since === undefined || at >= since - 2000)) marks.push({ name: p.phase, at });
  }
  const ready = isLive(box);
  return marks.map((mark, i) => {
    const next = marks[i + 1];
    const last = !next;
    return { name: words[mark.name] ?? mark.name[0]!.toUpperCase() + mark.name.slice(1).replaceAll("_", " "), ms: Math.max(0, (next?.at ?? (ready ? mark.at : now)) - mark.at), done: !last || ready };
  });
}

/** What is happening on the way to a running box. */
export function Steps({ box, since }: { box: Box; since?: number }) {
  const now = useNow();
  const steps = stepsOf(box, since, now);
  return (
    <ol className="steps" aria-label="Progress" aria-live="polite">
      {steps.map((s, i) => (
        <li key={i} className={s.done ? "done" : ""}>
          {s.done ? <Icon name="check" size={16} /> : <Spinner />}
          <span>{s.name}</span>
          <span className="step-time">{s.done && s.ms === 0 ? "" : span(s.ms)}</span>
        </li>
      ))}
    </ol>
  );
}
