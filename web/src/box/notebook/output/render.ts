// Jupyter's own renderers for markdown, HTML and LaTeX, in a chunk of their own. Everything that they make is cleaned on its way into the
// page; formulas are set by KaTeX, which makes nothing but boxes and text.

import { renderHTML, renderLatex, renderMarkdown } from "@jupyterlab/rendermime/lib/renderers.js";
import type { IRenderMime } from "@jupyterlab/rendermime-interfaces";
import type { KatexOptions } from "katex";
import renderMath from "katex/contrib/auto-render";
import "katex/dist/katex.min.css";
import { Marked } from "marked";
import { clean, type CleanOptions } from "./clean";

const marked = new Marked({ gfm: true, breaks: false, async: false });
const markdownParser: IRenderMime.IMarkdownParser = { render: (source) => Promise.resolve(marked.parse(source) as string) };

const mathOptions: KatexOptions = {
  throwOnError: false,
  strict: "ignore",
  // No \href, \url, \includegraphics, \htmlClass and the like.
  trust: false,
  maxSize: 50,
  maxExpand: 500,
  output: "htmlAndMathml",
};

const latexTypesetter: IRenderMime.ILatexTypesetter = {
  typeset: (host) => {
    renderMath(host, {
      ...mathOptions,
      delimiters: [
        { left: "$$", right: "$$", display: true },
        { left: "\\[", right: "\\]", display: true },
        { left: "\\(", right: "\\)", display: false },
        { left: "$", right: "$", display: false },
        ...["equation", "align", "alignat", "gather", "CD"].flatMap((e) => [
          { left: `\\begin{${e}}`, right: `\\end{${e}}`, display: true },
          { left: `\\begin{${e}*}`, right: `\\end{${e}*}`, display: true },
        ]),
      ],
      ignoredTags: ["script", "noscript", "style", "textarea", "pre", "code", "option"],
      errorCallback: () => {},
    });
  },
};

export type RenderKind = "markdown" | "html" | "latex";

/** Renders a box's source into an element of the page, in place of what is there. */
export async function render(kind: RenderKind, host: HTMLElement, source: string, options: CleanOptions): Promise<void> {
  // Made apart and put in at the end: what is shown changes at once, and never halfway.
  const made = document.createElement("div");
  const common = {
    host: made,
    source,
    trusted: false,
    sanitizer: { sanitize: (markup: string) => clean(markup, { ...options, tasks: kind === "markdown" }), getAutolink: () => false },
    resolver: null,
    linkHandler: null,
    shouldTypeset: true,
    latexTypesetter,
  };
  if (kind === "markdown") await renderMarkdown({ ...common, markdownParser });
  else if (kind === "html") await renderHTML(common);
  else await renderLatex(common);
  // Links of headings to themselves lead nowhere in a page that is not the document.
  for (const link of made.querySelectorAll("a.jp-InternalAnchorLink")) link.remove();
  for (const table of made.querySelectorAll("table")) {
    const scroller = document.createElement("div");
    scroller.className = "nb-table";
    scroller.tabIndex = 0;
    scroller.setAttribute("role", "region");
    scroller.setAttribute("aria-label", "Table");
    table.replaceWith(scroller);
    scroller.append(table);
  }
  for (const img of made.querySelectorAll("img")) {
    if (!img.hasAttribute("alt")) img.alt = "";
    img.loading = "lazy";
  }
  host.replaceChildren(...made.childNodes);
}
