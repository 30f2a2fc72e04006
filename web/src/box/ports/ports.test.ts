import { describe, expect, it } from "vitest";
import { rows } from "./index";

describe("the list of ports", () => {
  it("has those that listen and those opened to others, by number", () => {
    const listeners = [{ port: 8888, process: "jupyter", url: "http://8888.x" }, { port: 80, process: "nginx", url: "http://80.x" }];
    const ports = [{ port: 8888, visibility: "org" }, { port: 3000, visibility: "public" }, { port: 5000, visibility: "private" }];
    expect(rows(listeners, ports)).toEqual([
      { port: 80, process: "nginx", url: "http://80.x", listening: true, visibility: "private" },
      { port: 3000, process: "", url: "", listening: false, visibility: "public" },
      { port: 8888, process: "jupyter", url: "http://8888.x", listening: true, visibility: "org" },
    ]);
  });
  it("takes a visibility that it does not know for private", () => {
    expect(rows([{ port: 1, process: "", url: "" }], [{ port: 1, visibility: "galaxy" }])[0]?.visibility).toBe("private");
  });
});
