// What every walk through the pages needs: a real browser (Debian's Chromium), a Carrel that runs, screenshots, and axe. The Go test TestBrowser
// of test/e2e starts a Carrel for each spec file and runs it; by hand: CARREL_URL=… CARREL_TOKEN=… node --test test/browser/NAME.spec.mjs
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const fromWeb = createRequire(join(here, "../../web/package.json"));
const { chromium } = fromWeb("playwright-core");
const axePath = fromWeb.resolve("axe-core/axe.min.js");

const need = (name) => {
  const value = process.env[name];
  assert.ok(value, `${name} is not set; run this with: go test ./test/e2e -run TestBrowser`);
  return value;
};

/** Where the front door is, as the browser knows it. */
export const url = need("CARREL_URL").replace("127.0.0.1", "localhost");
/** The administrator's API token. */
export const token = need("CARREL_TOKEN");
/** How long anything that must happen may take here, in milliseconds: a slow machine is no fault. */
export const patience = Number(process.env.CARREL_PATIENCE || 300_000);

const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", headless: true, args: flags, timeout: patience });
});
after(() => browser?.close());

/** Devices that pages are looked at with. */
export const desktop = { viewport: { width: 1280, height: 800 } };
export const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

/**
 * One walk. `walk` gets a page of a browser of its own, which has no cookies yet. Errors of scripts and breaches of the content policy fail it; a
 * failed one leaves a screenshot.
 */
export function walk(name, options, run) {
  if (typeof options === "function") [options, run] = [{}, options];
  test(name, { timeout: 10 * patience }, async () => {
    const context = await browser.newContext({ ...desktop, acceptDownloads: true, ...options });
    context.setDefaultTimeout(patience);
    const faults = [];
    const watch = (page) => {
      page.on("pageerror", (err) => faults.push(`script: ${err.stack ?? err}`));
      page.on("console", (m) => {
        if (/Content[ -]Security[ -]Policy/i.test(m.text())) faults.push(`policy: ${m.text()}`);
      });
    };
    context.on("page", watch);
    const page = await context.newPage();
    try {
      await run({ page, context, faults });
      assert.deepEqual(faults, [], "faults of the page");
    } catch (err) {
      await shot(page, `failed-${name.replace(/\W+/g, "-")}`).catch(() => {});
      if (faults.length) err.message += `\nfaults of the page: ${faults.join("\n")}`;
      throw err;
    } finally {
      await context.close();
    }
  });
}

/** A screenshot of what is seen, in test/browser/screenshots. */
export async function shot(page, name) {
  const dir = join(here, "screenshots");
  mkdirSync(dir, { recursive: true });
  await page.screenshot({ path: join(dir, `${name}.png`) });
}

/** Signs in with a token on the sign-in page and waits for `path`. */
export async function signIn(page, { path = "/", as = token } = {}) {
  await page.goto(`${url}/signin?next=${encodeURIComponent(path)}`);
  await page.getByLabel("API token").fill(as);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("banner").waitFor();
}

/** No finding of axe that is serious or worse, in what is shown now. Findings that are known and not ours can be left out by rule. */
export async function accessible(page, { without = [] } = {}) {
  await settled(page);
  const axe = await page.evaluate(async () => "axe" in window);
  // The page's policy allows no script but its own: the debugger's protocol is not asked.
  if (!axe) await page.evaluate((await import("node:fs")).readFileSync(axePath, "utf8"));
  const { violations } = await page.evaluate((rules) => window.axe.run(document, { rules: Object.fromEntries(rules.map((r) => [r, { enabled: false }])) }), without);
  const serious = violations.filter((v) => v.impact === "serious" || v.impact === "critical");
  assert.deepEqual(
    serious.map((v) => `${v.id}: ${v.help} at ${v.nodes.map((n) => `${n.target.join(" ")} ${n.failureSummary}`).join("; ")}`),
    [],
  );
}

/** Waits until nothing moves any more, so that colours are as they stay. */
export const settled = (page) =>
  page.evaluate(async () => {
    // What has just been changed begins to move with the next frame.
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    await frame();
    await frame();
    const moving = () => document.getAnimations().filter((a) => a.playState === "running" && a.effect?.getComputedTiming().iterations !== Infinity);
    while (moving().length > 0) {
      await Promise.all(moving().map((a) => a.finished.catch(() => {})));
      await frame();
    }
  });

/** Shows a page as in the dark or in the light, and waits until it does. */
export async function scheme(page, colorScheme) {
  await page.emulateMedia({ colorScheme });
  await page.waitForFunction((wanted) => matchMedia(`(prefers-color-scheme: ${wanted})`).matches, colorScheme);
  await settled(page);
}

/** A call of the REST API with the administrator's token, apart from any browser. */
export async function api(method, path, body) {
  const resp = await fetch(url + path, {
    method,
    headers: { Authorization: `Bearer ${token}`, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await resp.text();
  assert.ok(resp.ok, `${method} ${path}: ${resp.status} ${text}`);
  return text ? JSON.parse(text) : {};
}

/** Makes a box and waits until it runs; gives it as the API shows it. */
export async function makeBox(name, { template = "tiny", ...more } = {}) {
  await api("POST", "/v1/boxes", { name, template, ...more });
  const box = await api("POST", `/v1/boxes/${name}:wait`, { states: ["STATE_RUNNING", "STATE_FAILED"], timeout: `${Math.ceil(patience / 1000)}s` });
  assert.equal(box.state, "STATE_RUNNING", JSON.stringify(box.failure));
  return box;
}

/** Deletes a box, if it is there. */
export async function dropBox(name) {
  await api("DELETE", `/v1/boxes/${name}`).catch(() => {});
}

/** Asks again and again until an answer is true. */
export async function until(what, ask) {
  const end = Date.now() + patience;
  for (;;) {
    if (await ask()) return;
    assert.ok(Date.now() < end, `not in ${patience / 1000} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
