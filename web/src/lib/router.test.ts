import { expect, it } from "vitest";
import { match } from "./router";

it("takes values out of paths", () => {
  expect(match("/boxes/:id", "/boxes/b1")).toEqual({ id: "b1" });
  expect(match("/boxes/:id/*", "/boxes/b1/files/x")).toEqual({ id: "b1", "*": "files/x" });
  expect(match("/boxes/:id/*", "/boxes/b1")).toEqual({ id: "b1", "*": "" });
  expect(match("/boxes/:id", "/boxes/a%20b")).toEqual({ id: "a b" });
  for (const path of ["/boxes", "/boxes/b1/files", "/other/b1", "/boxes/%zz"]) expect(match("/boxes/:id", path)).toBeNull();
});
