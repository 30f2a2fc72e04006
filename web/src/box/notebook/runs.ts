// How a cell's execution is told in a few characters and in words.

import { span } from "../../lib/format";
import type { Cell, Run } from "./model/types";

/** The mark beside a code cell. */
export function mark(cell: Cell, run: Run | undefined, asked: boolean): string {
  if (asked || run?.state === "queued" || run?.state === "running") return "[*]";
  return cell.count > 0 ? `[${cell.count}]` : "[ ]";
}

/** The state of a cell in words; "": nothing to say. now and times in ms. */
export function words(cell: Cell, run: Run | undefined, asked: boolean, place: number, now: number): string {
  if (run?.state === "running") {
    if (run.question !== null) return "Waits for an answer";
    return run.started > 0 ? `Running for ${span(Math.max(0, now - run.started))}` : "Running";
  }
  if (run?.state === "queued") return place > 1 ? `Queued, number ${place}` : "Queued";
  if (asked) return "Sending…";
  if (run !== undefined) {
    const took = run.started > 0 && run.ended >= run.started ? span(run.ended - run.started) : "";
    if (run.state === "ok") return took;
    if (run.state === "error") {
      const how = cell.outputs.some((o) => o.kind === "error" && o.name === "KeyboardInterrupt") ? "Interrupted" : "Failed";
      return took === "" ? how : `${how} after ${took}`;
    }
    if (run.state === "cancelled") return run.message || "Not run";
    if (run.state === "lost") return run.message || "Its kernel ended";
  }
  return kept(cell);
}

/** The time of an execution that is over since long, from the notebook itself. */
function kept(cell: Cell): string {
  const times = cell.metadata.execution;
  if (typeof times !== "object" || times === null || Array.isArray(times)) return "";
  const from = Date.parse(String(times["iopub.execute_input"] ?? ""));
  const to = Date.parse(String(times["shell.execute_reply"] ?? ""));
  return to >= from ? span(to - from) : "";
}
