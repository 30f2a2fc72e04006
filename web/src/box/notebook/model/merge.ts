// Merging two changes of one text, by lines.

/** Lines with their ends, so that joining them gives the text again. */
export function lines(text: string): string[] {
  return text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
}

/** More work than this is not done: the texts are then taken to have nothing in common. */
const mostWork = 4_000_000;

/** For each line of a the line of b that it is in a longest common subsequence, or -1. */
export function matches(a: readonly string[], b: readonly string[]): Int32Array {
  const match = new Int32Array(a.length).fill(-1);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) {
    match[start] = start;
    start++;
  }
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) {
    endA--;
    endB--;
    match[endA] = endB;
  }
  const n = endA - start;
  const m = endB - start;
  if (n === 0 || m === 0 || n * m > mostWork) return match;
  // length[i][j]: of the longest common subsequence of a[i:] and b[j:].
  const width = m + 1;
  const length = new Uint32Array((n + 1) * width);
  const at = (i: number, j: number) => length[i * width + j] as number;
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      length[i * width + j] = a[start + i] === b[start + j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[start + i] === b[start + j]) match[start + i++] = start + j++;
    else if (at(i + 1, j) >= at(i, j + 1)) i++;
    else j++;
  }
  return match;
}

/** The text with both changes, or null when they touch the same lines differently. */
export function merge(base: string, mine: string, theirs: string): string | null {
  if (mine === theirs || theirs === base) return mine;
  if (mine === base) return theirs;
  // A last line without an end is compared as if it had one: else adding a line behind it would change it too.
  const b = lines(base + "\n");
  const m = lines(mine + "\n");
  const t = lines(theirs + "\n");
  const inMine = matches(b, m);
  const inTheirs = matches(b, t);
  const out: string[] = [];
  let i = 0;
  let j = 0;
  let k = 0;
  for (;;) {
    // The next line of base that both kept.
    let next = i;
    while (next < b.length && ((inMine[next] as number) < j || (inTheirs[next] as number) < k)) next++;
    const endMine = next < b.length ? (inMine[next] as number) : m.length;
    const endTheirs = next < b.length ? (inTheirs[next] as number) : t.length;
    const wasPart = b.slice(i, next).join("");
    const minePart = m.slice(j, endMine).join("");
    const theirPart = t.slice(k, endTheirs).join("");
    if (minePart === theirPart || theirPart === wasPart) out.push(minePart);
    else if (minePart === wasPart) out.push(theirPart);
    else return null;
    if (next >= b.length) break;
    out.push(b[next] as string);
    i = next + 1;
    j = endMine + 1;
    k = endTheirs + 1;
  }
  return out.join("").replace(/\n$/, "");
}
