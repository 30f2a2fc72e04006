// From the click on "New notebook" to the first output, in a browser: the page opens, the kernel starts, what is typed is saved and runs. The first notebook
// of a box has the kernel that its template prepared; the second one's is started then. The Go benchmark TestBenchBrowser runs it.
import { after } from "node:test";
import { dropBox, makeBox, signIn, walk } from "./harness.mjs";

const rounds = 9;
const code = "import numpy as np\nprint(np.arange(4).sum(), 'is there')";
const size = { resources: { homeBytes: String(1 << 30), rootBytes: String(1 << 30), memoryBytes: String(1 << 30) } };
const names = Array.from({ length: rounds }, (_, i) => `bench-${Date.now().toString(36)}-${i}`);
after(() => Promise.all(names.map(dropBox)));

const spread = (all) => {
  const ms = [...all].sort((a, b) => a - b).map(Math.round);
  return `${ms[ms.length >> 1]} (${ms[0]} to ${ms.at(-1)})`;
};

walk("new notebook → first output", async ({ page }) => {
  const first = [];
  const second = [];
  const from = new Set();
  let signedIn = false;
  for (const name of names) {
    const box = await makeBox(name, { template: "python", ...size });
    from.add(box.startedFrom);
    for (const times of [first, second]) {
      const path = `/boxes/${box.id}/notebook`;
      if (signedIn) await page.goto(new URL(path, page.url()).href);
      else await signIn(page, { path });
      signedIn = true;
      await page.getByRole("button", { name: "New notebook", exact: true }).waitFor();
      const begun = performance.now();
      await page.getByRole("button", { name: "New notebook", exact: true }).click();
      await page.locator(".nb-cell .cm-content").click();
      await page.keyboard.insertText(code);
      await page.keyboard.press("Shift+Enter");
      await page.getByText("6 is there", { exact: true }).waitFor();
      times.push(performance.now() - begun);
    }
    await dropBox(name);
  }
  console.log(`# boxes began from: ${[...from]}`);
  console.log(`# new notebook → first output, prepared kernel, ms: ${spread(first)}`);
  console.log(`# new notebook → first output, kernel started then, ms: ${spread(second)}`);
});
