import { expect, test } from "vitest";
import { pointsBefore, unitsBefore } from "./places";

test("places count code points for kernels and UTF-16 units here", () => {
  const text = "é = '😀'; a";
  for (const [points, units] of [
    [0, 0],
    [5, 5],
    [6, 7],
    [10, 11],
  ] as const) {
    expect(pointsBefore(text, units)).toBe(points);
    expect(unitsBefore(text, points)).toBe(units);
  }
  expect(pointsBefore(text, 6)).toBe(5);
  expect(unitsBefore(text, 100)).toBe(text.length);
  expect(pointsBefore("\ud83d", 1)).toBe(1);
});
