// Texts of files that are not on the box's disk yet.

import * as kept from "../kept";

export interface Draft extends kept.Kept {
  text: string;
  /** Of the file that it was typed on. */
  etag: string;
  eol: "\n" | "\r\n";
}

const keyOf = (box: string, path: string): string => `${box}\0${path}`;

export const keep = (box: string, path: string, draft: Draft | null): Promise<void> => kept.keep(keyOf(box, path), draft);
export const keepAtOnce = (box: string, path: string, draft: Draft): void => kept.keepAtOnce(keyOf(box, path), draft);
export const find = (box: string, path: string): Promise<Draft | null> => kept.find<Draft>(keyOf(box, path));
