// What was changed in a notebook and is not in the box yet, kept in this browser for the next page that opens it. Each page keeps under a name of its
// own, so that several tabs do not wipe out each other's; what a page that still lives keeps is nobody else's.

import * as kept from "../kept";
import type { KeptCell } from "./model/sync";

interface Value extends kept.Kept {
  cells: readonly KeptCell[];
}

/** What is typed is kept after this, in ms. */
const keepAfter = 250;
/** A browser that does not answer holds nothing up for longer, in ms. */
const patience = 2000;

export class Keeper {
  private readonly prefix: string;
  private readonly own: string;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private has = false;
  private release: (() => void) | undefined;

  constructor(box: string, path: string, page: string) {
    this.prefix = `${box}\0notebook\0${path}\0`;
    this.own = this.prefix + page;
  }

  /** Marks what this page keeps as its own until `close`. */
  open() {
    if (this.release !== undefined) return;
    const over = new Promise<void>((resolve) => (this.release = resolve));
    void locks()?.request(this.own, () => over);
  }

  close() {
    this.release?.();
    this.release = undefined;
  }

  /** Keeps what `cells` gives a moment later; nothing: forgets at once. */
  keep(cells: () => readonly KeptCell[], anything: boolean) {
    if (!anything) {
      clearTimeout(this.timer);
      this.timer = undefined;
      if (this.has) void kept.keep(this.own, null);
      this.has = false;
      return;
    }
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.has = true;
      void kept.keep(this.own, { time: Date.now(), cells: cells() } as Value);
    }, keepAfter);
  }

  /** The same while the page goes away. */
  keepAtOnce(cells: readonly KeptCell[]) {
    this.has = true;
    kept.keepAtOnce(this.own, { time: Date.now(), cells } as Value);
  }

  /** What pages that are gone have kept. `taken` forgets it, when it has been put back and kept anew. */
  async left(): Promise<{ cells: readonly KeptCell[]; taken: (now: readonly KeptCell[]) => Promise<void> }> {
    const late = new Promise<string[]>((resolve) => setTimeout(() => resolve([]), patience));
    const found: string[] = [];
    const cells: KeptCell[] = [];
    for (const key of await Promise.race([kept.keys(this.prefix), late])) {
      if (key === this.own || (await lives(key))) continue;
      const value = await kept.find<Value>(key);
      found.push(key);
      if (Array.isArray(value?.cells)) cells.push(...value.cells);
    }
    return {
      cells,
      taken: async (now) => {
        if (now.length > 0) {
          this.has = true;
          await kept.keep(this.own, { time: Date.now(), cells: now } as Value);
        }
        for (const key of found) await kept.keep(key, null);
      },
    };
  }
}

/** Browsers have locks in secure contexts alone; without them pages are taken to be gone. */
function locks(): LockManager | undefined {
  return (navigator as Partial<Navigator>).locks;
}

async function lives(key: string): Promise<boolean> {
  return (await locks()?.request(key, { ifAvailable: true }, (lock) => lock === null)) ?? false;
}
