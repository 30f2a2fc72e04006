// One open file between what is typed and what is on the box's disk: when it is saved, read again, or a question for its user. A pure machine;
// documents.ts does what it asks for.

export type Phase =
  /** Nothing is known of the disk yet. */
  | "opening"
  /** What is typed and what is on the disk are the same, or soon will be. */
  | "idle"
  | "saving"
  /** It could not be saved; it is tried again. */
  | "unsaved"
  /** Somebody else changed it meanwhile: `theirs` is on the disk. */
  | "conflict"
  /** It was removed or moved away by somebody else. */
  | "gone";

export interface Sync {
  readonly phase: Phase;
  /** Counts changes by this user. */
  readonly version: number;
  /** The newest version that is on the disk. */
  readonly saved: number;
  /** The version that is on its way; only while saving. */
  readonly sending: number;
  /** Of the file that the text stands on; "none" where none must be. */
  readonly etag: string;
  /** Something may have changed on the disk while it was being saved. */
  readonly look: boolean;
  /** In conflict: what is on the disk. */
  readonly theirs: { etag: string } | null;
  /** Why it is not saved, for people. */
  readonly words: string;
  /** Failures in a row. */
  readonly attempt: number;
  /** The box runs. */
  readonly live: boolean;
}

export type Input =
  | { type: "opened"; etag: string; dirty: boolean }
  | { type: "edit" }
  /** The time to save has come, or the user asks for it. */
  | { type: "save" }
  | { type: "saved"; etag: string }
  /** The file on the disk is another one than the text stands on. */
  | { type: "refused" }
  | { type: "failed"; message: string; passing: boolean }
  /** A file event: look at the disk. */
  | { type: "event" }
  /** What a look found; null: nothing is there. */
  | { type: "seen"; etag: string | null }
  /** The disk's text was read; `as`: it is the text here, what this text stands on, or another. */
  | { type: "read"; etag: string; as: "mine" | "base" | "other" }
  | { type: "resolve"; how: "mine" | "theirs" | "merged" }
  | { type: "live"; live: boolean };

export type Effect =
  /** Put the text on the disk if its file still has this etag. */
  | { type: "put"; etag: string }
  /** Save after the user has stopped typing. */
  | { type: "soon" }
  /** Save after a pause that grows with the attempts. */
  | { type: "later"; attempt: number }
  | { type: "stat" }
  /** Read the text on the disk and tell how it compares ("read"). */
  | { type: "read" }
  /** Show the text that was read. */
  | { type: "show" }
  /** Keep what is typed on this computer, or forget it. */
  | { type: "keep" }
  | { type: "forget" };

export function newSync(live: boolean): Sync {
  return { phase: "opening", version: 0, saved: 0, sending: 0, etag: "", look: false, theirs: null, words: "", attempt: 0, live };
}

/** There is something that is not on the disk. */
export const isDirty = (s: Sync): boolean => s.version > s.saved;

export const offlineWords = "The box does not run. What you typed is kept in this browser and saved when it runs again.";

export function step(s: Sync, input: Input): [Sync, Effect[]] {
  switch (input.type) {
    case "opened": {
      const next: Sync = { ...s, phase: "idle", etag: input.etag, version: input.dirty ? s.version + 1 : s.version, words: "", attempt: 0 };
      return input.dirty ? [next, [{ type: "soon" }]] : [{ ...next, saved: next.version }, []];
    }
    case "edit": {
      const next = { ...s, version: s.version + 1 };
      const effects: Effect[] = [{ type: "keep" }];
      if (s.phase === "idle" || s.phase === "unsaved") effects.push({ type: "soon" });
      if (s.phase === "idle" && !s.live) return [{ ...next, phase: "unsaved", words: offlineWords }, effects];
      return [next, effects];
    }
    case "save":
      if ((s.phase !== "idle" && s.phase !== "unsaved") || !isDirty(s)) return [s, []];
      if (!s.live) return [{ ...s, phase: "unsaved", words: offlineWords }, []];
      return [{ ...s, phase: "saving", sending: s.version }, [{ type: "put", etag: s.etag }]];
    case "saved": {
      if (s.phase !== "saving") return [s, []];
      const next: Sync = { ...s, phase: "idle", etag: input.etag, saved: s.sending, words: "", attempt: 0, look: false };
      const effects: Effect[] = [];
      if (isDirty(next)) effects.push({ type: "soon" });
      else effects.push({ type: "forget" });
      if (s.look) effects.push({ type: "stat" });
      return [next, effects];
    }
    case "refused":
      if (s.phase !== "saving") return [s, []];
      return [{ ...s, phase: "idle", look: false }, [{ type: "stat" }]];
    case "failed": {
      if (s.phase !== "saving") return [s, []];
      const next: Sync = { ...s, phase: "unsaved", words: s.live ? input.message : offlineWords, attempt: s.attempt + 1, look: false };
      // One that will not pass by itself is tried again too, rarely: room may be made on a disk.
      return [next, [{ type: "later", attempt: input.passing ? s.attempt : 5 }]];
    }
    case "event":
      if (s.phase === "opening") return [s, []];
      if (s.phase === "saving") return [{ ...s, look: true }, []];
      return [s, s.live ? [{ type: "stat" }] : []];
    case "seen":
      if (s.phase === "opening") return [s, []];
      if (s.phase === "saving") return [{ ...s, look: true }, []];
      if (input.etag === null) return s.phase === "gone" ? [s, []] : [{ ...s, phase: "gone", etag: "none", theirs: null, words: "" }, isDirty(s) ? [{ type: "keep" }] : []];
      if (s.phase === "conflict" && s.theirs?.etag === input.etag) return [s, []];
      if (input.etag === s.etag) return s.phase === "conflict" ? [{ ...s, phase: "idle", theirs: null }, [{ type: "soon" }]] : [s, []];
      return [s, [{ type: "read" }]];
    case "read": {
      if (s.phase === "opening" || s.phase === "saving") return [s, []];
      if (input.as === "mine") return [{ ...s, phase: "idle", etag: input.etag, saved: s.version, theirs: null, words: "", attempt: 0 }, [{ type: "forget" }]];
      // Only its mode or time changed: the text stands on it still.
      if (input.as === "base") return [{ ...s, phase: "idle", etag: input.etag, theirs: null, words: "", attempt: 0 }, isDirty(s) ? [{ type: "soon" }] : []];
      if (isDirty(s)) return [{ ...s, phase: "conflict", theirs: { etag: input.etag }, words: "" }, [{ type: "keep" }]];
      return [{ ...s, phase: "idle", etag: input.etag, theirs: null, words: "", attempt: 0 }, [{ type: "show" }]];
    }
    case "resolve": {
      if (s.phase === "gone") {
        if (input.how === "theirs") return [s, []];
        const next: Sync = { ...s, phase: "idle", etag: "none", version: Math.max(s.version, s.saved + 1), words: "" };
        return step(next, { type: "save" });
      }
      if (s.phase !== "conflict" || !s.theirs) return [s, []];
      const next: Sync = { ...s, phase: "idle", etag: s.theirs.etag, theirs: null, words: "" };
      if (input.how === "theirs") return [{ ...next, saved: next.version }, [{ type: "show" }, { type: "forget" }]];
      return step({ ...next, version: next.version + 1 }, { type: "save" });
    }
    case "live": {
      if (s.live === input.live) return [s, []];
      const next = { ...s, live: input.live };
      if (!input.live || s.phase === "opening") return [next, []];
      // Back again: what happened meanwhile was not told.
      return [{ ...next, attempt: 0 }, isDirty(next) && (s.phase === "unsaved" || s.phase === "idle") ? [{ type: "stat" }, { type: "soon" }] : [{ type: "stat" }]];
    }
  }
}

/** What the state is called, for people. */
export function stateWords(s: Sync): { text: string; tone: "calm" | "busy" | "bad" } {
  switch (s.phase) {
    case "opening":
      return { text: "Opening…", tone: "busy" };
    case "idle":
      return isDirty(s) ? { text: "Not saved yet", tone: "busy" } : { text: "Saved", tone: "calm" };
    case "saving":
      return { text: "Saving…", tone: "busy" };
    case "unsaved":
      return { text: `Not saved: ${s.words}`, tone: "bad" };
    case "conflict":
      return { text: "Not saved: the file was changed by somebody else", tone: "bad" };
    case "gone":
      return { text: "Not saved: the file is gone from the disk", tone: "bad" };
  }
}
