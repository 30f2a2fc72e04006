import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { isPassing, isSignedOut, message, sentence } from "./errors";

describe("what people read when something went wrong", () => {
  it("is the server's own words, as a sentence", () => {
    expect(message(new ConnectError("there is no box \"x\" (or you may not see it)", Code.NotFound))).toBe('There is no box "x" (or you may not see it).');
    expect(sentence("`carrel show x` says why")).toBe("`carrel show x` says why.");
  });
  it("says that Carrel cannot be reached, however the browser puts it", () => {
    for (const err of [new TypeError("Failed to fetch"), ConnectError.from(new TypeError("NetworkError when attempting to fetch resource.")), new ConnectError("Load failed", Code.Unknown)]) {
      expect(message(err)).toMatch(/cannot be reached/);
      expect(isPassing(err)).toBe(true);
    }
  });
  it("is never empty", () => {
    for (const err of [undefined, null, {}, new Error(""), new ConnectError("", Code.Internal)]) expect(message(err)).not.toBe("");
  });
  it("knows that nobody is signed in", () => {
    expect(isSignedOut(new ConnectError("x", Code.Unauthenticated))).toBe(true);
    expect(isSignedOut(new ConnectError("x", Code.PermissionDenied))).toBe(false);
  });
});
