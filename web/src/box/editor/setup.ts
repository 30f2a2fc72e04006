// How a file is edited: CodeMirror, coloured by the page's own variables.

import { closeBrackets, closeBracketsKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { HighlightStyle, bracketMatching, foldGutter, foldKeymap, indentOnInput, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { highlightSelectionMatches, search, searchKeymap } from "@codemirror/search";
import { EditorState, type Extension } from "@codemirror/state";
import { EditorView, crosshairCursor, drawSelection, dropCursor, highlightActiveLine, highlightActiveLineGutter, highlightSpecialChars, keymap, lineNumbers, rectangularSelection } from "@codemirror/view";
import { tags as t } from "@lezer/highlight";

const colours = HighlightStyle.define([
  { tag: [t.keyword, t.operatorKeyword, t.modifier, t.controlKeyword, t.definitionKeyword, t.moduleKeyword], color: "var(--ed-keyword)" },
  { tag: [t.string, t.special(t.string), t.regexp, t.attributeValue], color: "var(--ed-string)" },
  { tag: [t.number, t.bool, t.null, t.atom, t.unit], color: "var(--ed-number)" },
  { tag: [t.comment, t.quote], color: "var(--ed-comment)", fontStyle: "italic" },
  { tag: [t.function(t.variableName), t.function(t.propertyName), t.attributeName], color: "var(--ed-function)" },
  { tag: [t.definition(t.variableName), t.className, t.typeName, t.namespace, t.tagName], color: "var(--ed-name)" },
  { tag: [t.meta, t.processingInstruction], color: "var(--ed-comment)" },
  { tag: t.heading, fontWeight: "700", color: "var(--ed-name)" },
  { tag: t.strong, fontWeight: "700" },
  { tag: t.emphasis, fontStyle: "italic" },
  { tag: t.strikethrough, textDecoration: "line-through" },
  { tag: [t.link, t.url], color: "var(--accent)", textDecoration: "underline" },
  { tag: t.inserted, color: "var(--good)" },
  { tag: [t.deleted, t.invalid], color: "var(--bad)" },
]);

const look = EditorView.theme({
  "&": { height: "100%", backgroundColor: "var(--card)", color: "var(--ink)", fontSize: "0.875rem" },
  "&.cm-focused": { outline: "none" },
  ".cm-content": { fontFamily: "var(--mono)", caretColor: "var(--accent)", lineHeight: "1.55", padding: "0.5rem 0" },
  ".cm-scroller": { fontFamily: "var(--mono)", overflow: "auto" },
  ".cm-line": { padding: "0 0.75rem" },
  ".cm-cursor": { borderLeftColor: "var(--accent)", borderLeftWidth: "2px" },
  ".cm-gutters": { backgroundColor: "var(--card)", color: "var(--soft)", border: "0", borderRight: "1px solid var(--edge)" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "color-mix(in srgb, var(--sunk) 55%, transparent)" },
  ".cm-selectionBackground, &.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground": { backgroundColor: "var(--ed-selection)" },
  ".cm-matchingBracket": { backgroundColor: "var(--ed-match) !important", color: "inherit !important" },
  ".cm-selectionMatch": { backgroundColor: "var(--ed-match)" },
  ".cm-searchMatch": { backgroundColor: "var(--busy-wash)", outline: "1px solid var(--busy)" },
  ".cm-searchMatch-selected": { backgroundColor: "var(--accent-wash)", outline: "2px solid var(--accent)" },
  ".cm-specialChar": { color: "var(--bad)" },
  ".cm-foldPlaceholder": { backgroundColor: "var(--sunk)", border: "1px solid var(--edge)", color: "var(--soft)" },
  ".cm-panels": { backgroundColor: "var(--sunk)", color: "var(--ink)", borderColor: "var(--edge) !important" },
  ".cm-panel.cm-search": { padding: "0.5rem 2rem 0.5rem 0.75rem", fontFamily: "var(--sans)" },
  ".cm-panel.cm-search label": { fontSize: "0.8438rem", marginRight: "0.5rem" },
  ".cm-textfield": { width: "auto", minHeight: "1.9rem", padding: "0.1rem 0.5rem", background: "var(--card)", border: "1px solid var(--line)", borderRadius: "6px", fontSize: "0.8438rem" },
  ".cm-button": { minHeight: "1.9rem", padding: "0.1rem 0.6rem", background: "var(--card)", backgroundImage: "none", border: "1px solid var(--edge)", borderRadius: "6px", fontSize: "0.8438rem", color: "var(--ink)" },
  ".cm-panel.cm-search [name=close]": { right: "0.5rem", top: "0.4rem", fontSize: "1.25rem", color: "var(--ink)" },
  ".cm-tooltip": { backgroundColor: "var(--card)", border: "1px solid var(--edge)" },
  ".cm-changedLine": { backgroundColor: "var(--busy-wash) !important" },
  ".cm-changedText": { background: "color-mix(in srgb, var(--busy) 30%, transparent) !important" },
  ".cm-deletedChunk": { backgroundColor: "var(--bad-wash) !important", padding: "0.2rem 0.75rem" },
  ".cm-deletedChunk .cm-deletedText": { background: "color-mix(in srgb, var(--bad) 18%, transparent) !important" },
  ".cm-deletedChunk .cm-chunkButtons": { position: "static", display: "flex", justifyContent: "flex-end", gap: "0.5rem", padding: "0.2rem 0" },
  ".cm-deletedChunk .cm-chunkButtons button": { minHeight: "2.25rem", margin: "0", padding: "0 0.8rem", border: "1px solid var(--edge)", borderRadius: "var(--round)", background: "var(--card)", color: "var(--accent)", font: "600 var(--t-small) var(--sans)" },
  ".cm-collapsedLines": { color: "var(--soft) !important", background: "var(--sunk) !important", fontFamily: "var(--sans)" },
  ".cm-collapsedLines:before, .cm-collapsedLines:after": { content: '"\\22ef" !important' },
});

/** How the lines of a text are indented: with what most of them begin with. */
export function indentOf(text: string): string {
  const counts = new Map<string, number>();
  for (const [, white] of text.slice(0, 20_000).matchAll(/^(\t|(?: {2}){1,4})(?=\S)/gm)) counts.set(white!, (counts.get(white!) ?? 0) + 1);
  if (counts.has("\t") && (counts.get("\t") ?? 0) >= (counts.get("    ") ?? 0) + (counts.get("  ") ?? 0)) return "\t";
  return counts.has("  ") ? "  " : "    ";
}

/** What edits and merges have in common. */
export function common(label: string, readOnly: boolean): Extension[] {
  return [
    lineNumbers(),
    highlightActiveLineGutter(),
    // What would not be seen, or would turn the text around, is shown by its name.
    highlightSpecialChars(),
    drawSelection(),
    dropCursor(),
    EditorState.allowMultipleSelections.of(true),
    // The ends of lines are the document's matter: any \r here is a character.
    EditorState.lineSeparator.of("\n"),
    indentOnInput(),
    bracketMatching(),
    rectangularSelection(),
    crosshairCursor(),
    highlightActiveLine(),
    highlightSelectionMatches(),
    syntaxHighlighting(colours),
    look,
    // With a tabindex it is reached by keyboard, and can be scrolled with it, also where nothing may be typed.
    EditorView.contentAttributes.of({ "aria-label": label, tabindex: "0", autocapitalize: "off", autocorrect: "off", spellcheck: "false" }),
    EditorState.readOnly.of(readOnly),
  ];
}

export function setup(label: string, text: string, readOnly: boolean): Extension[] {
  return [
    history(),
    foldGutter(),
    closeBrackets(),
    search({ top: true }),
    indentUnit.of(indentOf(text)),
    ...common(label, readOnly),
    keymap.of([...closeBracketsKeymap, ...searchKeymap, ...defaultKeymap, ...historyKeymap, ...foldKeymap, indentWithTab]),
  ];
}
