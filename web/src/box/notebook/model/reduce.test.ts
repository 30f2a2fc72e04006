import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { ExecutionState, KernelState, NotebookSchema, type NotebookEvent } from "../../../gen/carrel/v1/notebooks_pb";
import { applyEdits, applyEvents, keepOutputs, queuePlaces } from "./reduce";
import { document, event } from "./server.fixture";
import { newCell, parseCell } from "./nbformat";
import { parseNotebook } from "./wire";

const at = (seconds: number) => ({ seconds: BigInt(seconds), nanos: 0 });
const stream = (cursor: string, text: string, name = "stdout", cell = "c0") =>
  event(cursor, { cell, execution: "e1", event: { case: "output", value: { output_type: "stream", name, text } } });
const queued = (cursor: string, id = "e1", cell = "c0") =>
  event(cursor, { cell, execution: id, event: { case: "queued", value: { id, cell, state: ExecutionState.QUEUED, queueTime: at(1) } } });
const started = (cursor: string, id = "e1", cell = "c0", count = 1) =>
  event(cursor, { cell, execution: id, time: at(2), event: { case: "started", value: { executionCount: count } } });
const ended = (cursor: string, state = ExecutionState.OK, id = "e1", cell = "c0") =>
  event(cursor, { cell, execution: id, event: { case: "ended", value: { id, cell, state, executionCount: 1, endTime: at(5) } } });
const display = (cursor: string, data: Record<string, string>, display_id: string) =>
  event(cursor, {
    cell: "c0",
    execution: "e1",
    event: { case: "output", value: { output_type: "display_data", data, metadata: {}, transient: { display_id } } },
  });

const story: NotebookEvent[] = [
  queued("j.1"),
  started("j.2"),
  stream("j.3", "one\n"),
  stream("j.4", "two\n"),
  stream("j.5", "oops", "stderr"),
  display("j.6", { "text/plain": "0%" }, "bar"),
  event("j.7", { cell: "c0", execution: "e1", event: { case: "displayUpdate", value: { displayId: "bar", data: { "text/plain": "100%" }, metadata: {} } } }),
  ended("j.8"),
];

const strip = (outputs: readonly { key: number }[] | undefined) => outputs?.map(({ key: _key, ...rest }) => rest);

describe("events of a running cell", () => {
  it("make its outputs: streams go on, displays are updated", () => {
    const cell = applyEvents(document("x"), story).cells.get("c0");
    expect(strip(cell?.outputs)).toEqual([
      { kind: "stream", name: "stdout", text: "one\ntwo\n" },
      { kind: "stream", name: "stderr", text: "oops" },
      { kind: "rich", type: "display_data", data: { "text/plain": "100%" }, metadata: {}, displayId: "bar", count: 0 },
    ]);
    expect(cell?.count).toBe(1);
  });

  it("give the same document however they are cut and however often they are repeated", () => {
    const whole = applyEvents(document("x"), story);
    for (let cut = 0; cut <= story.length; cut++) {
      const doc = applyEvents(applyEvents(document("x"), story.slice(0, cut)), story);
      expect(strip(doc.cells.get("c0")?.outputs)).toEqual(strip(whole.cells.get("c0")?.outputs));
      expect(doc.runs).toEqual(whole.runs);
      expect(doc.cursor).toBe("j.8");
    }
  });

  it("never change the document they were applied to", () => {
    const first = applyEvents(document("x"), story.slice(0, 3));
    const text = JSON.stringify(first.cells.get("c0")?.outputs);
    applyEvents(first, story.slice(3));
    expect(JSON.stringify(first.cells.get("c0")?.outputs)).toBe(text);
  });

  it("tell times, counts and places in the queue", () => {
    let doc = applyEvents(document("x", "y", "z"), [queued("j.1"), queued("j.2", "e2", "c1"), queued("j.3", "e3", "c2")]);
    expect([...queuePlaces(doc)]).toEqual([
      ["e1", 1],
      ["e2", 2],
      ["e3", 3],
    ]);
    doc = applyEvents(doc, [started("j.4")]);
    expect(doc.runs.get("e1")).toMatchObject({ state: "running", queued: 1000, started: 2000 });
    expect(queuePlaces(doc).get("e2")).toBe(1);
    doc = applyEvents(doc, [ended("j.5")]);
    expect(doc.runs.get("e1")).toMatchObject({ state: "ok", started: 2000, ended: 5000 });
  });

  it("clear at once, or when the next output comes", () => {
    const begun = applyEvents(document("x"), story.slice(0, 4));
    const clear = (cursor: string, wait: boolean) => event(cursor, { cell: "c0", execution: "e1", event: { case: "clearOutput", value: { wait } } });
    expect(applyEvents(begun, [clear("j.5", false)]).cells.get("c0")?.outputs).toEqual([]);
    const waiting = applyEvents(begun, [clear("j.5", true)]);
    expect(strip(waiting.cells.get("c0")?.outputs)).toEqual([{ kind: "stream", name: "stdout", text: "one\ntwo\n" }]);
    const next = applyEvents(waiting, [stream("j.6", "three"), stream("j.7", "four")]);
    expect(strip(next.cells.get("c0")?.outputs)).toEqual([{ kind: "stream", name: "stdout", text: "threefour" }]);
  });

  it("mark where output is no longer kept", () => {
    const doc = applyEvents(document("x"), [
      ...story.slice(0, 3),
      event("j.4", { cell: "c0", execution: "e1", event: { case: "truncated", value: { bytes: 5n, file: "/x.txt" } } }),
    ]);
    expect(doc.cells.get("c0")?.outputs.at(-1)).toMatchObject({ kind: "truncated", bytes: 5, file: "/x.txt" });
  });

  it("ask, and stop asking", () => {
    const asked = applyEvents(document("x"), [
      ...story.slice(0, 2),
      event("j.3", { cell: "c0", execution: "e1", event: { case: "question", value: { prompt: "Name? ", password: true } } }),
    ]);
    expect(asked.runs.get("e1")?.question).toEqual({ prompt: "Name? ", password: true });
    expect(applyEvents(asked, [event("j.4", { execution: "e1", event: { case: "answered", value: true } })]).runs.get("e1")?.question).toBeNull();
    expect(applyEvents(asked, [ended("j.4")]).runs.get("e1")?.question).toBeNull();
  });

  it("of an earlier execution do not reach a cell that runs anew", () => {
    const doc = applyEvents(document("x"), [...story, queued("j.9", "e2"), started("j.10", "e2", "c0", 2), stream("j.11", "late of e1")]);
    expect(doc.cells.get("c0")?.outputs).toEqual([]);
  });

  it("of other notebooks change nothing but nothing", () => {
    const doc = document("x");
    const other = { ...stream("j.9", "x"), path: "other.ipynb" };
    expect(applyEvents(doc, [other])).toBe(doc);
  });
});

describe("other events", () => {
  it("tell of the kernel, of edits and of the file", () => {
    const doc = applyEvents(document("x"), [
      event("j.1", { event: { case: "kernelChanged", value: { id: "k", spec: "python3", state: KernelState.DEAD, message: "out of memory" } } }),
      event("j.2", { event: { case: "edited", value: { revision: 7n, edits: [{ edit: { case: "source", value: { cell: "c0", source: "y" } } }] } } }),
      event("", { event: { case: "unsaved", value: "disk full" } }),
    ]);
    expect(doc.kernel).toMatchObject({ health: "dead", message: "out of memory" });
    expect(doc.cells.get("c0")?.source).toBe("y");
    expect(doc.revision).toBe(7n);
    expect(doc.unsaved).toBe("disk full");
  });

  it("that this page does not know make it read the notebook again, and break nothing", () => {
    const doc = applyEvents(document("x"), [event("j.1", { event: { case: "edited", value: { revision: 2n, edits: [{}] } } })]);
    expect(doc.stale).toBe(true);
    expect(applyEvents(document("x"), [event("j.1", {})])).toMatchObject({ stale: false, cursor: "j.1" });
    expect(applyEvents(document("x"), [event("j.1", { event: { case: "gap", value: true } })]).stale).toBe(true);
    expect(applyEvents(applyEvents(document("x"), story), [event("other.1", {})]).stale).toBe(true);
    expect(applyEvents(document("x"), [event("j.1", { event: { case: "reloaded", value: { revision: 3n } } })]).stale).toBe(true);
  });
});

describe("edits", () => {
  const order = (...edits: Parameters<typeof applyEdits>[1]) => applyEdits(document("a", "b", "c"), edits).order.join(" ");
  const cell = { ...newCell("markdown", "m"), id: "n" };
  it("name cells, not places", () => {
    expect(order({ kind: "insert", after: "", cell })).toBe("n c0 c1 c2");
    expect(order({ kind: "insert", after: "c1", cell })).toBe("c0 c1 n c2");
    expect(order({ kind: "insert", after: "gone", cell })).toBe("c0 c1 c2 n");
    expect(order({ kind: "move", cell: "c0", after: "c2" })).toBe("c1 c2 c0");
    expect(order({ kind: "move", cell: "c2", after: "" })).toBe("c2 c0 c1");
    expect(order({ kind: "remove", cell: "c1" })).toBe("c0 c2");
  });
  it("that do not fit change nothing", () => {
    const doc = document("a");
    expect(applyEdits(doc, [{ kind: "remove", cell: "x" }])).toBe(doc);
    expect(applyEdits(doc, [{ kind: "insert", after: "", cell: { ...cell, id: "c0" } }])).toBe(doc);
    expect(applyEdits(doc, [{ kind: "move", cell: "c0", after: "c0" }])).toBe(doc);
  });
});

describe("a document that was read again", () => {
  it("keeps the outputs that are the same, so that frames are not loaded anew", () => {
    const was = applyEvents(document("x", "y"), [...story, stream("j.9", "other", "stdout", "c1")]);
    const read = parseNotebook(
      create(NotebookSchema, {
        path: "a.ipynb",
        cursor: "j.9",
        content: {
          cells: [
            { id: "c0", cell_type: "code", source: "x", outputs: JSON.parse(JSON.stringify(story0)) },
            { id: "c1", cell_type: "code", source: "y", outputs: [{ output_type: "stream", name: "stdout", text: "changed" }] },
          ],
        },
      }),
    );
    const kept = keepOutputs(was, read);
    expect(kept.cells.get("c0")?.outputs).toBe(was.cells.get("c0")?.outputs);
    expect(kept.cells.get("c1")?.outputs).toBe(read.cells.get("c1")?.outputs);
  });
});

const story0 = [
  { output_type: "stream", name: "stdout", text: "one\ntwo\n" },
  { output_type: "stream", name: "stderr", text: "oops" },
  { output_type: "display_data", data: { "text/plain": "100%" }, metadata: {}, transient: { display_id: "bar" } },
];

describe("nbformat", () => {
  it("of any shape is read without failing", () => {
    for (const raw of [null, 1, "x", [], { source: 5 }, { outputs: {} }, { outputs: [null, 1, { output_type: "stream" }, { output_type: "error" }] }]) {
      expect(parseCell(raw).source).toBe("");
    }
    expect(parseCell({ source: ["a\n", "b"], cell_type: "weird" })).toMatchObject({ source: "a\nb", type: "code" });
  });
  it("a notebook with double and missing ids shows each cell once", () => {
    const n = create(NotebookSchema, { path: "a.ipynb", content: { cells: [{ id: "a" }, { id: "a" }, { source: "x" }] } });
    expect(parseNotebook(n).order).toEqual(["a"]);
  });
  it("keys that JavaScript has a meaning for are only keys", () => {
    const doc = parseCell(JSON.parse('{"id":"__proto__","metadata":{"__proto__":{"x":1}},"outputs":[{"output_type":"display_data","data":{"__proto__":"x"}}]}'));
    expect(({} as Record<string, unknown>).x).toBeUndefined();
    expect(doc.id).toBe("__proto__");
  });
});
