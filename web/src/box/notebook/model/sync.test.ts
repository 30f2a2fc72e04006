import { describe, expect, it } from "vitest";
import { newCell } from "./nbformat";
import { document, event, NotebookServer } from "./server.fixture";
import { conflicts, newSync, settled, type Sync, sync, type SyncEffect, type SyncInput, toKeep } from "./sync";
import type { Edit } from "./types";

/** A page: its state, and what it wants done. */
class Page {
  state: Sync;
  todo: SyncEffect[] = [];
  seen = 0;
  private n = 0;
  private generation = 0;
  constructor(
    readonly name: string,
    readonly server: NotebookServer,
  ) {
    this.state = newSync(server.doc);
  }
  in(input: SyncInput): SyncEffect[] {
    const { state, effects } = sync(this.state, input, () => `${this.name}${this.generation || ""}-${this.n++}`);
    this.state = state;
    this.todo.push(...effects);
    return effects;
  }
  text(cell = "c0") {
    return this.state.view.cells.get(cell)?.source;
  }
  /** Does the first thing there is to do. */
  work(answer = true) {
    const e = this.todo.shift();
    if (e === undefined) return;
    switch (e.type) {
      case "send":
      case "resend": {
        const a = this.server.edit(e.id, e.edits);
        if (!answer) this.in({ type: "lost", id: e.id, message: "no network" });
        else if (a.ok) this.in({ type: "answered", id: e.id, cursor: a.cursor });
        else this.in({ type: "refused", id: e.id, reason: a.reason, cell: a.cell, message: a.message });
        break;
      }
      case "timer":
        this.in({ type: "timer" });
        break;
      case "read":
        this.in({ type: "loaded", doc: { ...this.server.doc, stale: false } });
        break;
    }
  }
  /** Hears the next events, at most n. */
  hear(n = Infinity) {
    const events = this.server.events.slice(this.seen, this.seen + n);
    this.seen += events.length;
    this.in({ type: "events", events });
  }
  /** The tab crashes and is opened anew; what was on its way may arrive or not. */
  crash(arrives = true) {
    const sent = this.todo.find((e) => e.type === "send" || e.type === "resend");
    const kept = JSON.parse(JSON.stringify(toKeep(this.state))) as ReturnType<typeof toKeep>;
    this.generation++;
    this.todo = [];
    if (arrives && sent !== undefined) this.server.edit(sent.id, sent.edits);
    this.state = newSync(this.server.doc);
    this.seen = this.server.events.length;
    this.in({ type: "restored", cells: kept });
    return kept;
  }
  finish() {
    for (let i = 0; i < 200 && (this.todo.length > 0 || this.seen < this.server.events.length); i++) {
      this.work();
      this.hear();
    }
  }
}

function pages(...sources: string[]): [NotebookServer, Page, Page] {
  const server = new NotebookServer(document(...sources));
  return [server, new Page("a", server), new Page("b", server)];
}

describe("typing", () => {
  it("is seen at once and sent with what it was made from", () => {
    const [server, a] = pages("x");
    expect(a.in({ type: "typed", cell: "c0", text: "xy" })).toEqual([{ type: "timer", ms: 400 }]);
    expect(a.text()).toBe("xy");
    expect(a.in({ type: "typed", cell: "c0", text: "xyz" })).toEqual([]);
    expect(a.in({ type: "timer" })).toMatchObject([{ type: "send", edits: [{ kind: "source", source: "xyz", expected: "x" }] }]);
    a.finish();
    expect(server.doc.cells.get("c0")?.source).toBe("xyz");
    expect(settled(a.state)).toBe(true);
  });

  it("goes on while a save is under way", () => {
    const [server, a] = pages("x");
    a.in({ type: "typed", cell: "c0", text: "xy" });
    a.in({ type: "flush" });
    a.in({ type: "typed", cell: "c0", text: "xyz" });
    expect(a.text()).toBe("xyz");
    a.finish();
    expect(server.doc.cells.get("c0")?.source).toBe("xyz");
  });

  it("is not lost and not doubled when the answer was", () => {
    const [server, a] = pages("x");
    a.in({ type: "edit", edits: [{ kind: "insert", after: "c0", cell: { ...newCell("code", "new"), id: "n" } }] });
    a.work(false);
    expect(a.state.trouble).toBe("no network");
    expect(a.todo).toMatchObject([{ type: "resend", id: "a-0" }]);
    a.finish();
    expect(server.doc.order).toEqual(["c0", "n"]);
    expect(a.state.view.order).toEqual(["c0", "n"]);
    expect(a.state.trouble).toBe("");
    expect(settled(a.state)).toBe(true);
  });

  it("is the same whether the event or the answer comes first", () => {
    for (const eventFirst of [true, false]) {
      const [server, a] = pages("x");
      a.in({ type: "typed", cell: "c0", text: "y" });
      a.in({ type: "flush" });
      const send = a.todo.find((e) => e.type === "send");
      if (send?.type !== "send") throw new Error("nothing sent");
      const answer = server.edit(send.id, send.edits);
      if (!answer.ok) throw new Error(answer.message);
      const both = [
        () => a.hear(),
        () => a.in({ type: "answered", id: send.id, cursor: answer.cursor }),
      ];
      for (const f of eventFirst ? both : both.reverse()) {
        f();
        expect(a.text()).toBe("y");
      }
      expect(settled(a.state)).toBe(true);
      expect(a.state.acked).toEqual([]);
    }
  });
});

describe("two pages", () => {
  it("that change different lines of a cell both keep theirs", () => {
    const [server, a, b] = pages("one\ntwo\nthree");
    a.in({ type: "typed", cell: "c0", text: "ONE\ntwo\nthree" });
    b.in({ type: "typed", cell: "c0", text: "one\ntwo\nTHREE" });
    a.finish();
    b.finish();
    a.finish();
    expect(server.doc.cells.get("c0")?.source).toBe("ONE\ntwo\nTHREE");
    expect(a.text()).toBe("ONE\ntwo\nTHREE");
    expect(b.text()).toBe("ONE\ntwo\nTHREE");
  });

  it("that change the same line: the second chooses, and nothing is sent before", () => {
    const [server, a, b] = pages("x = 1");
    a.in({ type: "typed", cell: "c0", text: "x = 2" });
    b.in({ type: "typed", cell: "c0", text: "x = 3" });
    a.finish();
    b.finish();
    expect(conflicts(b.state)).toEqual(["c0"]);
    expect(b.state.drafts.get("c0")).toMatchObject({ text: "x = 3", theirs: "x = 2" });
    expect(b.text()).toBe("x = 3");
    expect(server.doc.cells.get("c0")?.source).toBe("x = 2");
    b.in({ type: "resolved", cell: "c0", text: "x = 2 + 3" });
    b.finish();
    a.finish();
    expect([server.doc.cells.get("c0")?.source, a.text(), b.text()]).toEqual(["x = 2 + 3", "x = 2 + 3", "x = 2 + 3"]);
    expect(conflicts(b.state)).toEqual([]);
  });

  it("of which one could not hear: it is told when it saves, and its text stays", () => {
    const [, a, b] = pages("x = 1");
    a.in({ type: "typed", cell: "c0", text: "x = 2" });
    a.finish();
    b.in({ type: "typed", cell: "c0", text: "x = 3" });
    b.in({ type: "flush" });
    for (let i = 0; i < 6; i++) b.work();
    expect(conflicts(b.state)).toEqual(["c0"]);
    expect(b.text()).toBe("x = 3");
  });

  it("of which one removes the cell that the other writes in: the text comes back", () => {
    const [server, a, b] = pages("one", "two");
    b.in({ type: "typed", cell: "c1", text: "two and more" });
    a.in({ type: "edit", edits: [{ kind: "remove", cell: "c1" }] });
    a.finish();
    b.finish();
    const texts = server.doc.order.map((id) => server.doc.cells.get(id)?.source);
    expect(texts).toEqual(["one", "two and more"]);
  });

  it("of which one removes a cell that the other moves: the rest of its edits is done", () => {
    const [server, a, b] = pages("one", "two", "three");
    a.in({ type: "edit", edits: [{ kind: "remove", cell: "c1" }] });
    a.finish();
    b.state = { ...b.state, flight: { id: "busy", edits: [], operations: [], sources: new Map(), tries: 0 } };
    b.in({ type: "edit", edits: [{ kind: "move", cell: "c1", after: "c2" }] });
    b.in({ type: "edit", edits: [{ kind: "move", cell: "c0", after: "c2" }] });
    b.in({ type: "typed", cell: "c2", text: "THREE" });
    b.in({ type: "answered", id: "busy", cursor: "j.0" });
    b.finish();
    expect(server.doc.order).toEqual(["c2", "c0"]);
    expect(b.state.view.order).toEqual(["c2", "c0"]);
    expect(server.doc.cells.get("c2")?.source).toBe("THREE");
    expect(settled(b.state)).toBe(true);
  });
});

describe("a gap", () => {
  it("makes the page read again and keep what it has not sent", () => {
    const [server, a, b] = pages("one", "two");
    b.in({ type: "typed", cell: "c1", text: "TWO" });
    a.in({ type: "typed", cell: "c0", text: "ONE" });
    a.finish();
    b.seen = server.events.length;
    b.in({ type: "events", events: [event("j.9", { event: { case: "gap", value: true } })] });
    expect(b.todo.map((e) => e.type)).toContain("read");
    b.finish();
    expect(b.state.view.order.map((id) => b.text(id))).toEqual(["ONE", "TWO"]);
    expect(server.doc.cells.get("c1")?.source).toBe("TWO");
  });
});

describe("a page that crashed", () => {
  it.each([true, false])("gives its texts and its new cells to the next, once (what was sent arrived: %s)", (arrives) => {
    const [server, a] = pages("one\ntwo", "x");
    a.in({ type: "typed", cell: "c0", text: "one\nTWO" });
    a.in({ type: "edit", edits: [{ kind: "insert", after: "c0", cell: { ...newCell("code", ""), id: "n" } }] });
    a.in({ type: "typed", cell: "n", text: "new" });
    for (let i = 0; i < 3; i++) {
      a.crash(arrives && i === 0);
      expect(a.state.view.order.map((id) => a.text(id))).toEqual(["one\nTWO", "new", "x"]);
    }
    a.finish();
    expect(server.doc.order.map((id) => server.doc.cells.get(id)?.source)).toEqual(["one\nTWO", "new", "x"]);
    expect(settled(a.state)).toBe(true);
    expect(toKeep(a.state)).toEqual([]);
  });

  it("does not overwrite what others did meanwhile", () => {
    const [server, a, b] = pages("one\ntwo\nthree", "x = 1", "gone");
    a.in({ type: "typed", cell: "c0", text: "one\ntwo\nTHREE" });
    a.in({ type: "typed", cell: "c1", text: "x = 2" });
    a.in({ type: "typed", cell: "c2", text: "gone and more" });
    b.in({ type: "typed", cell: "c0", text: "ONE\ntwo\nthree" });
    b.in({ type: "typed", cell: "c1", text: "x = 3" });
    b.in({ type: "edit", edits: [{ kind: "remove", cell: "c2" }] });
    b.finish();
    a.crash();
    a.crash();
    a.finish();
    expect(server.doc.order.map((id) => server.doc.cells.get(id)?.source)).toEqual(["ONE\ntwo\nTHREE", "x = 3", "gone and more"]);
    expect(a.state.drafts.get("c1")).toMatchObject({ text: "x = 2", theirs: "x = 3" });
  });

  it("says nothing when everything had arrived", () => {
    const [, a] = pages("x");
    a.in({ type: "typed", cell: "c0", text: "y" });
    a.in({ type: "flush" });
    a.crash();
    expect(a.todo).toEqual([]);
    expect(settled(a.state)).toBe(true);
  });
});

/** A generator of numbers that gives the same for the same seed. */
function numbers(seed: number) {
  let x = seed * 2654435761 + 1;
  return (n: number) => {
    x = (Math.imul(x ^ (x >>> 15), 0x2c1b3c6d) + 0x297a2d39) | 0;
    return ((x >>> 8) & 0xffffff) % n;
  };
}

describe("any order of typing, edits, answers, events and losses", () => {
  it.each(Array.from({ length: 120 }, (_, i) => i))("ends with all pages alike and every word kept (%i)", (seed) => {
    const pick = numbers(seed);
    const server = new NotebookServer(document("l1\nl2\nl3\nl4\nl5\nl6", "m1\nm2\nm3", "n"));
    const all = [new Page("a", server), new Page("b", server), new Page("c", server)];
    const words = new Set<string>();
    for (let i = 0; i < 150; i++) {
      const page = all[pick(3)] as Page;
      const ids = page.state.view.order;
      const id = ids[pick(Math.max(1, ids.length))] ?? "";
      switch (pick(10)) {
        case 0:
        case 1:
        case 2: {
          const text = page.text(id);
          if (text === undefined || page.state.drafts.get(id)?.theirs != null) break;
          const parts = text.split("\n");
          const word = `w${seed}_${i}`;
          words.add(word);
          parts.splice(pick(parts.length + 1), 0, word);
          page.in({ type: "typed", cell: id, text: parts.join("\n") });
          break;
        }
        case 3: {
          const edits: Edit[] = [{ kind: "insert", after: id, cell: { ...newCell("code", ""), id: `new${i}` } }];
          if (pick(2) === 0) edits.push({ kind: "move", cell: id, after: ids[pick(ids.length)] ?? "" });
          page.in({ type: "edit", edits });
          break;
        }
        case 4:
          page.hear(1 + pick(3));
          break;
        case 5:
          page.in({ type: "loaded", doc: { ...server.doc, stale: false } });
          page.seen = server.events.length;
          break;
        case 6:
          page.work(pick(3) > 0);
          break;
        case 7:
          page.crash(pick(2) === 0);
          break;
        default:
          page.work();
      }
    }
    for (let round = 0; round < 30; round++) {
      for (const page of all) {
        page.finish();
        for (const id of conflicts(page.state)) {
          const d = page.state.drafts.get(id);
          page.in({ type: "resolved", cell: id, text: `${d?.theirs}\n${d?.text}` });
        }
      }
    }
    const texts = (p: Page) => p.state.view.order.map((id) => [id, p.text(id)]);
    for (const page of all) {
      expect(settled(page.state)).toBe(true);
      expect(page.state.acked).toEqual([]);
      expect(texts(page)).toEqual(server.doc.order.map((id) => [id, server.doc.cells.get(id)?.source]));
    }
    const whole = server.doc.order.map((id) => server.doc.cells.get(id)?.source).join("\n");
    for (const word of words) expect(whole).toContain(word);
  });
});
