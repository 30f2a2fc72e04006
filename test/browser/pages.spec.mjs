// The pages outside a box: signing in, boxes and their states, making one, machines, account, palette, phone, colours.
import assert from "node:assert/strict";
import { accessible, api, dropBox, makeBox, phone, shot, signIn, token, until, url, walk } from "./harness.mjs";

walk("nobody sees anything before signing in, and the token is nowhere after", async ({ page, context }) => {
  await page.goto(url);
  await page.getByRole("heading", { name: "Sign in to Carrel" }).waitFor();
  await accessible(page);
  await shot(page, "signin");
  await page.getByLabel("API token").fill("carrel_nobody");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();
  await signIn(page);
  await page.getByRole("heading", { name: "Boxes", exact: true }).waitFor();
  const reach = await page.evaluate(() => JSON.stringify([document.cookie, { ...localStorage }, { ...sessionStorage }, document.documentElement.outerHTML]));
  assert.ok(!reach.includes(token) && !reach.includes("carrel_"), "a script can read a credential");
  const [cookie] = (await context.cookies()).filter((c) => c.name === "carrel_session");
  assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/"]);
  await page.getByRole("button", { name: /Signed in as/ }).click();
  await page.getByRole("menuitem", { name: "Sign out" }).click();
  await page.getByRole("heading", { name: "Sign in to Carrel" }).waitFor();
  assert.deepEqual((await context.cookies()).filter((c) => c.name === "carrel_session"), []);
});

walk("a sign-in ends with the token that it came from", async ({ page }) => {
  const made = await api("POST", "/v1/tokens", { description: "for a moment" });
  await signIn(page, { as: made.secret });
  await page.getByRole("heading", { name: "Boxes", exact: true }).waitFor();
  await api("DELETE", `/v1/tokens/${made.token.id}`);
  // The open stream of boxes is cut, and the page goes to sign in.
  await page.getByRole("heading", { name: "Sign in to Carrel" }).waitFor();
});

walk("a link signs in once, and never in the place of another user without asking", async ({ page, context }) => {
  const { url: link } = await api("POST", "/v1/web:open", {});
  await page.goto(link);
  await page.getByRole("heading", { name: "Boxes", exact: true }).waitFor();
  assert.equal(new URL(page.url()).pathname, "/");
  const second = await context.newPage();
  await second.goto(link);
  await second.getByRole("alert").getByText("used already").waitFor();
  const name = `guest-${Date.now().toString(36)}`;
  const user = await api("POST", "/v1/users", { name });
  await api("PUT", `/v1/orgs/default/members/${user.id}`, { role: "viewer" });
  const guest = await api("POST", "/v1/tokens", { user: user.id, description: "guest" });
  const resp = await fetch(`${url}/v1/web:open`, { method: "POST", headers: { Authorization: `Bearer ${guest.secret}`, "Content-Type": "application/json" }, body: "{}" });
  const other = (await resp.json()).url;
  // A gateway hears of a new user a moment later; looking at a link does not use it.
  await until("the gateway knows the guest's name", async () => {
    await second.goto(other);
    await second.getByRole("heading", { name: "Sign in with this link?" }).waitFor();
    return (await second.getByRole("button", { name: `Sign in as ${name}` }).count()) === 1;
  });
  await second.getByText("You are signed in as admin now").waitFor();
  await accessible(second);
  await shot(second, "signin-link");
  await second.getByRole("button", { name: `Sign in as ${name}` }).click();
  await second.getByRole("button", { name: `Signed in as ${name}` }).waitFor();
  // A viewer looks and changes nothing; machines are not for them.
  assert.equal(await second.getByRole("link", { name: "New box" }).count(), 0);
  assert.equal(await second.getByRole("link", { name: "Machines" }).count(), 0);
  await second.goto(`${url}/nodes`);
  await second.getByText("There is no such page").waitFor();
});

walk("a box from its template to its end", async ({ page }) => {
  let name = `walk-${Date.now().toString(36)}`;
  await signIn(page, { path: "/new?template=tiny" });
  await page.getByRole("radio", { name: /^tiny/ }).waitFor();
  await accessible(page);
  await shot(page, "new-box");
  await page.getByLabel("Name", { exact: true }).fill("No Good!");
  await page.getByText("Lower case letters, digits and hyphens").waitFor();
  await page.getByLabel("Name", { exact: true }).fill(name);
  await page.getByText("Size, sleep and variables").click();
  await page.getByRole("textbox", { name: "Memory" }).fill("256 MiB");
  await page.getByRole("button", { name: "Add a variable" }).click();
  await page.getByLabel("Name of variable 1").fill("GREETING");
  await page.getByLabel("Value of variable 1").fill("hello");
  await shot(page, "new-box-more");
  await page.getByRole("button", { name: "Create box" }).click();
  await page.getByRole("heading", { name: `${name} is ready` }).waitFor();
  await page.getByText(/^Ready after/).waitFor();
  await shot(page, "new-box-ready");
  const box = await api("GET", `/v1/boxes/${name}`);
  assert.equal(box.resources.memoryBytes, String(256 << 20));
  assert.equal(box.env.GREETING, "hello");

  await page.getByRole("link", { name: `Open ${name}` }).click();
  await page.getByRole("heading", { name, exact: true }).waitFor();
  await page.getByRole("navigation", { name: "Parts of the box" }).getByRole("link", { name: "Events" }).click();
  await page.getByRole("log").getByText("created", { exact: true }).waitFor();
  await accessible(page);
  await shot(page, "box-events");
  // What its commands put out is kept, also when nobody looks.
  await api("POST", `/v1/boxes/${box.id}/processes`, { args: ["sh", "-c", "echo out-$((40+2)); echo oops >&2; exit 3"] });
  await page.getByRole("navigation", { name: "Parts of the box" }).getByRole("link", { name: "Logs" }).click();
  await page.getByRole("button", { name: /^echo out-.*Failed with 3/ }).click();
  await page.getByRole("region", { name: "Output" }).getByText("out-42").waitFor();
  await page.getByRole("region", { name: "Output" }).getByText("oops").waitFor();
  await accessible(page);
  await shot(page, "box-logs");

  // Its name and its size can be changed; the window begins where one types.
  await page.getByRole("button", { name: `What to do with ${name}` }).click();
  await page.getByRole("menuitem", { name: /^Change…/ }).click();
  const change = page.getByRole("dialog", { name: `Change ${name}` });
  await until("the name has the focus", () => change.getByLabel("Name", { exact: true }).evaluate((e) => e === document.activeElement));
  await accessible(page);
  await shot(page, "box-change");
  name += "-b";
  await page.keyboard.press("End");
  await page.keyboard.type("-b");
  await change.getByRole("textbox", { name: "Memory" }).fill("384 MiB");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name, exact: true }).waitFor();
  assert.equal((await api("GET", `/v1/boxes/${name}`)).resources.memoryBytes, String(384 << 20));

  // Every verb says what becomes of memory and files.
  await page.getByRole("navigation", { name: "Parts of the box" }).getByRole("link", { name: "Events" }).click();
  await page.getByRole("button", { name: `What to do with ${name}` }).click();
  await page.getByRole("menuitem", { name: /^Stop.*Keeps files.*memory is given up/ }).waitFor();
  await page.getByRole("menuitem", { name: /^Delete.*Removes memory and files for good/ }).waitFor();
  await shot(page, "box-verbs");
  await page.getByRole("menuitem", { name: /^Pause/ }).click();
  await page.locator('[data-state="Paused"]').waitFor();
  await page.getByText("Last kept safe").waitFor();
  await page.getByRole("log").getByText("paused", { exact: true }).first().waitFor();
  await page.getByRole("button", { name: `Resume ${name}` }).click();
  await page.locator('[data-state="Running"]').waitFor();

  await page.getByRole("button", { name: `What to do with ${name}` }).click();
  await page.getByRole("menuitem", { name: /^Delete/ }).click();
  const dialog = page.getByRole("dialog", { name: `Delete ${name}?` });
  assert.ok(await dialog.getByRole("button", { name: "Delete" }).isDisabled(), "deleting must ask for the name");
  await until("the field has the focus", () => dialog.getByLabel(`Type ${name} to delete it`).evaluate((e) => e === document.activeElement));
  await page.keyboard.type(name);
  await accessible(page);
  await shot(page, "box-delete");
  await dialog.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("heading", { name: "Boxes", exact: true }).waitFor();
  await until("the box is off the list", async () => (await page.getByRole("link", { name, exact: true }).count()) === 0);
});

walk("the list lives: states change by themselves, and the connection comes back", async ({ page, context }) => {
  const name = `live-${Date.now().toString(36)}`;
  await signIn(page);
  await makeBox(name);
  const row = page.getByRole("listitem").filter({ has: page.getByRole("link", { name, exact: true }) });
  await row.locator('[data-state="Running"]').waitFor();
  await accessible(page);
  await shot(page, "boxes");
  await row.getByRole("button", { name: `Pause ${name}` }).click();
  await row.locator('[data-state="Paused"]').waitFor();
  // The menu of a row lies over the rows below it.
  const other = `live-${Date.now().toString(36)}`;
  await api("POST", "/v1/boxes", { name: other, template: "tiny" });
  const above = page.getByRole("listitem").filter({ has: page.getByRole("link", { name: other, exact: true }) });
  await above.getByRole("button", { name: `What to do with ${other}` }).click();
  await page.getByRole("menu").waitFor();
  const covered = await page.getByRole("menu").evaluate((menu) => {
    const at = menu.getBoundingClientRect();
    return Array.from({ length: 20 }, (_, i) => document.elementFromPoint(at.right - 30, at.top + 4 + ((at.height - 8) * i) / 20)).filter((e) => e && !menu.contains(e)).length;
  });
  assert.equal(covered, 0, "something lies over the menu");
  await page.keyboard.press("Escape");
  await dropBox(other);
  // Find it, and find nothing.
  await page.getByRole("searchbox").fill("tiny paused");
  await row.waitFor();
  await page.getByRole("searchbox").fill("no such box");
  await page.getByText("No box fits.").waitFor();
  await page.getByRole("button", { name: "Show all" }).click();
  await row.waitFor();
  // What happens while the network is gone is there when it is back.
  await context.setOffline(true);
  await api("POST", `/v1/boxes/${name}:stop`, {});
  await context.setOffline(false);
  await row.locator('[data-state="Stopped"]').waitFor();
  await dropBox(name);
  await row.waitFor({ state: "detached" });
});

walk("the first page is small, and all works over a link of 300 ms", async ({ page, context }) => {
  const name = `slow-${Date.now().toString(36)}`;
  await makeBox(name);
  await signIn(page);
  await page.getByRole("link", { name, exact: true }).waitFor();
  const fresh = await context.newPage();
  const wire = await context.newCDPSession(fresh);
  const files = new Map();
  await wire.send("Network.enable");
  await wire.send("Network.setCacheDisabled", { cacheDisabled: true });
  await wire.send("Network.emulateNetworkConditions", { offline: false, latency: 300, downloadThroughput: -1, uploadThroughput: -1 });
  wire.on("Network.requestWillBeSent", (e) => files.set(e.requestId, { url: e.request.url, bytes: 0 }));
  wire.on("Network.dataReceived", (e) => (files.get(e.requestId).bytes += e.encodedDataLength));
  await fresh.goto(url);
  const row = fresh.getByRole("listitem").filter({ has: fresh.getByRole("link", { name, exact: true }) });
  await row.locator('[data-state="Running"]').waitFor();
  let list = [];
  const scripts = () => list.filter((f) => /\.(js|css)$/.test(f.url));
  await until("what was asked for is there", () => {
    list = [...files.values()];
    return scripts().length > 1 && scripts().every((f) => f.bytes > 0);
  });
  const foreign = list.filter((f) => !f.url.startsWith(`${url}/`) && !f.url.startsWith("data:"));
  assert.deepEqual(foreign, [], "loaded from elsewhere");
  const sum = list.reduce((n, f) => n + f.bytes, 0);
  console.log(`first page: ${list.length} requests, ${Math.round(sum / 1000)} kB as sent`);
  assert.ok(sum <= 400_000, `the first page is ${sum} bytes as sent: ${list.map((f) => `${f.url} ${f.bytes}`).join(", ")}`);
  await row.getByRole("button", { name: `Pause ${name}` }).click();
  await row.locator('[data-state="Paused"]').waitFor();
  await dropBox(name);
});

walk("a port opens with the sign-in of the pages, also from a link elsewhere", async ({ page, context }) => {
  const name = `port-${Date.now().toString(36)}`;
  const box = await makeBox(name, { template: "python" });
  await api("POST", `/v1/boxes/${box.id}/processes`, { args: ["python3", "-m", "http.server", "8000"] });
  const at = new URL(url);
  at.hostname = `8000-${box.id}.localhost`;
  await until("the program listens", async () => (await api("GET", `/v1/boxes/${box.id}/listeners`)).listeners?.some((l) => l.port === 8000));
  await signIn(page);
  await page.goto(at.href);
  await page.getByRole("heading", { name: "Directory listing for /" }).waitFor();
  assert.deepEqual((await context.cookies(at.href)).map((c) => c.name), ["carrel_port"], "the session's cookie is the front door's alone");
  // From a page of another site the browser keeps the session's cookie back at first.
  await context.clearCookies({ name: "carrel_port" });
  await page.route("http://elsewhere.test/", (route) => route.fulfill({ contentType: "text/html", body: `<a href="${at.href}">go</a>` }));
  await page.goto("http://elsewhere.test/");
  await page.getByRole("link", { name: "go" }).click();
  await page.getByRole("heading", { name: "Directory listing for /" }).waitFor();
  await dropBox(name);
});

walk("a fault of one part leaves the rest alive", async ({ page }) => {
  const name = `fault-${Date.now().toString(36)}`;
  const box = await makeBox(name);
  await page.route("**/assets/events-*.js", (route) => route.abort());
  await page.route("**/carrel.v1.TokenService/ListTokens", (route) => route.fulfill({ status: 503, contentType: "application/json", body: JSON.stringify({ code: "unavailable", message: "the control plane does not answer at the moment" }) }));
  await signIn(page, { path: `/boxes/${box.id}/events` });
  await page.getByText("Events could not be loaded").waitFor();
  await page.locator('[data-state="Running"]').waitFor();
  await page.getByRole("button", { name: `Pause ${name}` }).waitFor();
  await accessible(page);
  await shot(page, "box-fault");
  await page.unroute("**/assets/events-*.js");
  await page.getByRole("button", { name: "Load the page again" }).click();
  await page.getByRole("log").getByText("created", { exact: true }).waitFor();
  await page.goto(`${url}/account`);
  await page.getByText("The control plane does not answer at the moment.").waitFor();
  await page.getByText("No SSH keys yet.").or(page.getByRole("button", { name: /^Remove/ })).first().waitFor();
  await page.unroute("**/carrel.v1.TokenService/ListTokens");
  await page.getByRole("button", { name: "Try again" }).click();
  await page.getByRole("button", { name: /^Revoke/ }).first().waitFor();
  await dropBox(name);
});

walk("keys and the palette reach everything", async ({ page }) => {
  const name = `keys-${Date.now().toString(36)}`;
  await makeBox(name);
  await signIn(page);
  await page.getByRole("link", { name, exact: true }).waitFor();
  await page.keyboard.press("Control+k");
  await page.getByRole("combobox", { name: "Find a command" }).waitFor();
  await page.keyboard.type(name);
  await page.getByRole("option", { name: new RegExp(name) }).first().waitFor();
  await accessible(page);
  await shot(page, "palette");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name, exact: true }).waitFor();
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keyboard shortcuts" }).waitFor();
  await accessible(page);
  await shot(page, "shortcuts");
  await page.keyboard.press("Escape");
  await page.keyboard.press("g");
  await page.keyboard.press("n");
  await page.getByRole("heading", { name: "New box" }).waitFor();
  await page.keyboard.press("g");
  await page.keyboard.press("m");
  await page.getByRole("heading", { name: "Machines" }).waitFor();
  await page.getByRole("link", { name, exact: true }).waitFor();
  await page.getByRole("meter", { name: "Memory" }).waitFor();
  // What is prepared, where, how large, and since when.
  await page.getByText(/python@1 on .* MiB; made in .* s, /).waitFor();
  await accessible(page);
  await shot(page, "machines");
  await dropBox(name);
});

walk("the account: a token and an SSH key come and go", async ({ page, context }) => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const name = `token-${Date.now().toString(36)}`;
  await signIn(page, { path: "/account" });
  await page.getByRole("button", { name: "New token" }).click();
  await page.getByLabel("What is it for?").fill(name);
  await page.getByRole("button", { name: "Make token" }).click();
  const dialog = page.getByRole("dialog", { name: "Your new token" });
  const secret = await dialog.locator("code").textContent();
  assert.match(secret, /^carrel_/);
  await accessible(page);
  await dialog.getByRole("button", { name: "Done" }).click();
  assert.equal((await fetch(`${url}/v1/whoami`, { headers: { Authorization: `Bearer ${secret}` } })).status, 200);
  await page.getByRole("button", { name: "Add a key" }).click();
  const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDlMSHDAM07k7xJJQlVm1E0O5tKZWpj/KrOumJ9AjHdb a@b";
  await page.getByLabel("Public key").fill("not a key");
  await page.getByRole("dialog").getByRole("button", { name: "Add key" }).click();
  await page.getByRole("alert").first().waitFor();
  await page.getByLabel("Public key").fill(key);
  await page.getByLabel("Name", { exact: true }).fill(name);
  await page.getByRole("dialog").getByRole("button", { name: "Add key" }).click();
  await page.getByRole("button", { name: `Remove ${name}` }).waitFor();
  await accessible(page);
  await shot(page, "account");
  await page.getByRole("button", { name: `Remove ${name}` }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
  await page.getByRole("button", { name: `Remove ${name}` }).waitFor({ state: "detached" });
  await page.getByRole("button", { name: `Revoke ${name}` }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Revoke" }).click();
  await page.getByRole("button", { name: `Revoke ${name}` }).waitFor({ state: "detached" });
  await until("the token is refused", async () => (await fetch(`${url}/v1/whoami`, { headers: { Authorization: `Bearer ${secret}` } })).status === 401);
});

walk("in the dark, and on a phone", { ...phone, colorScheme: "dark" }, async ({ page }) => {
  const name = `small-${Date.now().toString(36)}`;
  await makeBox(name);
  await signIn(page);
  const narrow = async () => assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), phone.viewport.width, `${page.url()} is wider than the phone`);
  await page.getByRole("link", { name, exact: true }).waitFor();
  await narrow();
  await accessible(page);
  await shot(page, "phone-boxes-dark");
  await page.getByRole("link", { name, exact: true }).tap();
  await page.getByRole("link", { name: "Events" }).tap();
  await page.getByRole("log").getByText("created", { exact: true }).waitFor();
  await narrow();
  await accessible(page);
  await shot(page, "phone-box-dark");
  for (const [path, heading] of [
    ["/new", "New box"],
    ["/nodes", "Machines"],
    ["/account", "Account"],
  ]) {
    await page.goto(url + path);
    await page.getByRole("heading", { name: heading, exact: true }).waitFor();
    await until("everything is loaded", async () => (await page.locator(".loading").count()) === 0);
    await narrow();
    await accessible(page);
    await shot(page, `phone${path.replace("/", "-")}-dark`);
  }
  await page.getByRole("button", { name: /Signed in as/ }).tap();
  await page.getByRole("menuitemradio", { name: "Light" }).tap();
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "light");
  await accessible(page);
  await shot(page, "phone-account-light");
  await dropBox(name);
});

walk("in the dark, on a desk", { colorScheme: "dark" }, async ({ page }) => {
  const name = `night-${Date.now().toString(36)}`;
  await makeBox(name);
  await signIn(page);
  await page.getByRole("link", { name, exact: true }).waitFor();
  await accessible(page);
  await shot(page, "boxes-dark");
  await page.goto(`${url}/new`);
  await page.getByRole("radio").first().waitFor();
  await accessible(page);
  await shot(page, "new-box-dark");
  await dropBox(name);
});
