// What is done to files: each asks the box and tells what came of it.

import type { Api } from "../../lib/api";
import { message } from "../../lib/errors";
import { toast, toastError } from "../../ui/toast";
import { reasonOf, writeContent } from "./http";
import { baseOf, freeName, join, parentOf, plain } from "./names";
import type { FileStore } from "./store";
import { movedTo, topmost } from "./tree";
import type { Clash } from "./upload";

export interface Asker {
  /** What to do where a name is taken; `more`: others may follow. null: stop. */
  clash: (name: string, more: boolean) => Promise<{ clash: Clash; forAll: boolean } | null>;
}

export interface Place {
  box: string;
  api: Api;
  store: FileStore;
}

export async function makeFile({ box, store }: Place, path: string): Promise<boolean> {
  const answer = await writeContent(box, path, "", "none");
  if (answer.status < 200 || answer.status > 299) {
    toastError(new Error(answer.message));
    return false;
  }
  await store.lookAt(path);
  return true;
}

export async function makeDirectory({ box, api, store }: Place, path: string): Promise<boolean> {
  try {
    await api.files.makeDirectory({ box, path });
    await store.lookAt(path);
    return true;
  } catch (err) {
    toastError(err);
    return false;
  }
}

export async function rename({ box, api, store }: Place, path: string, name: string): Promise<string | null> {
  const destination = join(parentOf(path), name);
  try {
    await api.files.moveFile({ box, source: path, destination });
    await Promise.all([store.lookAt(path), store.lookAt(destination)]);
    return destination;
  } catch (err) {
    toastError(err);
    return null;
  }
}

/** Removes paths with everything in them, and gives those that are gone. */
export async function remove({ box, api, store }: Place, paths: readonly string[]): Promise<string[]> {
  const gone: string[] = [];
  for (const path of topmost(paths)) {
    try {
      await api.files.removeFile({ box, path, recursive: true });
      gone.push(path);
    } catch (err) {
      toastError(new Error(`${plain(baseOf(path))}: ${message(err)}`));
    }
    await store.lookAt(path);
  }
  return gone;
}

/** Moves or copies paths into a directory, and gives from where to where each went. */
export async function transfer({ box, api, store }: Place, how: "move" | "copy", paths: readonly string[], directory: string, asker: Asker): Promise<[string, string][]> {
  const went: [string, string][] = [];
  let rule: Clash | undefined;
  const all = topmost(paths);
  for (const [i, source] of all.entries()) {
    if (how === "move" && movedTo(source, directory) === undefined) continue;
    const sameDirectory = parentOf(source) === directory;
    // A copy beside its original has another name.
    let destination = join(directory, sameDirectory ? freeName(baseOf(source), (n) => isTaken(store, directory, n)) : baseOf(source));
    let overwrite = false;
    for (;;) {
      try {
        if (how === "move") await api.files.moveFile({ box, source, destination, overwrite });
        else await api.files.copyFile({ box, source, destination, overwrite, recursive: true });
        went.push([source, destination]);
        break;
      } catch (err) {
        if (overwrite || reasonOf(err) !== "file_exists") {
          toastError(new Error(`${plain(baseOf(source))}: ${message(err)}`));
          break;
        }
        const answer = rule ? { clash: rule, forAll: true } : await asker.clash(baseOf(destination), i < all.length - 1);
        if (!answer) return went;
        if (answer.forAll) rule = answer.clash;
        if (answer.clash === "skip") break;
        if (answer.clash === "replace") overwrite = true;
        else {
          const last = baseOf(destination);
          destination = join(directory, freeName(baseOf(source), (n) => n === last || n === baseOf(source) || isTaken(store, directory, n)));
        }
      }
    }
    await Promise.all([store.lookAt(source), store.lookAt(destination)]);
  }
  if (went.length > 0) toast(`${how === "move" ? "Moved" : "Copied"} ${went.length === 1 ? plain(baseOf(went[0]![0])) : `${went.length} files`}`);
  return went;
}

const isTaken = (store: FileStore, directory: string, name: string): boolean => store.get().directories.get(directory)?.entries.has(name) ?? false;
