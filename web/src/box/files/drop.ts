// What a drop or a choice of files holds: files with their place below what was dropped, and directories with nothing in them.

import type { Picked } from "./upload";

export interface Dropped {
  files: Picked[];
  /** Directories that have nothing in them, below the place of the drop. */
  empty: string[];
}

const fileOf = (entry: FileSystemFileEntry) => new Promise<File>((resolve, reject) => entry.file(resolve, reject));

/** A directory is read in portions until one is empty. */
async function childrenOf(entry: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = entry.createReader();
  const all: FileSystemEntry[] = [];
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return all;
    all.push(...some);
  }
}

async function walk(entry: FileSystemEntry, below: string, into: Dropped): Promise<void> {
  const relative = below + entry.name;
  if (entry.isFile) {
    into.files.push({ file: await fileOf(entry as FileSystemFileEntry), relative });
    return;
  }
  const children = await childrenOf(entry as FileSystemDirectoryEntry);
  if (children.length === 0) into.empty.push(relative);
  for (const child of children) await walk(child, `${relative}/`, into);
}

/** Reads a drop. It must be called in the event itself: a drop is forgotten after it. */
export function dropped(transfer: DataTransfer): Promise<Dropped> {
  const into: Dropped = { files: [], empty: [] };
  const entries = [...transfer.items].flatMap((item) => (item.kind === "file" ? [item.webkitGetAsEntry()] : []));
  const loose = [...transfer.files];
  return (async () => {
    // Some programs drop files that belong to no file system.
    if (entries.every((e) => e === null)) into.files.push(...loose.map((file) => ({ file, relative: file.name })));
    for (const entry of entries) if (entry) await walk(entry, "", into);
    return into;
  })();
}

/** What an input for files or for a directory holds. */
export const picked = (list: FileList | null): Picked[] => [...(list ?? [])].map((file) => ({ file, relative: file.webkitRelativePath || file.name }));
