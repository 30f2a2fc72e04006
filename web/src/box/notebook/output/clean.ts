// What markup of a box may be part of this page: structure and text. Never script, style, forms, frames, or anything that loads
// from elsewhere. Whatever needs more goes into a frame of another origin (frame.tsx). The one control is the box that a task of a list
// begins with, and nobody can press it.

import DOMPurify from "dompurify";

const tags = [
  "a abbr b blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img",
  "ins kbd li mark ol p pre q rp rt ruby s samp small span strong sub summary sup table tbody td tfoot th thead tr tt u ul var",
]
  .join(" ")
  .split(" ");
const attributes = "align alt border cellpadding cellspacing class colspan dir height href lang open reversed rowspan scope span src start title valign width".split(" ");

export interface CleanOptions {
  /** The address of a picture that markup names by a relative path or "attachment:"; "": none. */
  picture: (src: string) => string;
  /** Whether boxes that tasks of a list begin with are shown; all other input elements are always taken out. */
  tasks?: boolean;
}

const inside: CleanOptions = { picture: () => "" };
let options = inside;

const purify = DOMPurify(window);
purify.addHook("uponSanitizeElement", (node, data) => {
  if (data.tagName === "input" && !(options.tasks === true && isTaskBox(node as Element))) node.parentNode?.removeChild(node);
});
purify.addHook("uponSanitizeAttribute", (node, data) => {
  // What a task's box has is written anew below.
  if (node.nodeName === "INPUT") {
    data.keepAttr = data.attrName === "checked";
    return;
  }
  if (data.attrName === "checked") data.keepAttr = false;
  if (data.attrName === "src") {
    data.attrValue = pictureSource(data.attrValue, options);
    data.keepAttr = data.attrValue !== "";
    // The hook's word is the last one: it gives only addresses of its own making.
    data.forceKeepAttr = data.keepAttr && node.nodeName === "IMG";
  }
  if (data.attrName === "href") {
    const href = linkTarget(data.attrValue);
    data.attrValue = href;
    data.keepAttr = href !== "";
  }
  // Classes of this page's own could make markup look like its controls.
  if (data.attrName === "class") {
    data.attrValue = data.attrValue.split(/\s+/).filter((c) => allowedClass.test(c)).join(" ");
    data.keepAttr = data.attrValue !== "";
  }
});
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.nodeName === "INPUT") {
    node.setAttribute("type", "checkbox");
    node.setAttribute("disabled", "");
    node.setAttribute("aria-label", node.hasAttribute("checked") ? "Done" : "Not done");
  }
});

/** Tells whether an input is what markdown makes of "- [ ]": a check box that a list's item, or its first paragraph, begins with. */
function isTaskBox(el: Element): boolean {
  if (el.getAttribute("type")?.toLowerCase() !== "checkbox" || begins(el) === false) return false;
  const parent = el.parentElement;
  return parent?.nodeName === "LI" || (parent?.nodeName === "P" && parent.parentElement?.nodeName === "LI" && begins(parent));
}

function begins(el: Element): boolean {
  return el.previousElementSibling === null && (el.previousSibling?.textContent ?? "").trim() === "";
}

const allowedClass = /^(dataframe|language-[\w-]+|lang-[\w-]+|ansi-[\w-]+|hljs[\w-]*)$/;

/** Markup that may be part of the page. */
export function clean(markup: string, wanted: CleanOptions = inside): string {
  options = wanted;
  try {
    return purify.sanitize(markup, {
      ALLOWED_TAGS: [...tags, "input"],
      ALLOWED_ATTR: [...attributes, "checked"],
      ALLOW_DATA_ATTR: false,
      ALLOW_ARIA_ATTR: false,
      ALLOW_UNKNOWN_PROTOCOLS: false,
      SANITIZE_NAMED_PROPS: true,
      KEEP_CONTENT: true,
      RETURN_TRUSTED_TYPE: false,
    });
  } finally {
    options = inside;
  }
}

/** The address of a link that a person may follow: the web, mail, or a place on the same page of text; "": none. */
export function linkTarget(href: string): string {
  // eslint-disable-next-line no-control-regex
  const text = href.replace(/[\u0000-\u0020]+/g, (s) => (s.trim() === "" ? "" : s)).trim();
  if (!/^(https?:\/\/|mailto:)/i.test(text)) return "";
  try {
    const url = new URL(text);
    if (url.protocol === "mailto:") return url.href;
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : "";
  } catch {
    return "";
  }
}

function pictureSource(src: string, o: CleanOptions): string {
  const text = src.trim();
  if (/^data:image\/(png|jpeg|gif|webp|bmp);base64,[A-Za-z0-9+/=\s]+$/i.test(text)) return text;
  // SVG in an address is a picture too, and runs nothing as one.
  if (/^data:image\/svg\+xml[;,]/i.test(text)) return text;
  // A whole address would tell its host who looks, and when.
  if (/^[a-z][a-z0-9+.-]*:/i.test(text) && !text.startsWith("attachment:")) return "";
  if (text.startsWith("//") || text.startsWith("\\")) return "";
  return o.picture(text);
}

const simpleTags = new Set([...tags.filter((t) => t !== "img"), "html", "head", "body", "style", "img"]);

/**
 * Tells whether markup says the same when it was cleaned: tables and text, that is. Only such markup is shown in the page; all other goes
 * into a frame. The one thing that may be lost is the style that pandas gives its tables, since the page has one for them.
 */
export function isSimple(markup: string): boolean {
  if (markup.length > 500_000) return false;
  const doc = new DOMParser().parseFromString(markup, "text/html");
  for (const el of doc.querySelectorAll("*")) {
    const tag = el.nodeName.toLowerCase();
    if (!simpleTags.has(tag) || el.namespaceURI !== "http://www.w3.org/1999/xhtml") return false;
    if (tag === "style" && !(el.hasAttribute("scoped") && /^[\s.\w:,>{};-]*$/.test(el.textContent ?? "") && (el.textContent ?? "").includes(".dataframe"))) return false;
    if (tag === "img") return false;
    for (const { name, value } of el.attributes) {
      if (name === "scoped" && tag === "style") continue;
      if (name === "style" && /^text-align:\s*(left|right|center);?$/.test(value)) continue;
      if (name === "id" || name === "name" || !attributes.includes(name)) return false;
      if (name === "href" && linkTarget(value) === "") return false;
    }
  }
  return true;
}
