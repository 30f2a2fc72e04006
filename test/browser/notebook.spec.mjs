// The notebook, from the first cell to a phone.
import assert from "node:assert/strict";
import { after, before } from "node:test";
import { accessible, api, dropBox, makeBox, phone, scheme, shot, signIn, token, until, url, walk } from "./harness.mjs";

// Little of the machine, so that it fits beside others.
const small = { resources: { homeBytes: String(1 << 30), rootBytes: String(1 << 30), memoryBytes: String(1 << 30) } };
const name = `notebook-${Date.now().toString(36)}`;
let box;
before(async () => {
  box = await makeBox(name, { template: "python", ...small });
});
after(() => dropBox(name));

const path = (file) => `/boxes/${box.id}/notebook?path=${encodeURIComponent(file)}`;
const cell = (page, n) => page.locator(".nb-cell").nth(n - 1);
const editor = (page, n) => cell(page, n).locator(".cm-content");
const opened = (page) => page.locator(".nb-cell").first().waitFor();

async function put(file, cells) {
  const body = JSON.stringify({ nbformat: 4, nbformat_minor: 5, metadata: {}, cells: cells.map((source, i) => ({ id: `c${i + 1}`, cell_type: "code", source, metadata: {}, execution_count: null, outputs: [] })) });
  const resp = await fetch(`${url}/v1/boxes/${box.id}/fs/~/${file}`, { method: "PUT", headers: { Authorization: `Bearer ${token}` }, body });
  assert.ok(resp.ok, await resp.text());
}

async function onDisk(file) {
  const resp = await fetch(`${url}/v1/boxes/${box.id}/fs/~/${file}`, { headers: { Authorization: `Bearer ${token}` } });
  assert.ok(resp.ok);
  return resp.json();
}
const text = (c) => c.outputs.map((o) => [o.text ?? []].flat().join("")).join("");

walk("a new notebook and its first plot", async ({ page }) => {
  await signIn(page, { path: `/boxes/${box.id}/notebook` });
  await page.getByRole("button", { name: "New notebook", exact: true }).waitFor();
  await accessible(page);
  await shot(page, "notebook-start");
  const begun = Date.now();
  await page.getByRole("button", { name: "New notebook", exact: true }).click();
  // One writes at once.
  await page.locator(".nb-cell .cm-focused").waitFor();
  await page.keyboard.insertText("import numpy as np\nimport matplotlib.pyplot as plt\nx = np.linspace(0, 10, 200)\nplt.plot(x, np.sin(x))\nprint('first', 'output')");
  await page.keyboard.press("Shift+Enter");
  await page.getByText("first output", { exact: true }).waitFor();
  console.log(`# new notebook → first output: ${Date.now() - begun} ms`);
  await cell(page, 1).locator("img.nb-picture").waitFor();
  await cell(page, 1).getByText("[1]").waitFor();
  await page.getByRole("status").getByText("Saved").waitFor();
  // Markdown, a formula, a table, an error.
  await editor(page, 2).click();
  await page.keyboard.insertText("import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': [0.5, 0.25]})");
  await page.keyboard.press("Shift+Enter");
  await cell(page, 2).locator("table.dataframe").waitFor();
  await editor(page, 3).click();
  await page.keyboard.insertText("1 / 0");
  await page.keyboard.press("Shift+Enter");
  await cell(page, 3).getByText("ZeroDivisionError: division by zero").waitFor();
  await page.keyboard.press("Escape");
  await page.keyboard.press("m");
  await page.keyboard.press("Enter");
  await page.locator(".nb-cell.markdown .cm-content").waitFor();
  await page.keyboard.insertText("# Waves\n\nA sine, $\\sin(x) = \\sum_n \\frac{(-1)^n x^{2n+1}}{(2n+1)!}$, and **nothing** else.\n\n- [x] plotted\n- [ ] published\n- plain");
  await page.keyboard.press("Control+Enter");
  await page.locator(".nb-rendered .katex").waitFor();
  await page.getByRole("heading", { name: "Waves" }).waitFor();
  // What is to be done is seen, and is no control of the page.
  const task = (item, name) => page.getByRole("listitem").filter({ hasText: item }).getByRole("checkbox", { name, exact: true, disabled: true });
  await task("plotted", "Done").and(page.locator(":checked")).waitFor();
  await task("published", "Not done").waitFor();
  assert.equal(await page.locator(".nb-rendered input").count(), 2);
  await accessible(page, { without: [] });
  await shot(page, "notebook-light");
  await scheme(page, "dark");
  await accessible(page);
  await shot(page, "notebook-dark");
  await until("the file has it all", async () => {
    const nb = await onDisk("Untitled.ipynb");
    return nb.nbformat === 4 && nb.cells.length >= 4 && text(nb.cells[0]).includes("first output") && nb.cells.some((c) => c.cell_type === "markdown");
  });
});

walk("a cell goes on without any browser; who comes back and who comes later see all of it", async ({ page, context }) => {
  // It goes on in the middle when it is let, so that it runs for as long as is looked at it.
  await put("long.ipynb", ["import os, time\nfor i in range(40):\n    print('line', i, flush=True)\n    time.sleep(0.05)\n    while i == 12 and not os.path.exists(os.path.expanduser('~/go-on')): time.sleep(0.05)", "print('second')"]);
  await signIn(page, { path: path("long.ipynb") });
  await opened(page);
  await page.getByRole("button", { name: "All cells" }).click();
  await page.getByRole("menuitem", { name: "Run all", exact: true }).click();
  await cell(page, 1).getByText("line 3").waitFor();
  await cell(page, 2).getByText(/Queued/).waitFor();
  await cell(page, 1).getByText(/Running for/).waitFor();
  await shot(page, "notebook-running");
  await page.close();
  // Another comes while it runs, and sees it live.
  const second = await context.newPage();
  await second.goto(url + path("long.ipynb"));
  await cell(second, 1).getByText("line 12").waitFor();
  // The network goes, and comes back.
  await context.setOffline(true);
  const resp = await fetch(`${url}/v1/boxes/${box.id}/fs/~/go-on`, { method: "PUT", headers: { Authorization: `Bearer ${token}` }, body: "" });
  assert.ok(resp.ok, await resp.text());
  await context.setOffline(false);
  await cell(second, 2).getByText("second", { exact: true }).waitFor();
  const want = Array.from({ length: 40 }, (_, i) => `line ${i}`).join("\n");
  const all = (p) => until("every line, once", async () => (await cell(p, 1).locator(".nb-text").innerText()).trim() === want);
  await all(second);
  const third = await context.newPage();
  await third.goto(url + path("long.ipynb"));
  await cell(third, 2).getByText("second", { exact: true }).waitFor();
  await all(third);
});

walk("a cell that sleeps through a pause ends with its output complete", async ({ page }) => {
  await put("pause.ipynb", ["import time\nfor i in range(12):\n    print('beat', i, flush=True)\n    time.sleep(0.5)\nprint('done')"]);
  await signIn(page, { path: path("pause.ipynb") });
  await editor(page, 1).click();
  await page.keyboard.press("Control+Enter");
  await cell(page, 1).getByText("beat 2").waitFor();
  await api("POST", `/v1/boxes/${name}:pause`, {});
  await api("POST", `/v1/boxes/${name}:wait`, { states: ["STATE_PAUSED"], timeout: "300s" });
  await api("POST", `/v1/boxes/${name}:resume`, {});
  await api("POST", `/v1/boxes/${name}:wait`, { states: ["STATE_RUNNING"], timeout: "300s" });
  await cell(page, 1).getByText("done", { exact: false }).last().waitFor();
  const want = [...Array.from({ length: 12 }, (_, i) => `beat ${i}`), "done"];
  await until("every line, once", async () => (await cell(page, 1).locator(".nb-text").innerText()).trim() === want.join("\n"));
});

walk("input is answered from whichever browser is there", async ({ page, context }) => {
  await put("ask.ipynb", ["from getpass import getpass\nname = input('Your name? ')\nsecret = getpass('Secret: ')\nprint('hello', name, len(secret))"]);
  await signIn(page, { path: path("ask.ipynb") });
  await editor(page, 1).click();
  await page.keyboard.press("Control+Enter");
  await page.getByLabel("Your name?").waitFor();
  await accessible(page);
  const second = await context.newPage();
  await second.goto(url + path("ask.ipynb"));
  await second.getByLabel("Your name?").fill("Ada");
  await second.getByRole("button", { name: "Send" }).click();
  const secret = page.getByLabel("Secret:");
  await secret.waitFor();
  assert.equal(await secret.getAttribute("type"), "password");
  await secret.fill("abc");
  await secret.press("Enter");
  for (const p of [page, second]) await p.getByText("hello Ada 3").waitFor();
});

walk("two who write in one cell both keep their words", async ({ page, context }) => {
  await put("two.ipynb", ["one = 1\n\ntwo = 2", "shared = 0"]);
  await signIn(page, { path: path("two.ipynb") });
  await opened(page);
  const other = await context.newPage();
  await other.goto(url + path("two.ipynb"));
  await opened(other);
  await editor(page, 1).click();
  await page.keyboard.press("Control+Home");
  await page.keyboard.insertText("# mine\n");
  await editor(other, 1).click();
  await other.keyboard.press("Control+End");
  await other.keyboard.insertText("\n# theirs");
  for (const p of [page, other]) await until("both", async () => (await editor(p, 1).innerText()).replaceAll("\n\n", "\n").includes("# mine") && (await editor(p, 1).innerText()).includes("# theirs"));
  // The same line, while one of them hears nothing: both texts are shown, and one is chosen.
  await context.setOffline(false);
  await other.route("**/EditNotebook", (r) => r.abort());
  await editor(other, 2).click();
  await other.keyboard.press("Control+A");
  await other.keyboard.insertText("shared = 'theirs'");
  await editor(page, 2).click();
  await page.keyboard.press("Control+A");
  await page.keyboard.insertText("shared = 'mine'");
  await page.getByRole("status").getByText("Saved").waitFor();
  await other.getByText("This cell was changed here and elsewhere at once.").waitFor();
  await other.unroute("**/EditNotebook");
  await accessible(other);
  await shot(other, "notebook-conflict");
  await other.getByRole("button", { name: "Keep yours" }).click();
  await page.getByText("shared = 'theirs'").waitFor();
});

walk("what was typed without the network survives the tab, and is put back once", async ({ page, context }) => {
  await put("crash.ipynb", ["one = 1\n\ntwo = 2"]);
  await context.route("**/EditNotebook", (r) => r.abort());
  await signIn(page, { path: path("crash.ipynb") });
  await opened(page);
  await editor(page, 1).click();
  await page.keyboard.press("Control+Home");
  await page.keyboard.insertText("# mine\n");
  await page.getByRole("button", { name: "Code", exact: true }).click();
  await editor(page, 2).click();
  await page.keyboard.insertText("three = 3");
  await page.getByRole("status").getByText(/Not saved|Saving/).waitFor();
  // The browser keeps it within moments; what is kept is asked for, not the clock.
  await until("it is kept", () =>
    page.evaluate(
      () =>
        new Promise((resolve) => {
          const open = indexedDB.open("carrel-drafts");
          open.onsuccess = () => {
            const all = open.result.transaction("drafts").objectStore("drafts").getAll();
            all.onsuccess = () => resolve(JSON.stringify(all.result).includes("three = 3"));
          };
        }),
    ),
  );
  await page.close({ runBeforeUnload: false });
  // Somebody else writes meanwhile.
  await api("POST", `/v1/boxes/${name}/notebooks:edit`, { path: "crash.ipynb", edits: [{ source: { cell: "c1", source: "one = 1\n\ntwo = 22" } }] });
  for (let i = 0; i < 2; i++) {
    const next = await context.newPage();
    await next.goto(url + path("crash.ipynb"));
    await next.getByText("What you had typed before and was not saved is back.").waitFor();
    assert.match(await editor(next, 1).innerText(), /^# mine\none = 1\n+two = 22$/);
    assert.equal((await editor(next, 2).innerText()).trim(), "three = 3");
    if (i === 1) {
      await context.unroute("**/EditNotebook");
      await next.getByRole("status").getByText("Saved", { exact: true }).waitFor();
      const want = JSON.stringify(["# mine\none = 1\n\ntwo = 22", "three = 3"]);
      await until("it is in the file", async () => JSON.stringify((await onDisk("crash.ipynb")).cells.map((c) => [c.source].flat().join(""))) === want);
      await next.reload();
      await opened(next);
      assert.equal(await next.locator(".nb-cell").count(), 2);
    }
    await next.close({ runBeforeUnload: false });
  }
});

walk("the kernel completes and explains what is written, and says when it is busy", async ({ page }) => {
  await put("code.ipynb", ["apricot_jam = 1\ndef apricot_tart(sugar, butter=2):\n    'Bakes a <b>tart</b>.'", "", "import time\ntime.sleep(1000)"]);
  await signIn(page, { path: path("code.ipynb") });
  await editor(page, 1).click();
  await page.keyboard.press("Shift+Enter");
  await cell(page, 1).getByText("[1]").waitFor();
  await editor(page, 2).click();
  await page.keyboard.insertText("'😀'; aprico");
  await page.keyboard.press("Tab");
  const list = page.getByRole("listbox");
  await list.getByRole("option", { name: "apricot_tart" }).waitFor();
  await accessible(page);
  await shot(page, "notebook-completions");
  // It takes what is typed meanwhile into account, and Tab takes the choice.
  await page.keyboard.type("t_t", { delay: 30 });
  await until("one is left", async () => (await list.getByRole("option").count()) === 1);
  await page.keyboard.press("Tab");
  await until("it stands there", async () => (await editor(page, 2).innerText()).trim() === "'😀'; apricot_tart");
  await page.keyboard.press("Shift+Tab");
  const note = page.getByRole("region", { name: "What the kernel knows" });
  await note.getByText("Bakes a <b>tart</b>.").waitFor();
  await accessible(page);
  await shot(page, "notebook-inspection");
  // Escape takes the note away first, and leaves the text then.
  await page.keyboard.press("Escape");
  await note.waitFor({ state: "detached" });
  await until("still in the text", () => page.evaluate(() => document.activeElement?.classList.contains("cm-content") === true));
  await page.keyboard.press("Escape");
  await until("at the cell", () => page.evaluate(() => document.activeElement?.classList.contains("nb-cell") === true));
  await editor(page, 3).click();
  await page.keyboard.press("Control+Enter");
  await cell(page, 3).getByText(/Running/).waitFor();
  await editor(page, 2).click();
  await page.keyboard.press("Control+End");
  await page.keyboard.press("Control+Space");
  await page.getByText("The kernel is busy and answers this when it is done").waitFor();
  await shot(page, "notebook-completions-busy");
  await api("POST", `/v1/boxes/${name}/interrupt`, {});
  await cell(page, 3).getByText("KeyboardInterrupt").first().waitFor();
});

walk("cells are moved, cut, joined and brought back with Jupyter's keys", async ({ page }) => {
  await put("keys.ipynb", ["a = 1", "b = 2", "c = 3"]);
  await signIn(page, { path: path("keys.ipynb") });
  await opened(page);
  const sources = async () => (await onDisk("keys.ipynb")).cells.map((c) => [c.source].flat().join(""));
  const becomes = (want) => until(JSON.stringify(want), async () => JSON.stringify(await sources()) === JSON.stringify(want));
  await cell(page, 1).focus();
  for (const key of ["j", "x"]) await page.keyboard.press(key);
  await becomes(["a = 1", "c = 3"]);
  await page.keyboard.press("v");
  await becomes(["a = 1", "c = 3", "b = 2"]);
  await page.keyboard.press("Alt+ArrowUp");
  await becomes(["a = 1", "b = 2", "c = 3"]);
  for (const key of ["d", "d"]) await page.keyboard.press(key);
  await becomes(["a = 1", "c = 3"]);
  await page.keyboard.press("z");
  await becomes(["a = 1", "b = 2", "c = 3"]);
  await cell(page, 1).focus();
  await page.keyboard.press("Shift+M");
  await becomes(["a = 1\nb = 2", "c = 3"]);
  // The palette has what the keys do, by other words too.
  await page.keyboard.press("Control+k");
  await page.getByRole("combobox", { name: "Find a command" }).waitFor();
  await page.keyboard.type("insert below");
  await page.getByRole("option", { name: /^Add a cell below/ }).waitFor();
  await page.keyboard.press("Enter");
  await becomes(["a = 1\nb = 2", "", "c = 3"]);
  await cell(page, 1).focus();
  await page.keyboard.press("h");
  await page.getByRole("dialog", { name: "Keys of the notebook" }).waitFor();
  await accessible(page);
});

walk("a kernel that ends is said, and its box and page go on", async ({ page }) => {
  await put("dead.ipynb", ["import os\nprint('last words', flush=True)\nos.kill(os.getpid(), 9)", "print('again')"]);
  await signIn(page, { path: path("dead.ipynb") });
  await editor(page, 1).click();
  await page.keyboard.press("Control+Enter");
  await page.getByRole("alert").getByText("The kernel has ended").waitFor();
  await cell(page, 1).getByText("last words").first().waitFor();
  await shot(page, "notebook-dead-kernel");
  await page.getByRole("alert").getByRole("button", { name: "Restart" }).click();
  await editor(page, 2).click();
  await page.keyboard.press("Control+Enter");
  await cell(page, 2).getByText("again", { exact: true }).waitFor();
  await editor(page, 2).click();
  await page.keyboard.press("Control+A");
  await page.keyboard.insertText("while True: pass");
  await page.keyboard.press("Control+Enter");
  await cell(page, 2).getByText(/Running/).waitFor();
  await cell(page, 2).focus();
  await page.keyboard.press("i");
  await page.keyboard.press("i");
  await cell(page, 2).getByText("KeyboardInterrupt").first().waitFor();
  await cell(page, 2).getByText(/^Interrupted after/).waitFor();
  // Two keys do not throw away what the kernel has without a question.
  for (const key of ["0", "0"]) await page.keyboard.press(key);
  await page.getByRole("dialog", { name: "Restart the kernel?" }).waitFor();
  await accessible(page);
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
  await editor(page, 2).click();
  await page.keyboard.press("Control+A");
  await page.keyboard.insertText("print('anew')");
  await page.keyboard.press("Control+Enter");
  await cell(page, 2).getByText("anew", { exact: true }).waitFor();
  await cell(page, 2).getByText("[1]", { exact: true }).waitFor();
});

walk("four mebibytes of text freeze nothing", async ({ page }) => {
  await put("flood.ipynb", ["for i in range(60000): print(f'{i:08d} ' + 'x' * 60)"]);
  await signIn(page, { path: path("flood.ipynb") });
  await editor(page, 1).click();
  await page.keyboard.press("Control+Enter");
  await page.getByText(/lines, [34](\.\d)? MiB/).waitFor();
  await cell(page, 1).getByText(/^\[1\]$/).waitFor();
  // Few of the lines are in the page, and it answers.
  assert.ok((await page.locator("*").count()) < 4000);
  await page.getByRole("button", { name: "Top", exact: true }).click();
  await cell(page, 1).getByText("00000000 xxx").waitFor();
  await shot(page, "notebook-flood");
});

walk("on a phone", phone, async ({ page }) => {
  await put("phone.ipynb", ["print('a long line ' * 40)\nprint('small screen')"]);
  await signIn(page, { path: path("phone.ipynb") });
  await opened(page);
  await page.getByRole("button", { name: "Run the cell and go on" }).tap();
  await page.getByText("small screen").last().waitFor();
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wide <= 0, `the page is ${wide} pixels too wide`);
  await accessible(page);
  await shot(page, "notebook-phone");
  await scheme(page, "dark");
  await shot(page, "notebook-phone-dark");
});
