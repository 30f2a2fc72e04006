import type { Box } from "../gen/carrel/v1/boxes_pb";
import { State } from "../gen/carrel/v1/common_pb";

export type Tone = "good" | "calm" | "busy" | "off" | "bad";

interface StateText {
  /** What people read. */
  label: string;
  tone: Tone;
  /** It will change by itself soon. */
  moving?: boolean;
}

const texts: Record<State, StateText> = {
  [State.UNSPECIFIED]: { label: "Unknown", tone: "off" },
  [State.PROVISIONING]: { label: "Starting", tone: "busy", moving: true },
  [State.RUNNING]: { label: "Running", tone: "good" },
  [State.IDLE]: { label: "Idle", tone: "good" },
  [State.PAUSING]: { label: "Pausing", tone: "busy", moving: true },
  [State.PAUSED]: { label: "Paused", tone: "calm" },
  [State.RESUMING]: { label: "Resuming", tone: "busy", moving: true },
  [State.STOPPING]: { label: "Stopping", tone: "busy", moving: true },
  [State.STOPPED]: { label: "Stopped", tone: "off" },
  [State.FAILED]: { label: "Failed", tone: "bad" },
  [State.DELETING]: { label: "Deleting", tone: "busy", moving: true },
  [State.DELETED]: { label: "Deleted", tone: "off" },
};

export const stateText = (state: State): StateText => texts[state] ?? texts[State.UNSPECIFIED];

/** Its processes run and it can be talked to. */
export const isLive = (box: Pick<Box, "state">): boolean => box.state === State.RUNNING || box.state === State.IDLE;

/** What is said in place of a part that needs the box to run. */
export const restText = (box: Pick<Box, "state" | "name">): string => (stateText(box.state).moving ? `${box.name} is ${stateText(box.state).label.toLowerCase()}…` : `${box.name} does not run now`);

export type Verb = "start" | "resume" | "pause" | "stop" | "restart" | "delete";

export interface VerbText {
  label: string;
  /** What it does to memory and files. */
  effect: string;
  /** What is said when it was asked for. */
  asked: string;
}

export const verbs: Record<Verb, VerbText> = {
  start: { label: "Start", effect: "Begins afresh from its files. Nothing was kept in memory.", asked: "Starting" },
  resume: { label: "Resume", effect: "Brings back memory and files: programs go on where they were.", asked: "Resuming" },
  pause: { label: "Pause", effect: "Keeps memory and files. Programs freeze and go on when you resume.", asked: "Pausing" },
  stop: { label: "Stop", effect: "Keeps files. Programs are ended and memory is given up.", asked: "Stopping" },
  restart: { label: "Restart", effect: "Keeps files. Programs are ended, memory is given up, and the box starts again.", asked: "Restarting" },
  delete: { label: "Delete", effect: "Removes memory and files for good. This cannot be undone.", asked: "Deleting" },
};

/** What may be asked of a box in its state, the most likely first. */
export function verbsOf(box: Pick<Box, "state">): Verb[] {
  switch (box.state) {
    case State.RUNNING:
    case State.IDLE:
      return ["pause", "stop", "restart", "delete"];
    case State.PAUSED:
      return ["resume", "stop", "delete"];
    case State.PAUSING:
      return ["resume", "stop", "delete"];
    case State.STOPPED:
    case State.STOPPING:
      return ["start", "delete"];
    case State.FAILED:
      return ["start", "stop", "delete"];
    case State.PROVISIONING:
    case State.RESUMING:
      return ["stop", "delete"];
    default:
      return [];
  }
}
