import { useSyncExternalStore } from "react";

export type Theme = "system" | "light" | "dark";

const key = "carrel.theme";
const listeners = new Set<() => void>();
const system = matchMedia("(prefers-color-scheme: dark)");

function read(): Theme {
  try {
    const kept = localStorage.getItem(key);
    return kept === "light" || kept === "dark" ? kept : "system";
  } catch {
    return "system"; // storage is off
  }
}

let theme = read();

function apply(): void {
  document.documentElement.dataset.theme = theme === "system" ? (system.matches ? "dark" : "light") : theme;
  for (const l of listeners) l();
}
apply();
system.addEventListener("change", apply);

export function setTheme(next: Theme): void {
  theme = next;
  try {
    if (next === "system") localStorage.removeItem(key);
    else localStorage.setItem(key, next);
  } catch {
    // It lasts as long as the page, then.
  }
  apply();
}

const subscribe = (l: () => void) => {
  listeners.add(l);
  return () => listeners.delete(l);
};

/** What was chosen. */
export const useTheme = (): Theme => useSyncExternalStore(subscribe, () => theme);
/** What is shown: for parts such as terminals that have colours of their own. */
export const useDark = (): boolean => useSyncExternalStore(subscribe, () => document.documentElement.dataset.theme === "dark");
