// What one person types into one process: kept until the box has said that it took it, so that a broken connection loses and doubles nothing.

/** At most so much is given at once, in bytes; a frame may have 256 KiB. */
const piece = 64 << 10;
/** More than this is not kept for a box that takes nothing, in bytes. */
const most = 200 << 10;

export interface Typed {
  offset: bigint;
  data: Uint8Array;
}

export class Typing {
  /** Any name of this page's own: offsets count what it gave. */
  readonly writer = crypto.getRandomValues(new Uint8Array(12)).reduce((s, b) => s + b.toString(16).padStart(2, "0"), "");
  private kept: Typed[] = [];
  private end = 0n;
  private taken = 0n;

  /** Takes what was typed, and gives the pieces to send; null: too much waits already, and it was not taken. */
  add(data: Uint8Array): Typed[] | null {
    if (Number(this.end - this.taken) + data.length > most) return null;
    const pieces: Typed[] = [];
    for (let at = 0; at < data.length; at += piece) {
      const part = data.subarray(at, at + piece);
      pieces.push({ offset: this.end, data: part });
      this.end += BigInt(part.length);
    }
    this.kept.push(...pieces);
    return pieces;
  }

  /** The box has everything before `offset`. */
  took(offset: bigint): void {
    if (offset <= this.taken) return;
    this.taken = offset < this.end ? offset : this.end;
    this.kept = this.kept.filter((t) => t.offset + BigInt(t.data.length) > this.taken);
  }

  /** What to send again on a new connection. */
  again(): readonly Typed[] {
    return this.kept;
  }
}

// What terminals answer by themselves: positions, identities, colours, the focus. A person can type none of these but by hand.
const answers = /^(?:\x1b\[[?>=]?[\d;]*\$?[cRnyt]|\x1b\[[IO]|\x1b[P\]_][^\x07\x1b]*(?:\x07|\x1b\\))+$/; // eslint-disable-line no-control-regex -- control characters are what terminals speak

/** Says whether the terminal made this itself. Shift-F3 looks like a position; so it counts only while the terminal reads output. */
export const isAutomatic = (data: string): boolean => answers.test(data);
