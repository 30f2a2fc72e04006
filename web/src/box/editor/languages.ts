// The language of a file, by its name. Each is loaded when a file needs it.

import { LanguageSupport, type StreamParser, StreamLanguage } from "@codemirror/language";

const stream = (parser: StreamParser<unknown>): LanguageSupport => new LanguageSupport(StreamLanguage.define(parser));
const clike = () => import("@codemirror/legacy-modes/mode/clike");

interface Language {
  name: string;
  files: RegExp;
  load: () => Promise<LanguageSupport>;
}

const languages: readonly Language[] = [
  { name: "Python", files: /\.(pyw?|pyi|bzl)$|^(SConstruct|BUILD)$/i, load: async () => (await import("@codemirror/lang-python")).python() },
  { name: "JavaScript", files: /\.([cm]?js|jsx)$/i, load: async () => (await import("@codemirror/lang-javascript")).javascript({ jsx: true }) },
  { name: "TypeScript", files: /\.([cm]?ts)$/i, load: async () => (await import("@codemirror/lang-javascript")).javascript({ typescript: true }) },
  { name: "TypeScript JSX", files: /\.tsx$/i, load: async () => (await import("@codemirror/lang-javascript")).javascript({ typescript: true, jsx: true }) },
  { name: "JSON", files: /\.(json|jsonl|jsonc|geojson|webmanifest|ipynb)$|^\.(eslintrc|prettierrc)$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/javascript")).json) },
  {
    name: "Markdown",
    files: /\.(md|markdown|mdx)$/i,
    load: async () => {
      const { markdown, markdownLanguage } = await import("@codemirror/lang-markdown");
      return markdown({ base: markdownLanguage });
    },
  },
  { name: "HTML", files: /\.(x?html?|vue|svelte)$/i, load: async () => (await import("@codemirror/lang-html")).html() },
  { name: "CSS", files: /\.css$/i, load: async () => (await import("@codemirror/lang-css")).css() },
  { name: "Sass", files: /\.s[ac]ss$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/css")).sCSS) },
  { name: "SQL", files: /\.(sql|ddl)$/i, load: async () => (await import("@codemirror/lang-sql")).sql() },
  { name: "YAML", files: /\.ya?ml$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/yaml")).yaml) },
  { name: "TOML", files: /\.toml$|^(Cargo|poetry|uv)\.lock$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/toml")).toml) },
  { name: "Shell", files: /\.(sh|bash|zsh|ksh)$|^(\.bashrc|\.profile|\.bash_\w+|\.zshrc|\.env.*)$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/shell")).shell) },
  { name: "Go", files: /\.go$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/go")).go) },
  { name: "Rust", files: /\.rs$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/rust")).rust) },
  { name: "C", files: /\.[ch]$/i, load: async () => stream((await clike()).c) },
  { name: "C++", files: /\.(cc|cpp|cxx|hh|hpp|hxx|cu|cuh|ino)$/i, load: async () => stream((await clike()).cpp) },
  { name: "Java", files: /\.java$/i, load: async () => stream((await clike()).java) },
  { name: "C#", files: /\.cs$/i, load: async () => stream((await clike()).csharp) },
  { name: "Kotlin", files: /\.kts?$/i, load: async () => stream((await clike()).kotlin) },
  { name: "Scala", files: /\.(scala|sbt)$/i, load: async () => stream((await clike()).scala) },
  { name: "Dockerfile", files: /^(Docker|Container)file(\..*)?$|\.dockerfile$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/dockerfile")).dockerFile) },
  { name: "XML", files: /\.(xml|svg|xsd|xslt?|plist)$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/xml")).xml) },
  { name: "Properties", files: /\.(ini|cfg|conf|properties|desktop|service)$|^\.(gitconfig|editorconfig|npmrc)$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/properties")).properties) },
  { name: "Diff", files: /\.(diff|patch)$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/diff")).diff) },
  { name: "Ruby", files: /\.(rb|rake)$|^(Rake|Gem)file$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/ruby")).ruby) },
  { name: "Lua", files: /\.lua$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/lua")).lua) },
  { name: "Perl", files: /\.(pl|pm)$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/perl")).perl) },
  { name: "R", files: /\.r$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/r")).r) },
  { name: "Julia", files: /\.jl$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/julia")).julia) },
  { name: "LaTeX", files: /\.(tex|sty|cls|bib)$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/stex")).stex) },
  { name: "Protocol Buffers", files: /\.proto$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/protobuf")).protobuf) },
  { name: "CMake", files: /\.cmake$|^CMakeLists\.txt$/i, load: async () => stream((await import("@codemirror/legacy-modes/mode/cmake")).cmake) },
];

/** Programs that the first line of a file may name. */
const programs: readonly [RegExp, string][] = [
  [/^#!.*\bpython/, "Python"],
  [/^#!.*\b(node|deno|bun)\b/, "JavaScript"],
  [/^#!.*\b(sh|bash|dash|zsh|ksh)\b/, "Shell"],
  [/^#!.*\bperl/, "Perl"],
  [/^#!.*\bruby/, "Ruby"],
];

/** The language of a file by its name or, without an ending, by its first line; undefined: plain text. */
export function languageOf(name: string, firstLine = ""): Language | undefined {
  const found = languages.find((l) => l.files.test(name));
  if (found) return found;
  const program = programs.find(([line]) => line.test(firstLine))?.[1];
  return program === undefined ? undefined : languages.find((l) => l.name === program);
}
