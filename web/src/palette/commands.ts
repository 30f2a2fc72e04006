import { useEffect, useSyncExternalStore } from "react";
import type { IconName } from "../ui/icon";

export interface Command {
  id: string;
  title: string;
  /** More words that find it. */
  words?: string;
  /** Heading in the palette: "Go to", "This box", "Notebook". */
  group: string;
  icon?: IconName;
  /** Shown beside it and in the help: "Mod+K" (Ctrl, or Cmd on a Mac), "?", "G B" (one after the other). */
  keys?: string;
  /** Shown beside it in the palette alone: keys that the part itself reads, where it has the keyboard. */
  ownKeys?: string;
  run: () => void;
}

const sources = new Map<symbol, readonly Command[]>();
let all: readonly Command[] = [];
const listeners = new Set<() => void>();

function changed(): void {
  all = [...sources.values()].flat();
  for (const l of listeners) l();
}

/** Adds commands while the component is mounted. Keep the array stable (useMemo), or the palette is made anew at each render. */
export function useCommands(commands: readonly Command[]): void {
  useEffect(() => {
    const me = Symbol();
    sources.set(me, commands);
    changed();
    return () => {
      sources.delete(me);
      changed();
    };
  }, [commands]);
}

export function useAllCommands(): readonly Command[] {
  return useSyncExternalStore(
    (l) => {
      listeners.add(l);
      return () => listeners.delete(l);
    },
    () => all,
  );
}

export const allCommands = (): readonly Command[] => all;

/** Orders commands by how well they fit what was typed: every word must be found, those at the beginning of a word count more. */
export function search(commands: readonly Command[], text: string): Command[] {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [...commands];
  const scored: { command: Command; score: number }[] = [];
  for (const command of commands) {
    const title = command.title.toLowerCase();
    const more = `${title} ${command.group.toLowerCase()} ${(command.words ?? "").toLowerCase()}`;
    let score = 0;
    for (const word of words) {
      const at = title.indexOf(word);
      if (at === 0) score += 4;
      else if (at > 0 && /\W/.test(title[at - 1]!)) score += 3;
      else if (at > 0) score += 2;
      else if (more.includes(word)) score += 1;
      else {
        score = -1;
        break;
      }
    }
    if (score > 0) scored.push({ command, score });
  }
  return scored.sort((a, b) => b.score - a.score).map((s) => s.command);
}
