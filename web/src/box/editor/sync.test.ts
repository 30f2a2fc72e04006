import { describe, expect, it } from "vitest";
import { type Effect, type Input, type Sync, isDirty, newSync, step } from "./sync";

/** Runs inputs and gives the last state with the effects of the last input. */
function run(...inputs: Input[]): [Sync, Effect["type"][]] {
  let s = newSync(true);
  let effects: Effect[] = [];
  for (const input of inputs) [s, effects] = step(s, input);
  return [s, effects.map((e) => e.type)];
}
const opened: Input = { type: "opened", etag: "1", dirty: false };
const edit: Input = { type: "edit" };
const save: Input = { type: "save" };

describe("an open file", () => {
  it("is saved after an edit on what it stands on", () => {
    expect(run(opened, edit)[1]).toEqual(["keep", "soon"]);
    const [s, effects] = step(run(opened, edit)[0], save);
    expect([s.phase, effects]).toEqual(["saving", [{ type: "put", etag: "1" }]]);
    const [after, then] = step(s, { type: "saved", etag: "2" });
    expect(isDirty(after)).toBe(false);
    expect(after.etag).toBe("2");
    expect(then).toEqual([{ type: "forget" }]); // nothing is left behind in the browser
  });
  it("is not saved when nothing was typed", () => {
    expect(run(opened, save)[1]).toEqual([]);
  });
  it("is saved again when something was typed meanwhile, and what is kept stays", () => {
    const [s, effects] = run(opened, edit, save, edit, { type: "saved", etag: "2" });
    expect([isDirty(s), effects]).toEqual([true, ["soon"]]);
  });
  it("is read again, clean, when it changed on the disk", () => {
    expect(run(opened, { type: "event" })[1]).toEqual(["stat"]);
    expect(run(opened, { type: "event" }, { type: "seen", etag: "1" })[1]).toEqual([]);
    expect(run(opened, { type: "event" }, { type: "seen", etag: "2" })[1]).toEqual(["read"]);
    const [s, effects] = run(opened, { type: "seen", etag: "2" }, { type: "read", etag: "2", as: "other" });
    expect([s.phase, s.etag, effects]).toEqual(["idle", "2", ["show"]]);
  });
  it("is a conflict when it changed on the disk and here, and nothing is written or shown over until its user says", () => {
    for (const inputs of [
      [opened, edit, { type: "seen", etag: "2" }, { type: "read", etag: "2", as: "other" }],
      [opened, edit, save, { type: "refused" }, { type: "seen", etag: "2" }, { type: "read", etag: "2", as: "other" }],
    ] as Input[][]) {
      const [s, effects] = run(...inputs);
      expect([s.phase, effects]).toEqual(["conflict", ["keep"]]);
      expect(step(s, save)[1]).toEqual([]);
      expect(step(s, edit)[1]).toEqual([{ type: "keep" }]);
    }
  });
  const conflict: Input[] = [opened, edit, { type: "seen", etag: "2" }, { type: "read", etag: "2", as: "other" }];
  it("keeps mine over what was seen and over nothing newer", () => {
    const s = run(...conflict)[0];
    expect(step(s, { type: "resolve", how: "mine" })[1]).toEqual([{ type: "put", etag: "2" }]);
    expect(step(s, { type: "resolve", how: "merged" })[1]).toEqual([{ type: "put", etag: "2" }]);
  });
  it("takes theirs", () => {
    const [s, effects] = step(run(...conflict)[0], { type: "resolve", how: "theirs" });
    expect([isDirty(s), s.etag, effects.map((e) => e.type)]).toEqual([false, "2", ["show", "forget"]]);
  });
  it("looks again when it changes once more in a conflict, and not when it does not", () => {
    expect(step(run(...conflict)[0], { type: "seen", etag: "3" })[1]).toEqual([{ type: "read" }]);
    expect(step(run(...conflict)[0], { type: "seen", etag: "2" })[1]).toEqual([]);
  });
  it("is no conflict when the disk has what is here, or what it stands on", () => {
    const changed: Input[] = [opened, edit, { type: "seen", etag: "2" }];
    expect(isDirty(run(...changed, { type: "read", etag: "2", as: "mine" })[0])).toBe(false);
    const [s, effects] = run(...changed, { type: "read", etag: "2", as: "base" });
    expect([s.phase, s.etag, isDirty(s), effects]).toEqual(["idle", "2", true, ["soon"]]);
  });
  it("does not take its own saving for somebody else's", () => {
    const [s, effects] = run(opened, edit, save, { type: "event" }, { type: "saved", etag: "2" });
    expect(effects).toEqual(["forget", "stat"]);
    expect(step(s, { type: "seen", etag: "2" })[1]).toEqual([]);
  });
  it("says why it is not saved, tries again, and rarely where it will not pass", () => {
    const [s, effects] = run(opened, edit, save, { type: "failed", message: "The disk is full.", passing: false });
    expect([s.phase, s.words, effects]).toEqual(["unsaved", "The disk is full.", ["later"]]);
    expect(step(s, save)[1]).toEqual([{ type: "put", etag: "1" }]);
  });
  it("waits for a box that does not run, and looks before it saves when that is back", () => {
    const [s] = run(opened, { type: "live", live: false }, edit);
    expect(s.phase).toBe("unsaved");
    expect(step(s, save)[1]).toEqual([]);
    const [back, effects] = step(s, { type: "live", live: true });
    expect(effects.map((e) => e.type)).toEqual(["stat", "soon"]);
    expect(step(back, save)[1]).toEqual([{ type: "put", etag: "1" }]);
  });
  it("that is gone is made again only when its user says, and only where nothing is", () => {
    const [s] = run(opened, { type: "seen", etag: null });
    expect(s.phase).toBe("gone");
    expect(step(s, save)[1]).toEqual([]);
    expect(step(s, { type: "resolve", how: "mine" })[1]).toEqual([{ type: "put", etag: "none" }]);
    // Somebody else made it again: it is read.
    expect(step(s, { type: "seen", etag: "5" })[1]).toEqual([{ type: "read" }]);
  });
  it("comes back from what was kept", () => {
    const [s, effects] = run({ type: "opened", etag: "1", dirty: true });
    expect([isDirty(s), effects]).toEqual([true, ["soon"]]);
  });
});
