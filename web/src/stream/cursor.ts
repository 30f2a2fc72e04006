// Positions in a box's journal, "JOURNAL.SEQUENCE". Sequence numbers rise by one within a journal; another journal is
// another count, so positions of two journals cannot be compared.

export interface Position {
  readonly journal: string;
  readonly sequence: bigint;
}

/** The position that a cursor names, or null for an empty or foreign one. */
export function parseCursor(cursor: string): Position | null {
  const dot = cursor.lastIndexOf(".");
  if (dot <= 0) return null;
  const digits = cursor.slice(dot + 1);
  if (!/^\d{1,19}$/.test(digits)) return null;
  return { journal: cursor.slice(0, dot), sequence: BigInt(digits) };
}

/** How an event's cursor stands to the newest one seen. */
export type Standing = "unkept" | "new" | "seen" | "other-journal";

/**
 * Tells whether an event is new. An event without a cursor is of the moment ("unkept"). With nothing seen yet, or a
 * last cursor that names no journal ("0": everything that is kept), every event is new.
 */
export function standing(cursor: string, last: string): Standing {
  if (cursor === "") return "unkept";
  const at = parseCursor(cursor);
  const seen = parseCursor(last);
  if (at === null || seen === null) return cursor === last ? "seen" : "new";
  if (at.journal !== seen.journal) return "other-journal";
  return at.sequence > seen.sequence ? "new" : "seen";
}

/** True when a is at or behind b of the same journal, that is: everything up to b was seen with a. */
export function reached(a: string, b: string): boolean {
  if (a === b) return true;
  const at = parseCursor(a);
  const want = parseCursor(b);
  return at !== null && want !== null && at.journal === want.journal && at.sequence >= want.sequence;
}
