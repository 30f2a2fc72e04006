// How a cell's text is edited: CodeMirror with what a cell needs, coloured by the page's own variables.

import { closeBrackets, closeBracketsKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentLess, indentMore, toggleComment } from "@codemirror/commands";
import { bracketMatching, HighlightStyle, indentOnInput, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { highlightSelectionMatches } from "@codemirror/search";
import { EditorState, type Extension } from "@codemirror/state";
import { drawSelection, EditorView, highlightSpecialChars, keymap, placeholder, rectangularSelection } from "@codemirror/view";
import { tags as t } from "@lezer/highlight";

const colours = HighlightStyle.define([
  { tag: [t.keyword, t.operatorKeyword, t.modifier, t.controlKeyword], color: "var(--nb-keyword)" },
  { tag: [t.string, t.special(t.string), t.regexp], color: "var(--nb-string)" },
  { tag: [t.number, t.bool, t.null, t.atom], color: "var(--nb-number)" },
  { tag: [t.comment, t.quote], color: "var(--nb-comment)", fontStyle: "italic" },
  { tag: [t.function(t.variableName), t.function(t.propertyName)], color: "var(--nb-function)" },
  { tag: [t.definition(t.variableName), t.className, t.typeName, t.namespace], color: "var(--nb-name)" },
  { tag: [t.meta, t.processingInstruction], color: "var(--nb-comment)" },
  { tag: t.heading, fontWeight: "700" },
  { tag: t.strong, fontWeight: "700" },
  { tag: t.emphasis, fontStyle: "italic" },
  { tag: [t.link, t.url], color: "var(--accent)" },
  { tag: t.monospace, color: "var(--nb-string)" },
  { tag: t.invalid, color: "var(--bad)" },
]);

const look = EditorView.theme({
  "&": { backgroundColor: "transparent", color: "var(--ink)", fontSize: "0.875rem" },
  "&.cm-focused": { outline: "none" },
  ".cm-content": { fontFamily: "var(--mono)", padding: "0.5rem 0", caretColor: "var(--accent)", lineHeight: "1.5" },
  ".cm-line": { padding: "0 0.75rem" },
  ".cm-cursor": { borderLeftColor: "var(--accent)", borderLeftWidth: "2px" },
  ".cm-selectionBackground": { backgroundColor: "var(--nb-selection) !important" },
  ".cm-matchingBracket": { backgroundColor: "var(--nb-match) !important", color: "inherit !important" },
  ".cm-selectionMatch": { backgroundColor: "var(--nb-match)" },
  ".cm-placeholder": { color: "var(--soft)" },
  ".cm-specialChar": { color: "var(--bad)" },
  ".cm-tooltip": { backgroundColor: "var(--card)", color: "var(--ink)", border: "1px solid var(--line)", borderRadius: "var(--round)", boxShadow: "var(--shadow)", overflow: "hidden", zIndex: "30" },
  ".cm-tooltip.cm-tooltip-autocomplete > ul": { fontFamily: "var(--mono)", fontSize: "0.8125rem", maxHeight: "15rem", minWidth: "12rem", maxWidth: "min(36rem, 90vw)" },
  ".cm-tooltip.cm-tooltip-autocomplete > ul > li": { padding: "0.2rem 0.6rem", lineHeight: "1.5", unicodeBidi: "isolate" },
  ".cm-tooltip.cm-tooltip-autocomplete > ul > li[aria-selected]": { backgroundColor: "var(--accent-wash)", color: "var(--ink)" },
  ".cm-completionMatchedText": { textDecoration: "none", fontWeight: "700", color: "var(--accent)" },
  ".cm-completionDetail": { fontStyle: "normal", color: "var(--soft)" },
  ".cm-completionIcon": { color: "var(--soft)", opacity: "1" },
  ".cm-scroller": { fontFamily: "var(--mono)", overflowX: "auto" },
});

export interface SetupOptions {
  label: string;
  hint: string;
  wrap: boolean;
  readOnly: boolean;
}

export function setup(options: SetupOptions): Extension[] {
  return [
    history(),
    drawSelection(),
    EditorState.allowMultipleSelections.of(true),
    rectangularSelection(),
    indentOnInput(),
    indentUnit.of("    "),
    bracketMatching(),
    closeBrackets(),
    highlightSelectionMatches(),
    // What would not be seen, or would reorder the text: shown by its name.
    highlightSpecialChars(),
    syntaxHighlighting(colours),
    look,
    // With a tabindex it is reached by keyboard, and can be scrolled with it, also where nothing may be typed.
    EditorView.contentAttributes.of({ "aria-label": options.label, tabindex: "0", autocapitalize: "off", autocorrect: "off", spellcheck: "false" }),
    options.wrap ? EditorView.lineWrapping : [],
    options.hint === "" ? [] : placeholder(options.hint),
    EditorState.readOnly.of(options.readOnly),
    EditorView.editable.of(!options.readOnly),
    keymap.of([
      ...closeBracketsKeymap,
      { key: "Tab", run: indentMore, shift: indentLess },
      { key: "Mod-/", run: toggleComment },
      ...defaultKeymap.filter((k) => k.key !== "Mod-Enter" && k.key !== "Shift-Enter" && k.key !== "Mod-/"),
      ...historyKeymap,
    ]),
  ];
}
