// Jupyter's keys. Command mode is when a cell and not its text has the keyboard.

export interface KeyPress {
  readonly key: string;
  readonly ctrl: boolean;
  readonly shift: boolean;
  readonly alt: boolean;
}

/** What Jupyter's keys do, by the names that notebook.tsx knows. */
export type Action =
  | "run-next"
  | "run-stay"
  | "run-insert"
  | "edit"
  | "up"
  | "down"
  | "extend-up"
  | "extend-down"
  | "first"
  | "last"
  | "insert-above"
  | "insert-below"
  | "cut"
  | "copy"
  | "paste"
  | "paste-above"
  | "delete"
  | "undo"
  | "redo"
  | "to-code"
  | "to-markdown"
  | "to-raw"
  | `heading-${1 | 2 | 3 | 4 | 5 | 6}`
  | "merge"
  | "split"
  | "interrupt"
  | "restart"
  | "save"
  | "find"
  | "toggle-output"
  | "toggle-source"
  | "move-up"
  | "move-down"
  | "select-all"
  | "help";

/** Shown in the help, in this order. */
export const keyHelp: readonly (readonly [string, string])[] = [
  ["Shift+Enter", "Run and go on to the next cell"],
  ["Ctrl+Enter", "Run and stay"],
  ["Alt+Enter", "Run and add a cell below"],
  ["Enter", "Edit the cell"],
  ["Escape", "Leave the text: keys are commands then"],
  ["Tab, Ctrl+Space", "In code: complete what is before the caret"],
  ["Shift+Tab", "In code: what the kernel knows of it"],
  ["↑ K, ↓ J", "Go to another cell; with Shift select several"],
  ["A, B", "Add a cell above, below"],
  ["X, C, V", "Cut, copy, paste cells"],
  ["D D", "Delete cells"],
  ["Z, Shift+Z", "Undo and redo what was done to cells"],
  ["Y, M, R", "Make it code, text, raw"],
  ["1 to 6", "Make it a heading"],
  ["Shift+M", "Join cells"],
  ["Ctrl+Shift+-", "Cut the cell in two where the caret is"],
  ["Alt+↑, Alt+↓", "Move cells"],
  ["O, Shift+O", "Fold or unfold the outputs, the code"],
  ["I I", "Interrupt"],
  ["0 0", "Restart the kernel"],
  ["Ctrl+F", "Find in the notebook"],
  ["Ctrl+S", "Save now"],
];

/** What of it the palette has: what it does, its keys, more words that find it. */
export const paletteActions: readonly (readonly [Action, string, string, string?])[] = [
  ["run-next", "Run the cell and go on", "Shift+Enter", "execute"],
  ["run-stay", "Run the cell and stay", "Ctrl+Enter", "execute"],
  ["run-insert", "Run the cell and add one below", "Alt+Enter", "execute insert"],
  ["insert-above", "Add a cell above", "A", "insert new"],
  ["insert-below", "Add a cell below", "B", "insert new"],
  ["delete", "Delete the cells", "D D", "remove"],
  ["undo", "Undo what was done to cells", "Z"],
  ["redo", "Redo what was done to cells", "Shift+Z"],
  ["cut", "Cut the cells", "X"],
  ["copy", "Copy the cells", "C"],
  ["paste", "Paste cells below", "V"],
  ["to-code", "Make the cell code", "Y", "type"],
  ["to-markdown", "Make the cell text", "M", "type markdown"],
  ["to-raw", "Make the cell raw", "R", "type"],
  ["split", "Cut the cell in two where the caret is", "Ctrl+Shift+-", "split"],
  ["merge", "Join the cells", "Shift+M", "merge"],
  ["move-up", "Move the cells up", "Alt+↑"],
  ["move-down", "Move the cells down", "Alt+↓"],
  ["toggle-output", "Fold or unfold the outputs", "O", "collapse hide show"],
  ["toggle-source", "Fold or unfold the code", "Shift+O", "collapse hide show input"],
  ["select-all", "Select all cells", "Ctrl+A"],
  ["find", "Find in the notebook", "Ctrl+F", "search"],
  ["save", "Save the notebook now", "Ctrl+S"],
  ["help", "Keys of the notebook", "H", "shortcuts"],
];

export function press(e: { key: string; ctrlKey: boolean; metaKey: boolean; shiftKey: boolean; altKey: boolean }): KeyPress {
  return { key: e.key, ctrl: e.ctrlKey || e.metaKey, shift: e.shiftKey, alt: e.altKey };
}

/** What a key does wherever it is pressed in a notebook. */
export function everywhere({ key, ctrl, shift, alt }: KeyPress): Action | null {
  if (key === "Enter") {
    if (shift && !ctrl && !alt) return "run-next";
    if (ctrl && !shift && !alt) return "run-stay";
    if (alt && !ctrl && !shift) return "run-insert";
    return null;
  }
  if (ctrl && !alt && !shift && key.toLowerCase() === "s") return "save";
  if (ctrl && !alt && !shift && key.toLowerCase() === "f") return "find";
  if (ctrl && shift && (key === "-" || key === "_" || key === "Subtract")) return "split";
  return null;
}

const single: Readonly<Record<string, Action>> = {
  Enter: "edit",
  ArrowUp: "up",
  ArrowDown: "down",
  Home: "first",
  End: "last",
  k: "up",
  j: "down",
  a: "insert-above",
  b: "insert-below",
  x: "cut",
  c: "copy",
  v: "paste",
  z: "undo",
  y: "to-code",
  m: "to-markdown",
  r: "to-raw",
  o: "toggle-output",
  h: "help",
  s: "save",
  f: "find",
};
const shifted: Readonly<Record<string, Action>> = {
  ArrowUp: "extend-up",
  ArrowDown: "extend-down",
  K: "extend-up",
  J: "extend-down",
  Z: "redo",
  M: "merge",
  V: "paste-above",
  O: "toggle-source",
};
const double: Readonly<Record<string, Action>> = { d: "delete", i: "interrupt", "0": "restart" };

/** A second press of the same key must come within so many ms. */
const patience = 800;

/** Reads keys in command mode; keys that work when pressed twice are remembered. */
export class CommandKeys {
  private last = "";
  private at = 0;

  read(k: KeyPress, now: number): Action | null {
    const anywhere = everywhere(k);
    if (anywhere !== null) return anywhere;
    const before = this.last;
    const soon = now - this.at <= patience;
    this.last = "";
    if (k.ctrl) {
      if (k.key.toLowerCase() === "a" && !k.alt && !k.shift) return "select-all";
      if (k.key.toLowerCase() === "z" && !k.alt) return k.shift ? "redo" : "undo";
      return null;
    }
    if (k.alt) return k.key === "ArrowUp" ? "move-up" : k.key === "ArrowDown" ? "move-down" : null;
    if (k.shift) return Object.hasOwn(shifted, k.key) ? (shifted[k.key] as Action) : null;
    if (Object.hasOwn(double, k.key)) {
      if (before === k.key && soon) return double[k.key] as Action;
      this.last = k.key;
      this.at = now;
      return null;
    }
    if (/^[1-6]$/.test(k.key)) return `heading-${k.key}` as Action;
    return Object.hasOwn(single, k.key) ? (single[k.key] as Action) : null;
  }
}
