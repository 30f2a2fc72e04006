// The language of a cell's text. Each is loaded when a notebook needs it.

import { LanguageSupport, StreamLanguage } from "@codemirror/language";

const loaders: Readonly<Record<string, () => Promise<LanguageSupport>>> = {
  python: async () => (await import("@codemirror/lang-python")).python(),
  markdown: async () => {
    const { markdown, markdownLanguage } = await import("@codemirror/lang-markdown");
    return markdown({ base: markdownLanguage });
  },
  javascript: async () => (await import("@codemirror/lang-javascript")).javascript(),
  typescript: async () => (await import("@codemirror/lang-javascript")).javascript({ typescript: true }),
  sql: async () => (await import("@codemirror/lang-sql")).sql(),
  r: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/r")).r)),
  julia: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/julia")).julia)),
  shell: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/shell")).shell)),
  ruby: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/ruby")).ruby)),
  go: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/go")).go)),
  rust: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/rust")).rust)),
  scala: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/clike")).scala)),
  haskell: async () => new LanguageSupport(StreamLanguage.define((await import("@codemirror/legacy-modes/mode/haskell")).haskell)),
};

const other: Readonly<Record<string, string>> = { ipython: "python", python3: "python", ir: "r", bash: "shell", sh: "shell", ecmascript: "javascript", node: "javascript" };

const loaded = new Map<string, Promise<LanguageSupport>>();

/** The language by the name that a kernel gives it, or null for one that has no colours here. */
export function language(name: string): Promise<LanguageSupport> | null {
  const lower = name.toLowerCase();
  const key = Object.hasOwn(other, lower) ? (other[lower] as string) : lower;
  if (!Object.hasOwn(loaders, key)) return null;
  let made = loaded.get(key);
  if (made === undefined) {
    made = (loaders[key] as () => Promise<LanguageSupport>)();
    made.catch(() => loaded.delete(key));
    loaded.set(key, made);
  }
  return made;
}
