import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { expect, test } from "vitest";
import { type ProcessEvent, ProcessEventSchema, Stream } from "../../gen/carrel/v1/processes_pb";
import type { Api } from "../../lib/api";
import { follow, from, mostBytes, type Output, tail } from "./output";

const bytes = (text: string) => new TextEncoder().encode(text);
const said = (offset: number, data: Uint8Array, stream = Stream.STDOUT) => create(ProcessEventSchema, { event: { case: "output", value: { stream, offset: BigInt(offset), data } } });
const ended = create(ProcessEventSchema, { event: { case: "exited", value: {} } });

/** An API whose answers, one after the other, are these; an error ends an answer. */
function answers(...list: (ProcessEvent | Error)[][]) {
  const asked: { stdoutOffset: bigint; stderrOffset: bigint }[] = [];
  const api = {
    async *attachProcess(request: { stdoutOffset: bigint; stderrOffset: bigint }) {
      asked.push(request);
      for (const e of list.shift() ?? []) {
        if (e instanceof Error) throw e;
        yield e;
      }
    },
  } as unknown as Api["processes"];
  return { api, asked };
}

async function all(api: Api["processes"], process = { id: "p", stdoutBytes: 0n, stderrBytes: 0n }): Promise<Output> {
  let last: Output | undefined;
  await follow(api, "box", process, new AbortController().signal, (o) => (last = o));
  return last!;
}

test("output goes on after a lost connection, each byte once, also within a character", async () => {
  const é = bytes("é\n");
  const { api, asked } = answers([said(0, bytes("one\n")), said(4, é.slice(0, 1)), new ConnectError("gone", Code.Unavailable)], [said(5, é.slice(1)), ended]);
  expect(await all(api)).toEqual({ text: "one\né\n", missing: 0, ended: true, error: undefined });
  expect(asked.map((a) => a.stdoutOffset)).toEqual([0n, 5n]);
});

test("what is no longer kept is counted, and what cannot be had is said", async () => {
  const gap = create(ProcessEventSchema, { event: { case: "gap", value: { stream: Stream.STDOUT, offset: 0n, nextOffset: 10n } } });
  expect(await all(answers([gap, said(10, bytes("end")), ended]).api)).toMatchObject({ text: "end", missing: 10, ended: true });
  const denied = new ConnectError("no", Code.PermissionDenied);
  expect(await all(answers([denied]).api)).toMatchObject({ text: "", ended: false, error: denied });
});

test("only the newest part of much output is asked for and kept", async () => {
  expect(from(10n)).toBe(0n);
  expect(from(BigInt(mostBytes) + 7n)).toBe(7n);
  expect(tail("abc", 10)).toEqual(["abc", 0]);
  expect(tail("aaaa\nbbbb\ncccc\n", 12)).toEqual(["cccc\n", 10]);
});
