import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { expect, it } from "vitest";
import { merge } from "../box/events";
import { BoxSchema, EventSchema } from "../gen/carrel/v1/boxes_pb";
import { State } from "../gen/carrel/v1/common_pb";
import { put } from "../lib/boxes";
import { WhoAmIResponseSchema } from "../gen/carrel/v1/platform_pb";
import { sessionOf } from "../lib/session";
import { boxFits } from "./boxes";
import { nameProblem } from "./fields";
import { stepsOf } from "./steps";

it("finds boxes by name, template, state and label", () => {
  const box = create(BoxSchema, { name: "dev", template: "python", state: State.PAUSED, labels: { team: "ml" } });
  for (const text of ["", "DE", "python paused", "team=ml", " dev  team "]) expect(boxFits(box, text)).toBe(true);
  for (const text of ["prod", "dev running"]) expect(boxFits(box, text)).toBe(false);
});

it("keeps boxes as they change, and forgets the deleted", () => {
  const a = create(BoxSchema, { id: "a", state: State.RUNNING });
  const before = put(undefined, [a]);
  const after = put(before, [create(BoxSchema, { id: "a", state: State.PAUSED })]);
  expect([before.get("a")!.state, after.get("a")!.state]).toEqual([State.RUNNING, State.PAUSED]);
  expect(put(after, [create(BoxSchema, { id: "a", state: State.DELETED })]).size).toBe(0);
});

it("says what is wrong with a name before it is sent", () => {
  for (const name of ["", "a", "my-box-2", "a".repeat(40)]) expect(nameProblem(name, false)).toBeUndefined();
  for (const name of ["A", "2a", "-a", "a-", "a b", "ä", "a".repeat(41)]) expect(nameProblem(name, false)).toMatch(/Lower case/);
  expect(nameProblem("dev", true)).toMatch(/already/);
});

it("tells each step of a start with its time, and the one that goes on until now", () => {
  const phases = [
    { phase: "assigned", time: timestampFromMs(1200) },
    { phase: "starting", time: timestampFromMs(1500) },
  ];
  const box = create(BoxSchema, { state: State.PROVISIONING, phases });
  expect(stepsOf(box, 1000, 2500).map((s) => [s.name, s.ms, s.done])).toEqual([
    ["Finding a machine", 200, true],
    ["Handing it over", 300, true],
    ["Preparing and starting", 1000, false],
  ]);
  const ready = create(BoxSchema, { state: State.RUNNING, phases: [...phases, { phase: "running", time: timestampFromMs(1900) }] });
  expect(stepsOf(ready, 1000, 9999).map((s) => [s.name, s.ms, s.done]).slice(2)).toEqual([
    ["Preparing and starting", 400, true],
    ["Ready", 0, true],
  ]);
});

it("puts pages of events together, each once and the newest first", () => {
  const event = (id: string, ms: number) => create(EventSchema, { id, time: timestampFromMs(ms) });
  const [a, b, c] = [event("a", 1000), event("b", 2000), event("c", 2500)];
  expect(merge([b, a], [c, b]).map((e) => e.id)).toEqual(["c", "b", "a"]);
});

it("looks at the chosen organisation, and at none that its user is not in", () => {
  const who = create(WhoAmIResponseSchema, {
    user: { id: "u", name: "ann" },
    orgs: [{ id: "sys" }, { id: "o1" }, { id: "o2" }],
    memberships: [
      { orgId: "o1", role: "viewer" },
      { orgId: "o2", role: "owner" },
    ],
  });
  const at = (chosen: string) => sessionOf(who, chosen, () => {})!;
  expect([at("").org.id, at("o2").org.id, at("sys").org.id]).toEqual(["o1", "o2", "o1"]);
  expect([at("o1").mayChange, at("o2").mayChange]).toEqual([false, true]);
});
