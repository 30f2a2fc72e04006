import { useSyncExternalStore } from "react";
import { message } from "../lib/errors";
import { IconButton } from "./button";
import { Icon } from "./icon";

interface Toast {
  id: number;
  kind: "good" | "bad";
  text: string;
}

let toasts: Toast[] = [];
let next = 1;
const listeners = new Set<() => void>();

function set(list: Toast[]): void {
  toasts = list;
  for (const l of listeners) l();
}

function show(kind: Toast["kind"], text: string, ms: number): void {
  const id = next++;
  // The same again takes the place of what was said.
  set([...toasts.filter((t) => t.kind !== kind || t.text !== text).slice(-3), { id, kind, text }]);
  setTimeout(() => dismiss(id), ms);
}

function dismiss(id: number): void {
  set(toasts.filter((t) => t.id !== id));
}

/** Says for a moment that something was done. */
export const toast = (text: string): void => show("good", text, 5000);
/** Says that something did not work, long enough to read why. */
export const toastError = (err: unknown): void => show("bad", message(err), 12_000);

export function Toasts() {
  const list = useSyncExternalStore(
    (l) => {
      listeners.add(l);
      return () => listeners.delete(l);
    },
    () => toasts,
  );
  return (
    <div className="toasts" role="region" aria-label="Messages" aria-live="polite">
      {list.map((t) => (
        <div key={t.id} className={`toast ${t.kind}`} role={t.kind === "bad" ? "alert" : "status"}>
          <Icon name={t.kind === "bad" ? "warning" : "check"} />
          <span>{t.text}</span>
          <IconButton icon="close" label="Close this message" onClick={() => dismiss(t.id)} />
        </div>
      ))}
    </div>
  );
}
