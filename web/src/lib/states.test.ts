import { describe, expect, it } from "vitest";
import { State } from "../gen/carrel/v1/common_pb";
import { stateText, verbs, verbsOf } from "./states";

const all = Object.values(State).filter((s): s is State => typeof s === "number");

describe("states and what may be asked in them", () => {
  it("has a word for every state, and none twice", () => {
    const labels = all.map((s) => stateText(s).label);
    expect(new Set(labels).size).toBe(labels.length);
    expect(stateText(99 as State).label).toBe("Unknown");
  });
  it("lets every box be deleted that is not on its way there", () => {
    for (const state of all) expect(verbsOf({ state }).includes("delete")).toBe(![State.UNSPECIFIED, State.DELETING, State.DELETED].includes(state));
  });
  it("says what every verb does to memory and files", () => {
    for (const verb of Object.values(verbs)) {
      expect(verb.effect).toMatch(/file/i);
      expect(verb.effect).toMatch(/memory/i);
    }
  });
});
