// Terminals, ports and activity of a box.
import assert from "node:assert/strict";
import { after } from "node:test";
import { accessible, dropBox, makeBox, phone, shot, signIn, until, walk } from "./harness.mjs";

const name = `term-${Date.now().toString(36)}`;
let made;
const box = () => (made ??= makeBox(name, { template: "python" }));
after(() => dropBox(name));

async function open(page, tab) {
  const { id } = await box();
  await signIn(page, { path: `/boxes/${id}/${tab}` });
}
/** What the terminal shows, line by line. */
const lines = (page) => page.evaluate(() => [...document.querySelectorAll(".xterm-rows > div")].map((d) => d.textContent.trimEnd()));
const prompt = (page) => until("the shell waits", async () => (await lines(page)).some((l) => /[$#] ?$/.test(l)));
const shows = (page, line) => until(`the terminal shows ${line}`, async () => (await lines(page)).includes(line));

walk("a shell, its output after a reload exactly once, and its size", async ({ page }) => {
  await open(page, "terminal");
  await prompt(page);
  await page.keyboard.type("echo out-$((40+2))\n");
  await shows(page, "out-42");
  await shot(page, "terminal");
  await accessible(page);
  await page.reload();
  await shows(page, "out-42");
  assert.equal((await lines(page)).filter((l) => l === "out-42").length, 1);
  assert.equal(await page.getByRole("tab").count(), 1);
  // The window becomes smaller, and programs know it.
  await page.setViewportSize({ width: 900, height: 600 });
  await page.locator(".xterm-screen").click();
  let n = 0;
  await until("the shell has the terminal's size", async () => {
    await page.keyboard.type(`echo size-${++n}=$(stty size)\n`);
    await until("it answers", async () => (await lines(page)).some((l) => l.startsWith(`size-${n}=`)));
    const rows = await page.evaluate(() => document.querySelectorAll(".xterm-rows > div").length);
    return (await lines(page)).some((l) => l.startsWith(`size-${n}=${rows} `));
  });
  await page.getByRole("button", { name: "New terminal" }).click();
  await until("there are two", async () => (await page.getByRole("tab").count()) === 2);
  await prompt(page);
  await page.getByRole("tab").last().focus();
  await page.keyboard.press("Delete");
  await until("one is closed", async () => (await page.getByRole("tab").count()) === 1);
});

walk("a port appears when a program listens, is opened, and shown to more", async ({ page, context }) => {
  await open(page, "terminal");
  await prompt(page);
  await page.keyboard.type("python3 -m http.server 8123 >/dev/null 2>&1 &\n");
  await page.getByRole("link", { name: "Ports" }).click();
  const port = page.locator("[data-port='8123']");
  await port.waitFor();
  await accessible(page);
  await port.getByRole("button", { name: /^Who may reach port 8123: Private/ }).click();
  await shot(page, "ports");
  await page.getByRole("menuitemradio", { name: /^Organisation/ }).click();
  await port.getByRole("button", { name: /^Who may reach port 8123: Organisation/ }).waitFor();
  const opened = context.waitForEvent("page");
  await port.getByRole("button", { name: "Open" }).click();
  await (await opened).getByRole("heading", { name: "Directory listing for /" }).waitFor();
});

walk("activity says what the box uses and why it is awake", async ({ page }) => {
  await open(page, "activity");
  await page.getByRole("meter", { name: "Memory" }).waitFor();
  await page.getByText(/\d.* of \d.* GiB/).first().waitFor();
  await page.getByRole("button", { name: "1 h", exact: true }).click();
  await page.getByText("Kept awake on request").waitFor();
  await shot(page, "activity");
  await accessible(page);
});

walk("terminal, ports and activity on a phone", phone, async ({ page }) => {
  await open(page, "terminal");
  await prompt(page);
  await page.getByRole("group", { name: "Keys" }).waitFor();
  await accessible(page);
  await shot(page, "terminal-phone");
  for (const tab of ["Ports", "Activity"]) {
    await page.getByRole("link", { name: tab }).click();
    await page.locator(tab === "Ports" ? "[data-port], .empty" : "[role=meter]").first().waitFor();
    await accessible(page);
    await shot(page, `${tab.toLowerCase()}-phone`);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page scrolls sideways");
  }
});
