import { expect, it } from "vitest";
import { type Command, search } from "./commands";

const command = (title: string, words = "", group = "Go to"): Command => ({ id: title, title, words, group, run: () => {} });
const list = [command("Pause dev"), command("Your boxes"), command("Machines", "nodes operator"), command("dev", "python box open", "Boxes"), command("Keyboard shortcuts")];
const titles = (text: string) => search(list, text).map((c) => c.title);

it("finds commands by the beginnings of words first, and needs every word", () => {
  expect(titles("dev")).toEqual(["dev", "Pause dev"]);
  expect(titles("short key")).toEqual(["Keyboard shortcuts"]);
  expect(titles("NODES")).toEqual(["Machines"]);
  expect(titles("python dev")).toEqual(["dev"]);
  expect(titles("dev nothing")).toEqual([]);
  expect(titles("  ")).toHaveLength(list.length);
});
