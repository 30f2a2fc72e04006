// The output of one process, as it comes: from its beginning as far as it is kept, then live.
import { type Process, Stream } from "../../gen/carrel/v1/processes_pb";
import type { Api } from "../../lib/api";
import { isAborted, isPassing } from "../../lib/errors";

/** More than this of a stream is not asked for, in bytes: the newest part is. */
export const mostBytes = 1 << 20;

export interface Output {
  text: string;
  /** Bytes before the text that are no longer kept, or were not asked for. */
  missing: number;
  ended: boolean;
  error: unknown;
}

export const none: Output = { text: "", missing: 0, ended: false, error: undefined };

/** Where to begin, so that no more than `mostBytes` of a stream come at first. */
export const from = (bytes: bigint): bigint => (bytes > BigInt(mostBytes) ? bytes - BigInt(mostBytes) : 0n);

/** The end of a text that grew too long, from the beginning of a line; and how many characters went. */
export function tail(text: string, most: number): [string, number] {
  if (text.length <= most) return [text, 0];
  // A quarter more goes, so that not every piece that comes copies all of it.
  const cut = text.length - Math.floor(most * 0.75);
  const line = text.indexOf("\n", cut);
  const at = line < 0 ? cut : line + 1;
  return [text.slice(at), at];
}

/** Follows a process until it has ended or `signal` says so; `told` gets all that is known each time something came. Comes back after a lost connection. */
export async function follow(api: Api["processes"], box: string, process: Pick<Process, "id" | "stdoutBytes" | "stderrBytes">, signal: AbortSignal, told: (o: Output) => void): Promise<void> {
  const at = { [Stream.STDOUT]: from(process.stdoutBytes), [Stream.STDERR]: from(process.stderrBytes) };
  const decoders = { [Stream.STDOUT]: new TextDecoder(), [Stream.STDERR]: new TextDecoder() };
  let o: Output = { ...none, missing: Number(at[Stream.STDOUT] + at[Stream.STDERR]) };
  let pause = 500;
  for (;;) {
    try {
      for await (const { event } of api.attachProcess({ box, process: process.id, stdoutOffset: at[Stream.STDOUT], stderrOffset: at[Stream.STDERR] }, { signal })) {
        pause = 500;
        if (event.case === "output") {
          const stream = event.value.stream === Stream.STDERR ? Stream.STDERR : Stream.STDOUT;
          at[stream] = event.value.offset + BigInt(event.value.data.length);
          const [text, cut] = tail(o.text + decoders[stream].decode(event.value.data, { stream: true }), 2 * mostBytes);
          o = { ...o, text, missing: o.missing + cut, error: undefined };
        } else if (event.case === "gap") {
          const stream = event.value.stream === Stream.STDERR ? Stream.STDERR : Stream.STDOUT;
          at[stream] = event.value.nextOffset;
          o = { ...o, missing: o.missing + Number(event.value.nextOffset - event.value.offset), error: undefined };
        } else if (event.case === "exited") {
          return told({ ...o, ended: true, error: undefined });
        } else {
          o = { ...o, error: undefined };
        }
        told(o);
      }
    } catch (error) {
      if (signal.aborted || isAborted(error)) return;
      o = { ...o, error };
      told(o);
      if (!isPassing(error)) return;
    }
    await new Promise((done) => setTimeout(done, pause));
    if (signal.aborted) return;
    pause = Math.min(pause * 2, 8000);
  }
}
