// Files of a box and their editor: the tree, uploads and downloads, saving as one types, conflicts, hostile names; in both colours and on a phone.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after } from "node:test";
import { accessible, dropBox, makeBox, phone, scheme, shot, signIn, token, until, url, walk } from "./harness.mjs";

const name = `files-${Date.now().toString(36)}`;
const home = "/home/carrel";
let made;
const box = () => (made ??= makeBox(name));
after(() => dropBox(name));

/** What somebody else does to the files of the box. */
async function fs(method, path, body, headers = {}) {
  const resp = await fetch(`${url}/v1/boxes/${name}/fs${home}/${path}${method === "PUT" ? "?parents=1" : method === "DELETE" ? "?recursive=1" : ""}`, { method, body, headers: { Authorization: `Bearer ${token}`, ...headers } });
  return { status: resp.status, text: await resp.text() };
}
const put = async (path, text) => assert.equal((await fs("PUT", path, text)).status, 200);
const read = async (path) => (await fs("GET", path)).text;
const row = (page, path) => page.locator(`[role=treeitem][data-path=${JSON.stringify(`${home}/${path}`)}]`);
const saved = (page) => page.locator("[data-phase=idle][data-dirty=false]").waitFor();

async function open(page, path = "", tab = "files") {
  const { id } = await box();
  await signIn(page, { path: `/boxes/${id}/${tab}${path && `?path=${encodeURIComponent(`${home}/${path}`)}`}` });
}

walk("the tree shows what is there, as it changes, and hostile names for what they are", async ({ page }) => {
  await box();
  await put("work/notes.txt", "hello\n");
  await put("work/a%E9b.txt", "x");
  await put(`work/${encodeURIComponent("rlo\u202etxt.exe")}`, "x");
  await put(`work/${encodeURIComponent("<img src=x onerror=alert(1)>")}`, "x");
  await open(page);
  await row(page, "work").click();
  await row(page, "work/notes.txt").waitFor();
  await page.getByRole("treeitem", { name: "a\\xe9b.txt" }).waitFor();
  await page.getByRole("treeitem", { name: "rlo\\u{202e}txt.exe" }).waitFor();
  await page.getByRole("treeitem", { name: "<img src=x onerror=alert(1)>" }).waitFor();
  await shot(page, "files");
  await accessible(page);
  await put("work/later.txt", "by somebody else");
  await row(page, "work/later.txt").waitFor();
  await fs("DELETE", "work/later.txt");
  await row(page, "work/later.txt").waitFor({ state: "detached" });
  // A name of bytes that are no UTF-8 is opened and saved like any other.
  await page.getByRole("treeitem", { name: "a\\xe9b.txt" }).click();
  await page.locator(".cm-content").click();
  await page.keyboard.type("more ");
  await until("it is on the disk", async () => /more /.test(await read("work/a%E9b.txt")));
  await saved(page);
});

walk("new, rename, search and delete, with the keyboard alone", async ({ page }) => {
  await box();
  await open(page);
  await page.getByRole("button", { name: "New folder" }).click();
  await page.getByLabel("Name of the new folder").fill("keys");
  await page.keyboard.press("Enter");
  await row(page, "keys").waitFor();
  await put("keys/deep/needle-in-it.txt", "x");
  const tree = page.getByRole("tree");
  await tree.focus();
  await page.keyboard.type("keys");
  await page.keyboard.press("ArrowRight");
  await row(page, "keys/deep").waitFor();
  await page.keyboard.press("F2");
  await page.getByLabel("New name of keys").fill("a/b");
  await page.getByText("A name has no slash.").waitFor();
  await page.getByLabel("New name of keys").fill("renamed");
  await page.keyboard.press("Enter");
  await row(page, "renamed").waitFor();
  assert.equal((await fs("GET", "renamed/deep/needle-in-it.txt")).status, 200);
  await page.getByRole("searchbox", { name: "Search files by name" }).fill("NEEDLE");
  await page.getByRole("button", { name: /needle-in-it\.txt/ }).waitFor();
  await accessible(page);
  await page.keyboard.press("Escape");
  await row(page, "renamed").waitFor();
  await tree.focus();
  await page.keyboard.type("renamed");
  await page.keyboard.press("Delete");
  await page.getByRole("heading", { name: "Delete this folder?" }).waitFor();
  await accessible(page);
  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await row(page, "renamed").waitFor({ state: "detached" });
  assert.equal((await fs("GET", "renamed")).status, 404);
});

walk("files are uploaded by a drop, large ones too, and a taken name is asked about", async ({ page }) => {
  await box();
  await put("up/taken.txt", "old");
  await open(page);
  await row(page, "up").waitFor();
  // A browser lets no test drop real files: the event is made in the page.
  await page.evaluate((path) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File(["new"], "taken.txt"));
    transfer.items.add(new File(["one"], "one.txt"));
    transfer.items.add(new File([new Uint8Array(20 << 20).fill(7)], "large.bin"));
    document.querySelector(`[data-path="${path}"]`).dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, `${home}/up`);
  await page.getByRole("heading", { name: "The name is taken" }).waitFor();
  assert.equal(await read("up/taken.txt"), "old");
  await shot(page, "files-upload");
  await page.getByRole("button", { name: "Keep both" }).click();
  await page.getByText("3 files have arrived").waitFor();
  assert.equal(await read("up/taken.txt"), "old");
  assert.equal(await read("up/taken (2).txt"), "new");
  assert.equal(await read("up/one.txt"), "one");
  const large = await fs("HEAD", "up/large.bin");
  assert.equal(large.status, 200);
  await row(page, "up/large.bin").waitFor();
  await accessible(page);
  await row(page, "up/one.txt").click({ button: "right" });
  const download = page.waitForEvent("download");
  await page.getByRole("menuitem", { name: "Download" }).click();
  assert.equal(readFileSync(await (await download).path(), "utf8"), "one");
});

walk("what is typed is saved, and changes by others come in", async ({ page }) => {
  await box();
  await put("edit/a.py", "import os\r\n\r\nprint(os.getcwd())\r\n");
  await open(page, "edit/a.py", "editor");
  await saved(page);
  await page.getByText("CRLF").waitFor();
  await page.locator(".cm-content").click();
  await page.keyboard.press("Control+End");
  await page.keyboard.type("x = 1\n");
  await until("it is on the disk", async () => (await read("edit/a.py")) === "import os\r\n\r\nprint(os.getcwd())\r\nx = 1\r\n");
  await saved(page);
  await put("edit/a.py", "# theirs\r\nx = 1\r\n");
  await page.locator(".cm-line", { hasText: "# theirs" }).waitFor();
  await shot(page, "editor");
  await accessible(page);
  await page.keyboard.press("Control+f");
  await page.getByRole("textbox", { name: "Find" }).fill("theirs");
  await page.getByRole("textbox", { name: "Replace" }).fill("ours");
  await page.getByRole("button", { name: "replace all" }).click();
  await until("the replaced text is on the disk", async () => (await read("edit/a.py")) === "# ours\r\nx = 1\r\n");
});

walk("a long file scrolls within the editor, and what is around it stays in sight", async ({ page }) => {
  await box();
  await put("long.txt", Array.from({ length: 500 }, (_, i) => `line ${i + 1}\n`).join(""));
  await open(page, "long.txt", "editor");
  await page.locator(".cm-content").click();
  await page.keyboard.press("Control+End");
  await page.getByText("Line 501, column 1").waitFor();
  await page.keyboard.press("Control+f");
  await page.locator(".cm-search").waitFor();
  const seen = (what) => what.evaluate((e) => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().bottom <= innerHeight);
  for (const what of [page.locator(".editor-foot"), page.locator(".cm-search"), page.getByRole("tab", { name: /long\.txt/ }), page.getByRole("heading", { name, exact: true })]) assert.ok(await seen(what), `out of sight: ${what}`);
  assert.ok(await page.evaluate(() => [document.documentElement, document.querySelector("main")].every((e) => e.scrollHeight <= e.clientHeight)), "the page scrolls");
});

const middle = Array.from({ length: 20 }, (_, i) => `line ${i}\n`).join("");

/** Opens a file whose first line is changed here while somebody else changes its last. */
async function conflict(page, path) {
  await box();
  await put(path, `first\n${middle}last\n`);
  await open(page, path, "editor");
  await saved(page);
  let first = true;
  await page.route(`**/${path}`, async (route) => {
    if (route.request().method() === "PUT" && first) {
      first = false;
      await put(path, `first\n${middle}theirs\n`);
    }
    await route.continue();
  });
  await page.locator(".cm-content").click();
  await page.keyboard.press("Control+Home");
  await page.keyboard.press("Shift+ArrowDown");
  await page.keyboard.insertText("mine\n");
  await page.getByText("Somebody else changed this file meanwhile.").waitFor();
  await page.locator(".editor-take").nth(1).waitFor();
}

walk("a conflict is shown as a merge, and nothing is lost before one chooses", async ({ page }) => {
  await box();
  await put("edit/c.txt", "one\ntwo\n");
  await open(page, "edit/c.txt", "editor");
  await saved(page);
  // Somebody else writes in the moment before the page does.
  let first = true;
  await page.route("**/edit/c.txt", async (route) => {
    if (route.request().method() === "PUT" && first) {
      first = false;
      await put("edit/c.txt", "one\ntwo\ntheirs\n");
    }
    await route.continue();
  });
  await page.locator(".cm-content").click();
  await page.keyboard.press("Control+Home");
  await page.keyboard.type("mine\n");
  await page.getByText("Somebody else changed this file meanwhile.").waitFor();
  await page.locator(".cm-mergeView").waitFor();
  assert.equal(await read("edit/c.txt"), "one\ntwo\ntheirs\n");
  await shot(page, "editor-conflict");
  await accessible(page);
  // What is not saved outlives the page.
  page.on("dialog", (d) => void d.accept());
  await page.reload();
  await page.locator(".cm-mergeView").waitFor();
  await page.getByRole("button", { name: "Take this part from the disk" }).last().click();
  await page.getByRole("button", { name: "Save the right side" }).click();
  await saved(page);
  assert.equal(await read("edit/c.txt"), "mine\none\ntwo\ntheirs\n");
  await fs("DELETE", "edit/c.txt");
  await page.getByText("The file is gone from the disk.").waitFor();
  await page.getByRole("button", { name: "Save it again" }).click();
  await saved(page);
  assert.equal(await read("edit/c.txt"), "mine\none\ntwo\ntheirs\n");
});

walk("a conflict is settled by keys, part by part", async ({ page }) => {
  await conflict(page, "edit/keys.txt");
  await page.getByRole("textbox", { name: "keys.txt, yours" }).focus();
  await page.keyboard.press("Control+Home");
  await page.keyboard.press("Alt+ArrowDown");
  await page.keyboard.press("Alt+Backspace");
  await page.getByRole("button", { name: "Take this part from the disk" }).nth(1).waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Save the right side" }).click();
  await saved(page);
  assert.equal(await read("edit/keys.txt"), `mine\n${middle}theirs\n`);
});

walk("a conflict is settled on a phone, where both are one text", phone, async ({ page }) => {
  await conflict(page, "edit/small.txt");
  await page.locator(".cm-deletedChunk").getByText("theirs", { exact: true }).waitFor();
  await accessible(page);
  await shot(page, "editor-conflict-phone");
  await scheme(page, "dark");
  await accessible(page);
  await shot(page, "editor-conflict-phone-dark");
  assert.ok(await page.evaluate(() => [document.documentElement, document.querySelector(".editor-merge-view")].every((e) => e.scrollWidth <= e.clientWidth)), "something is out of sight");
  // What can be pressed is seen: its text is not of the colour that is behind it, and covers none of the file.
  for (const button of await page.locator(".cm-chunkButtons button").all()) {
    const { text, behind } = await button.evaluate((e) => ({ text: getComputedStyle(e).color, behind: getComputedStyle(e).backgroundColor }));
    assert.notEqual(text, behind);
  }
  assert.ok(await page.locator(".cm-chunkButtons").evaluateAll((all) => all.every((e) => e.nextElementSibling.getBoundingClientRect().top >= e.getBoundingClientRect().bottom)), "buttons over text");
  // A press of a key does what a finger does.
  await page.getByRole("button", { name: /^Take theirs: / }).last().focus();
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: /^Keep mine: / }).tap();
  await page.locator(".cm-deletedChunk").waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Save as it is below" }).tap();
  await saved(page);
  assert.equal(await read("edit/small.txt"), `mine\n${middle}theirs\n`);
});

walk("what is no text is said to be none, and pictures are shown without their scripts", async ({ page }) => {
  await box();
  await put("odd/bin", new Uint8Array([1, 0, 2, 3]));
  await put("odd/latin.txt", new Uint8Array([0x61, 0xe9, 0x0a]));
  await put("odd/p.svg", `<svg xmlns="http://www.w3.org/2000/svg" width="60" height="60" onload="document.title='run'"><script>window.top.ran = true</script><rect width="60" height="60" fill="teal"/></svg>`);
  await put("odd/large.txt", "x".repeat((5 << 20) + 1));
  await open(page, "odd/bin", "editor");
  await page.getByText("This is not a text").waitFor();
  await row(page, "odd").click();
  await row(page, "odd/latin.txt").click();
  await page.getByText("It is not UTF-8").waitFor();
  await page.getByText("Read only").waitFor();
  await row(page, "odd/large.txt").click();
  await page.getByText("Too large to be edited here").waitFor();
  await row(page, "odd/p.svg").click();
  await page.getByRole("img", { name: "Picture p.svg" }).waitFor();
  assert.equal(await page.evaluate(() => "ran" in window), false);
  await accessible(page);
});

for (const [look, options] of [
  ["dark", { colorScheme: "dark" }],
  ["phone", phone],
]) {
  walk(`files and editor, ${look}`, options, async ({ page }) => {
    await box();
    await put("look/example.py", 'import math\n\n\ndef area(r: float) -> float:\n    """Of a circle."""\n    return math.pi * r**2  # exact\n');
    await open(page);
    await row(page, "look").click();
    await row(page, "look/example.py").waitFor();
    await accessible(page);
    await shot(page, `files-${look}`);
    await row(page, "look/example.py").click();
    await page.locator(".cm-line", { hasText: "def area" }).waitFor();
    await saved(page);
    await accessible(page);
    await shot(page, `editor-${look}`);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page scrolls sideways");
  });
}
