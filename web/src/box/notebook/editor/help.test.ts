import { closeCompletion, currentCompletions } from "@codemirror/autocomplete";
import { EditorState } from "@codemirror/state";
import { EditorView, runScopeHandlers } from "@codemirror/view";
import { afterEach, expect, test, vi } from "vitest";
import { type CodeHelp, closeHelp, codeHelp, type Completions, toResult } from "./help";

const found = (start: number, end: number, ...texts: string[]): Completions => ({ start, end, more: false, items: texts.map((text) => ({ text, type: "", signature: "" })) });

test("completions stand where the kernel said, in its order, without what cannot be seen", () => {
  const result = toResult("'😀'; pl", found(5, 7, "plum", "plain", "pl\u202eevil", "pl\u0007"));
  expect([result?.from, result?.to]).toEqual([6, 8]);
  expect(result?.options.map((o) => o.label)).toEqual(["plum", "plain"]);
  expect((result?.options[0]?.sortText ?? "") < (result?.options[1]?.sortText ?? "")).toBe(true);
  expect(toResult("x", found(0, 1))).toBeNull();
});

const views: EditorView[] = [];
afterEach(() => {
  for (const v of views.splice(0)) v.destroy();
});

function editor(doc: string, help: Partial<CodeHelp>): EditorView {
  const view = new EditorView({
    parent: document.body,
    state: EditorState.create({
      doc,
      selection: { anchor: doc.length },
      extensions: [codeHelp({ complete: () => Promise.reject(new Error("not asked for")), inspect: () => Promise.resolve(""), refusal: (err) => `refused: ${String(err)}`, ...help })],
    }),
  });
  views.push(view);

  return view;
}
const press = (view: EditorView, key: string, shiftKey = false) => runScopeHandlers(view, new KeyboardEvent("keydown", { key, shiftKey }), "editor");

test("Tab indents in the indent and asks the kernel behind code", async () => {
  const complete = vi.fn(() => Promise.resolve(found(0, 2, "plum")));
  const view = editor("", { complete });
  press(view, "Tab");
  expect(view.state.doc.toString()).not.toBe("");
  expect(complete).not.toHaveBeenCalled();
  view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: "pl" }, selection: { anchor: 2 } });
  press(view, "Tab");
  await vi.waitFor(() => expect(currentCompletions(view.state).map((c) => c.label)).toEqual(["plum"]));
  expect(complete).toHaveBeenCalledWith("pl", 2, expect.anything());
  closeCompletion(view);
});

test("Shift-Tab shows what the kernel knows as text, and Escape takes it away", async () => {
  const view = editor("plum", { inspect: () => Promise.resolve("\u001b[31mSignature:\u001b[0m <img src=x onerror=alert(1)>") });
  press(view, "Tab", true);
  await vi.waitFor(() => expect(document.querySelector(".nb-note.text")?.textContent).toContain("Signature: <img src=x"));
  expect(document.querySelector(".nb-note img")).toBeNull();
  expect(closeHelp(view)).toBe(true);
  expect(document.querySelector(".nb-note")).toBeNull();
  expect(closeHelp(view)).toBe(false);
});

test("a refusal is said beside the caret, and goes with the next letter", async () => {
  const view = editor("plum", { inspect: () => Promise.reject(new Error("busy")) });
  press(view, "Tab", true);
  await vi.waitFor(() => expect(document.querySelector(".nb-note.hint")?.textContent).toBe("refused: Error: busy"));
  view.dispatch({ changes: { from: 4, insert: "s" } });
  expect(document.querySelector(".nb-note")).toBeNull();
});
