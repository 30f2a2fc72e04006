import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { delay } from "../lib/backoff";
import { reached, standing } from "./cursor";
import { StreamEventSchema } from "./proto";
import { type Effect, type Input, newSession, type Session, silence, step } from "./session";

type EventInit = MessageInitShape<typeof StreamEventSchema>;

/** A session with a clock, and what it did. */
class Bench {
  session: Session = step(newSession(), { type: "live", live: true }, { now: 0, random: 0 }).session;
  now = 0;
  did: Effect[] = [];

  in(input: Input): Effect[] {
    const { session, effects } = step(this.session, input, { now: this.now, random: 0 });
    this.session = session;
    this.did.push(...effects);
    return effects;
  }
  event(init: EventInit) {
    return this.in({ type: "event", event: create(StreamEventSchema, init) });
  }
  output(channel: number, cursor: string, text: string) {
    return this.event({
      channel,
      event: { case: "notebook", value: { cursor, event: { case: "output", value: { output_type: "stream", name: "stdout", text } } } },
    });
  }
  /** The texts of the outputs that a watch was told. */
  told(id: number): string[] {
    return this.did.flatMap((e) =>
      e.type === "tell" && e.id === id && e.news.kind === "event" && e.news.event.case === "notebook" && e.news.event.value.event.case === "output"
        ? [String(e.news.event.value.event.value.text)]
        : [],
    );
  }
  sent(effects: Effect[]) {
    return effects.flatMap((e) => (e.type === "send" ? [e.request] : []));
  }
  kinds(effects: Effect[]) {
    return effects.map((e) => (e.type === "tell" ? `tell:${e.news.kind}` : e.type));
  }
}

const notebook = (after: string): Extract<Input, { type: "watch" }> => ({
  type: "watch",
  id: 1,
  want: { kind: "notebooks", path: "a.ipynb", after },
});

describe("a watch of a notebook", () => {
  it("connects when it is the first, and asks from its cursor", () => {
    const b = new Bench();
    expect(b.kinds(b.in(notebook("j.5")))).toEqual(["connect", "timer"]);
    expect(b.sent(b.in({ type: "opened" }))).toEqual([
      { channel: 1, request: { case: "notebooks", value: { path: "a.ipynb", after: "j.5" } } },
    ]);
  });

  it("goes on at the last event after a break, with none twice and none missed", () => {
    const b = new Bench();
    b.in(notebook("j.5"));
    b.in({ type: "opened" });
    b.output(1, "j.6", "six");
    b.output(1, "j.7", "seven");
    b.in({ type: "closed", code: 1006, reason: "" });
    b.now += 1000;
    expect(b.kinds(b.in({ type: "timer" }))).toContain("connect");
    expect(b.sent(b.in({ type: "opened" }))).toEqual([
      { channel: 1, request: { case: "notebooks", value: { path: "a.ipynb", after: "j.7" } } },
    ]);
    // A server that repeats what was seen is not believed.
    b.output(1, "j.7", "seven again");
    b.output(1, "j.8", "eight");
    expect(b.told(1)).toEqual(["six", "seven", "eight"]);
  });

  it("tells of a gap, passes on what follows, and goes on from the cursor it is given", () => {
    const b = new Bench();
    b.in(notebook("j.5"));
    b.in({ type: "opened" });
    const gap = b.event({ channel: 1, event: { case: "notebook", value: { cursor: "j.90", event: { case: "gap", value: true } } } });
    expect(b.kinds(gap)).toEqual(["tell:gap"]);
    b.output(1, "j.91", "after the gap");
    expect(b.told(1)).toEqual(["after the gap"]);
    expect(b.sent(b.in({ type: "restart", id: 1, after: "j.95" }))).toEqual([
      { channel: 1, request: { case: "close", value: true } },
      { channel: 2, request: { case: "notebooks", value: { path: "a.ipynb", after: "j.95" } } },
    ]);
    // The left channel has nothing more to say.
    b.output(1, "j.96", "late");
    b.output(2, "j.96", "new");
    expect(b.told(1)).toEqual(["after the gap", "new"]);
  });

  it("takes another journal for a gap", () => {
    const b = new Bench();
    b.in(notebook("old.500"));
    b.in({ type: "opened" });
    expect(b.kinds(b.output(1, "new.1", "x"))).toEqual(["tell:gap", "tell:event"]);
  });

  it("passes on events of the moment, which have no cursor", () => {
    const b = new Bench();
    b.in(notebook("j.5"));
    b.in({ type: "opened" });
    b.output(1, "", "now");
    b.output(1, "", "now");
    expect(b.told(1)).toEqual(["now", "now"]);
  });
});

describe("two tabs on one stream", () => {
  it("keep their own cursors and channels", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    b.in({ type: "opened" });
    b.in({ type: "watch", id: 2, want: { kind: "notebooks", path: "b.ipynb", after: "j.3" } });
    b.in({ type: "watch", id: 3, want: { kind: "terminals" } });
    b.in({ type: "watch", id: 4, want: { kind: "channel" } });
    b.output(1, "j.2", "of a");
    b.output(2, "j.4", "of b");
    // Terminals are numbered apart: channel 1 of the terminals is not channel 1 of the rest.
    const told = b.event({ event: { case: "terminal", value: { channel: 1, event: { case: "live", value: true } } } });
    expect(told).toMatchObject([{ type: "tell", id: 3, news: { kind: "event" } }]);
    expect(b.event({ channel: 4, event: { case: "usage", value: {} } })).toMatchObject([{ type: "tell", id: 4 }]);
    expect(b.event({ channel: 4, event: { case: "error", value: { reason: "none" } } })).toMatchObject([{ type: "tell", id: 4, news: { kind: "ended" } }]);
    expect(b.told(1)).toEqual(["of a"]);
    expect(b.told(2)).toEqual(["of b"]);

    const broke = b.in({ type: "closed", code: 1013, reason: "" });
    expect(b.kinds(broke).filter((k) => k === "tell:lost")).toHaveLength(3);
    b.now += 1000;
    b.in({ type: "timer" });
    const again = b.in({ type: "opened" });
    expect(b.sent(again)).toEqual([
      { channel: 1, request: { case: "notebooks", value: { path: "a.ipynb", after: "j.2" } } },
      { channel: 2, request: { case: "notebooks", value: { path: "b.ipynb", after: "j.4" } } },
    ]);
    expect(again).toContainEqual({ type: "tell", id: 3, news: { kind: "live" } });
    expect(again).toContainEqual({ type: "ask", id: 4, channel: 4 });
  });

  it("end the connection with the last of them", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    b.in({ type: "opened" });
    expect(b.kinds(b.in({ type: "unwatch", id: 1 }))).toEqual(["send", "disconnect"]);
    expect(b.session.link.phase).toBe("idle");
  });

  it("have no connection while the box does not run, and go on when it does", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    b.in({ type: "opened" });
    b.output(1, "j.2", "x");
    expect(b.kinds(b.in({ type: "live", live: false }))).toEqual(["disconnect", "tell:lost"]);
    expect(b.in({ type: "timer" })).toEqual([]);
    expect(b.in({ type: "watch", id: 2, want: { kind: "channel" } })).toEqual([]);
    expect(b.kinds(b.in({ type: "live", live: true }))).toContain("connect");
    expect(b.sent(b.in({ type: "opened" }))).toMatchObject([{ request: { value: { after: "j.2" } } }]);
  });
});

describe("a broken connection", () => {
  it("is tried again more slowly each time, and at once when the page is seen", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    const waits: number[] = [];
    for (let i = 0; i < 4; i++) {
      const effects = b.in({ type: "closed", code: 1006, reason: "" });
      const timer = effects.find((e) => e.type === "timer");
      waits.push(timer?.type === "timer" ? timer.ms : 0);
      b.now += 60_000;
      b.in({ type: "timer" });
    }
    expect(waits).toEqual([300, 600, 1200, 2400]);
    b.in({ type: "closed", code: 1006, reason: "" });
    expect(b.kinds(b.in({ type: "woke" }))).toContain("connect");
  });

  it("is one that says nothing for too long", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    b.in({ type: "opened" });
    b.now += silence - 1;
    expect(b.kinds(b.in({ type: "timer" }))).toEqual(["timer"]);
    b.now += 1;
    expect(b.kinds(b.in({ type: "timer" }))).toEqual(["disconnect", "tell:lost", "timer"]);
    expect(b.session.link.phase).toBe("waiting");
  });

  it("is found at once by a page that slept", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    b.in({ type: "opened" });
    b.now += 30_000;
    expect(b.kinds(b.in({ type: "woke" }))).toEqual(["disconnect", "tell:lost", "connect", "timer"]);
  });

  it("is not tried again when the right was taken away, until somebody asks", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    b.in({ type: "opened" });
    expect(b.kinds(b.in({ type: "closed", code: 4403, reason: "revoked" }))).toEqual(["tell:lost"]);
    expect(b.session.link).toMatchObject({ phase: "refused", message: "revoked" });
    expect(b.in({ type: "timer" })).toEqual([]);
    expect(b.in({ type: "woke" })).toEqual([]);
    expect(b.kinds(b.in({ type: "retry" }))).toContain("connect");
  });

  it("asks who one is when the sign-in has ended", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    b.in({ type: "opened" });
    expect(b.kinds(b.in({ type: "closed", code: 4401, reason: "" }))).toContain("sign-in");
    expect(b.session.link.phase).toBe("waiting");
    // One that ended while it was of use is only asked for again.
    b.in({ type: "retry" });
    b.in({ type: "opened" });
    b.output(1, "j.2", "x");
    expect(b.kinds(b.in({ type: "closed", code: 4401, reason: "" }))).not.toContain("sign-in");
  });

  it("that opens and is cut at once does not become a storm", () => {
    const b = new Bench();
    b.in(notebook("j.1"));
    let last = 0;
    for (let i = 0; i < 6; i++) {
      b.in({ type: "opened" });
      const timer = b.in({ type: "closed", code: 1013, reason: "" }).findLast((e) => e.type === "timer");
      last = timer?.type === "timer" ? timer.ms : 0;
      b.now += 60_000;
      b.in({ type: "timer" });
    }
    expect(last).toBeGreaterThan(5000);
  });
});

describe("cursors", () => {
  it("are compared within their journal alone", () => {
    expect(standing("j.10", "j.9")).toBe("new");
    expect(standing("j.9", "j.9")).toBe("seen");
    expect(standing("j.9", "j.10")).toBe("seen");
    expect(standing("k.9", "j.10")).toBe("other-journal");
    expect(standing("", "j.10")).toBe("unkept");
    expect(standing("j.1", "0")).toBe("new");
    expect(reached("j.10", "j.9")).toBe(true);
    expect(reached("j.8", "j.9")).toBe(false);
    expect(reached("k.10", "j.9")).toBe(false);
  });
  it("may be larger than what a double holds", () => {
    expect(standing("j.9007199254740993", "j.9007199254740992")).toBe("new");
  });
});

describe("the delay", () => {
  it("is at most 30 s, at least half of its step, and long for a page that nobody sees", () => {
    expect(delay(0, 0, false)).toBe(300);
    expect(delay(0, 0.999, false)).toBeGreaterThanOrEqual(150);
    expect(delay(50, 0, false)).toBe(30_000);
    expect(delay(0, 0, true)).toBe(15_000);
  });
});
