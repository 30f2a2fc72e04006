// When things go wrong: a full disk, rights that are missing, a connection that breaks in the middle, a page older than what serves it.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before } from "node:test";
import { accessible, api, dropBox, makeBox, shot, signIn, token, until, url, walk } from "./harness.mjs";

const small = { resources: { homeBytes: String(256 << 20), rootBytes: String(1 << 30), memoryBytes: String(1 << 30) } };
const name = `rough-${Date.now().toString(36)}`;
const home = "/home/carrel";
let box;
before(async () => {
  box = await makeBox(name, { template: "python", ...small });
});
after(() => dropBox(name));

async function fs(method, path, body) {
  const resp = await fetch(`${url}/v1/boxes/${name}/fs${home}/${path}${method === "PUT" ? "?parents=1" : ""}`, { method, body, headers: { Authorization: `Bearer ${token}` } });
  return { status: resp.status, body: Buffer.from(await resp.arrayBuffer()) };
}
const put = async (path, text) => assert.equal((await fs("PUT", path, text)).status, 200);
const read = async (path) => (await fs("GET", path)).body.toString();
const notebook = (...cells) => JSON.stringify({ nbformat: 4, nbformat_minor: 5, metadata: {}, cells: cells.map((source, i) => ({ id: `c${i + 1}`, cell_type: "code", source, metadata: {}, execution_count: null, outputs: [] })) });
const sources = async (path) => JSON.parse(await read(path)).cells.map((c) => [c.source].flat().join(""));
const row = (page, path) => page.locator(`[role=treeitem][data-path=${JSON.stringify(`${home}/${path}`)}]`);
const cell = (page, n) => page.locator(".nb-cell").nth(n - 1);
const to = (tab, path) => `/boxes/${box.id}/${tab}${path ? `?path=${encodeURIComponent(path)}` : ""}`;
const execute = (code) => api("POST", `/v1/boxes/${name}/execute`, { code, wait: "240s" });

walk("a full disk is said plainly, nothing is lost, and the rest of the page lives", async ({ page, context }) => {
  await put("full.ipynb", notebook("first = 1"));
  await put("full.txt", "before\n");
  await signIn(page, { path: to("notebook", "full.ipynb") });
  await cell(page, 1).waitFor();
  const editor = await context.newPage();
  await editor.goto(url + to("editor", `${home}/full.txt`));
  await editor.locator(".cm-line", { hasText: "before" }).waitFor();
  // Somebody else fills the home to its last block.
  const filled = await execute(
    ["import os", "with open('filler', 'wb', buffering=0) as f:", "    for size in (1 << 20, 4096):", "        try:", "            while True: f.write(bytes(size))", "        except OSError as e: pass", "print('full')"].join("\n"),
  );
  assert.match(JSON.stringify(filled), /full/);
  await cell(page, 1).locator(".cm-content").click();
  await page.keyboard.press("Control+A");
  await page.keyboard.insertText(`first = 1  # ${"a comment that needs room ".repeat(4000)}`);
  await page.getByRole("alert").getByText(/Not saved to the file/).waitFor();
  await page.getByRole("status").getByText("Not saved", { exact: true }).waitFor();
  await accessible(page);
  await shot(page, "rough-disk-full");
  await editor.locator(".cm-content").click();
  await editor.keyboard.press("Control+End");
  await editor.keyboard.insertText("more ".repeat(20_000));
  await editor.locator("[data-dirty=true]").waitFor();
  await editor.getByRole("alert").getByText(/is full; remove something/).waitFor();
  await shot(editor, "rough-disk-full-editor");
  assert.equal(await read("full.txt"), "before\n");
  assert.deepEqual(await sources("full.ipynb"), ["first = 1"]);
  // The rest goes on: a shell opens, and makes room.
  await page.getByRole("navigation", { name: "Parts of the box" }).getByRole("link", { name: "Terminal" }).click();
  await page.locator(".xterm-helper-textarea").first().waitFor({ state: "attached" });
  assert.equal((await fs("DELETE", "filler")).status, 204);
  await until("the notebook is saved by itself", async () => (await sources("full.ipynb"))[0].includes("needs room"));
  await until("the file is saved by itself", async () => (await read("full.txt")).includes("more more"));
  await editor.locator("[data-dirty=false]").waitFor();
  await page.goto(url + to("notebook", "full.ipynb"));
  await page.getByRole("status").getByText("Saved", { exact: true }).waitFor();
});

walk("who may only look sees everything and is told why nothing can be changed", async ({ page }) => {
  await put("look.ipynb", notebook("print('for all to see')"));
  await put("look/at.txt", "seen\n");
  await api("POST", `/v1/boxes/${name}/execute`, { path: "look.ipynb", all: true, wait: "60s" });
  const user = await api("POST", "/v1/users", { name: `looker-${Date.now().toString(36)}` });
  await api("PUT", `/v1/orgs/default/members/${user.id}`, { role: "viewer" });
  const { secret } = await api("POST", "/v1/tokens", { user: user.id, description: "a viewer" });
  await signIn(page, { path: to("notebook", "look.ipynb"), as: secret });
  await page.getByText("for all to see", { exact: true }).waitFor();
  await page.getByText("You may look, not change").waitFor();
  const run = page.getByRole("button", { name: "Run cell 1" });
  assert.equal(await run.getAttribute("aria-disabled"), "true");
  await run.click({ force: true });
  await page.getByText("You may look at this notebook, not run it").waitFor();
  assert.equal(await page.getByRole("button", { name: "Run the cell and go on" }).count(), 0);
  assert.equal(await cell(page, 1).locator(".cm-content").getAttribute("contenteditable"), "false");
  for (const key of ["b", "d", "d", "Enter"]) await page.keyboard.press(key);
  assert.equal(await page.locator(".nb-cell").count(), 1);
  await accessible(page);
  await shot(page, "rough-viewer-notebook");
  const parts = page.getByRole("navigation", { name: "Parts of the box" });
  await parts.getByRole("link", { name: "Files" }).click();
  await row(page, "look").click();
  await row(page, "look/at.txt").waitFor();
  assert.equal(await page.getByRole("button", { name: "Upload" }).count(), 0);
  await row(page, "look/at.txt").click({ button: "right" });
  await page.getByRole("menuitem", { name: "Download" }).waitFor();
  assert.equal(await page.getByRole("menuitem", { name: /Delete|Rename|Cut/ }).count(), 0);
  await page.keyboard.press("Escape");
  await row(page, "look/at.txt").click();
  await page.getByText("Read only").waitFor();
  await parts.getByRole("link", { name: "Terminal" }).click();
  await page.getByText("You may look", { exact: true }).or(page.getByText(/No terminals/)).first().waitFor();
  await accessible(page);
  // The pages are no more than manners: the box refuses too.
  const resp = await fetch(`${url}/v1/boxes/${name}/execute`, { method: "POST", headers: { Authorization: `Bearer ${secret}`, "Content-Type": "application/json" }, body: JSON.stringify({ code: "1" }) });
  assert.equal(resp.status, 403);
});

walk("files move by being dragged onto a folder", async ({ page }) => {
  await put("drag/me.txt", "moved");
  await put("drag/into/there.txt", "x");
  await put("drag/into/me too.txt", "there before");
  await put("drag/me too.txt", "asked about");
  await signIn(page, { path: to("files") });
  // All is open, so that nothing moves while it is aimed at.
  await row(page, "drag").click();
  await row(page, "drag/into").click();
  await row(page, "drag/into/there.txt").waitFor();
  await row(page, "drag/me.txt").dragTo(row(page, "drag/into"));
  await row(page, "drag/me.txt").waitFor({ state: "detached" });
  await until("it is there", async () => (await fs("GET", "drag/into/me.txt")).body.toString() === "moved");
  assert.equal((await fs("GET", "drag/me.txt")).status, 404);
  await row(page, "drag/into/me.txt").waitFor();
  // A name that is taken is asked about, and nothing is lost.
  await row(page, "drag/me too.txt").dragTo(row(page, "drag/into"));
  await page.getByRole("dialog").waitFor();
  await accessible(page);
  await shot(page, "rough-drag-clash");
  assert.equal(await read("drag/into/me too.txt"), "there before");
  await page.getByRole("button", { name: "Keep both" }).click();
  await until("both are there", async () => (await fs("GET", "drag/into/me too (2).txt")).body.toString() === "asked about");
  assert.equal(await read("drag/into/me too.txt"), "there before");
});

walk("an upload whose connection breaks goes on where it was", async ({ page }) => {
  const data = Buffer.alloc(20 << 20);
  for (let i = 0; i < data.length; i += 4096) data.writeUInt32LE(i, i);
  await signIn(page, { path: to("files") });
  await page.getByRole("tree").waitFor();
  const begun = [];
  let broken = true;
  await page.route("**/large.bin*", async (route) => {
    const request = route.request();
    if (request.method() !== "PUT") return route.continue();
    const range = (await request.allHeaders())["content-range"] ?? request.url();
    begun.push(range);
    if (broken && begun.length > 1) return route.abort("connectionreset");
    return route.continue();
  });
  const asked = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Upload", exact: true }).click();
  await page.getByRole("menuitem", { name: "Upload files" }).click();
  await (await asked).setFiles({ name: "large.bin", mimeType: "application/octet-stream", buffer: data });
  await page.getByText("The connection broke: it goes on by itself.").waitFor();
  await shot(page, "rough-upload-broken");
  await accessible(page);
  broken = false;
  await page.getByText("One file has arrived").waitFor();
  const there = await fs("GET", "large.bin");
  assert.equal(createHash("sha256").update(there.body).digest("hex"), createHash("sha256").update(data).digest("hex"));
  assert.equal(begun.filter((r) => r === begun[0]).length, 1, `the first part was sent once: ${begun}`);
});

walk("a page that is older than what serves it says so, and loses nothing", async ({ page, context }) => {
  await put("old.ipynb", notebook("old = 1"));
  // The parts of the page that were not loaded yet are gone with the version that they belonged to.
  const gone = "**/assets/{terminal,files}-*.js";
  await page.route(gone, (route) => route.continue({ url: `${url}/assets/gone-12345678.js` }));
  await signIn(page, { path: to("notebook", "old.ipynb") });
  await cell(page, 1).waitFor();
  const newer = await context.newPage();
  await newer.goto(url + to("notebook", "old.ipynb"));
  await cell(newer, 1).waitFor();
  await page.route("**/EditNotebook", (route) => route.abort());
  await cell(page, 1).locator(".cm-content").click();
  await page.keyboard.press("Control+End");
  await page.keyboard.insertText("\nkept = True");
  await page.getByRole("navigation", { name: "Parts of the box" }).getByRole("link", { name: "Terminal" }).click();
  await page.getByText("Terminal could not be loaded").waitFor();
  await accessible(page);
  await shot(page, "rough-old-page");
  await page.unroute("**/EditNotebook");
  await page.unroute(gone);
  await page.getByRole("button", { name: "Load the page again" }).click();
  await page.locator(".xterm-helper-textarea").first().waitFor({ state: "attached" });
  await page.goto(url + to("notebook", "old.ipynb"));
  await until("what was typed is saved, once", async () => (await sources("old.ipynb")).join() === "old = 1\nkept = True");
  await cell(newer, 1).getByText("kept").waitFor();
});
