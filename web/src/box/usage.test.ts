import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { BoxUsageSchema } from "../gen/carrel/v1/notebooks_pb";
import { cpuBetween } from "./usage";

const at = (ms: number, cpu: number) => create(BoxUsageSchema, { time: timestampFromMs(ms), cpuMillis: BigInt(cpu) });

describe("the use of processors", () => {
  it("is what was added between two figures", () => {
    expect(cpuBetween(at(1000, 500), at(3000, 3500))).toBe(1500);
  });
  it("is not known from one figure", () => {
    expect(cpuBetween(null, at(1000, 500))).toBeUndefined();
  });
  it("is not known when the box began anew or its clock stood", () => {
    expect(cpuBetween(at(1000, 500), at(3000, 20))).toBeUndefined();
    expect(cpuBetween(at(1000, 500), at(1000, 600))).toBeUndefined();
  });
});
