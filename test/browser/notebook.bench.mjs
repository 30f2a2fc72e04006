// From the click on "New notebook" to the first output, in a browser: the page opens, the kernel starts, what is typed is saved and runs. Each box is a clone
// of its template's prebuild, which must be ready: its first notebook has the kernel that was prepared there, the second one's is started then. The Go
// benchmark TestBenchBrowser runs it.
import assert from "node:assert/strict";
import { after } from "node:test";
import { api, dropBox, makeBox, signIn, walk } from "./harness.mjs";

const rounds = Number(process.env.CARREL_ROUNDS || 9);
const code = "import numpy as np\nprint(np.arange(4).sum(), 'is there')";
const names = Array.from({ length: rounds }, (_, i) => `bench-${Date.now().toString(36)}-${i}`);
after(() => Promise.all(names.map(dropBox)));

const spread = (all) => {
  const ms = [...all].sort((a, b) => a - b).map(Math.round);
  return `${ms[ms.length >> 1]} (${ms[0]} to ${ms.at(-1)})`;
};

walk("new notebook → first output", async ({ page }) => {
  const prepared = [];
  const begun = [];
  let signedIn = false;
  for (const name of names) {
    // Of the template's own size: a box of another size is not cloned.
    const box = await makeBox(name, { template: "python" });
    assert.equal(box.startedFrom, "prebuild", box.notice);
    for (const times of [prepared, begun]) {
      const path = `/boxes/${box.id}/notebook`;
      if (signedIn) await page.goto(new URL(path, page.url()).href);
      else await signIn(page, { path });
      signedIn = true;
      await page.getByRole("button", { name: "New notebook", exact: true }).waitFor();
      const clicked = performance.now();
      await page.getByRole("button", { name: "New notebook", exact: true }).click();
      await page.locator(".nb-cell .cm-content").click();
      await page.keyboard.insertText(code);
      await page.keyboard.press("Shift+Enter");
      await page.getByText("6 is there", { exact: true }).waitFor();
      times.push(performance.now() - clicked);
      const file = new URL(page.url()).searchParams.get("path");
      const kernel = (await api("GET", `/v1/boxes/${box.id}/status`)).kernels.find((k) => k.path.endsWith(`/${file.split("/").pop()}`));
      assert.equal(kernel?.prepared, times === prepared, `the kernel of ${file}`);
    }
    await dropBox(name);
  }
  console.log(`# new notebook → first output, prepared kernel, ms: ${spread(prepared)}`);
  console.log(`# new notebook → first output, kernel started then, ms: ${spread(begun)}`);
});
