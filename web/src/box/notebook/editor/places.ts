// Places in a text, which kernels count in code points and browsers in UTF-16 units.

/** How many code points are before a place that is given in UTF-16 units. One in the middle of a pair counts as before the pair. */
export function pointsBefore(text: string, units: number): number {
  let points = 0;
  for (let at = 0; at < units; points++) {
    at += (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
    if (at > units) break;
  }
  return points;
}

/** The place in UTF-16 units behind so many code points, at most the text's end. */
export function unitsBefore(text: string, points: number): number {
  let at = 0;
  for (let n = 0; n < points && at < text.length; n++) at += (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
  return at;
}
