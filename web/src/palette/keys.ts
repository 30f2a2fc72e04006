import { useEffect } from "react";
import { allCommands } from "./commands";

const mac = /mac|iphone|ipad/i.test(navigator.platform);

/** Keys as they are written on this computer's keyboard. */
export function keyNames(keys: string): string[] {
  return keys.split(" ").map((k) => k.replace("Mod", mac ? "⌘" : "Ctrl").replace("Shift+", mac ? "⇧" : "Shift+").replace("⌘+", "⌘"));
}

/** Keys go to a text that is being written, not to the page. */
export function isWriting(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(input|textarea|select)$/i.test(target.tagName) || target.closest(".cm-editor, .xterm, [data-keys]") !== null);
}

/** The key of an event in the form of Command.keys. */
export function keyOf(e: KeyboardEvent): string {
  const mod = mac ? e.metaKey : e.ctrlKey;
  const key = e.key.length === 1 ? e.key.toUpperCase() : e.key;
  return (mod ? "Mod+" : "") + (e.shiftKey && e.key.length > 1 ? "Shift+" : "") + key;
}

/** Runs commands by their keys anywhere on the page. */
export function useKeys(): void {
  useEffect(() => {
    let first = "";
    let timer: ReturnType<typeof setTimeout> | undefined;
    const down = (e: KeyboardEvent) => {
      if (e.defaultPrevented || e.isComposing || e.altKey) return;
      const key = keyOf(e);
      if (!key.startsWith("Mod+") && (isWriting(e.target) || document.querySelector("dialog[open]"))) return;
      const found = allCommands().find((c) => c.keys === key || (first && c.keys === `${first} ${key}`));
      clearTimeout(timer);
      first = "";
      if (found) {
        e.preventDefault();
        found.run();
        return;
      }
      if (key.length === 1) {
        first = key;
        timer = setTimeout(() => (first = ""), 1200);
      }
    };
    addEventListener("keydown", down);
    return () => {
      removeEventListener("keydown", down);
      clearTimeout(timer);
    };
  }, []);
}
