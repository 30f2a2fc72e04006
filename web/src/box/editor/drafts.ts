// What was typed and is not on the box's disk yet, kept in this browser. IndexedDB holds it while the page is open; what was typed in the moment before
// the page went goes to the tab's own storage, which takes it at once.

export interface Draft {
  text: string;
  /** Of the file that it was typed on. */
  etag: string;
  eol: "\n" | "\r\n";
  /** When, in milliseconds since 1970. */
  time: number;
}

const name = "carrel-drafts";
const store = "drafts";
/** A draft that nobody came back for goes after this, in milliseconds. */
const life = 30 * 24 * 3600 * 1000;

let database: Promise<IDBDatabase | null> | undefined;

function open(): Promise<IDBDatabase | null> {
  database ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(store);
      request.onsuccess = () => {
        resolve(request.result);
        void sweep(request.result);
      };
      request.onerror = () => resolve(null);
    } catch {
      resolve(null); // a browser that keeps nothing
    }
  });
  return database;
}

function sweep(db: IDBDatabase): void {
  const request = db.transaction(store, "readwrite").objectStore(store).openCursor();
  request.onsuccess = () => {
    const cursor = request.result;
    if (!cursor) return;
    if (Date.now() - (cursor.value as Draft).time > life) cursor.delete();
    cursor.continue();
  };
}

const keyOf = (box: string, path: string): string => `${box}\0${path}`;
const quickKey = (box: string, path: string): string => `carrel.draft.${keyOf(box, path)}`;

/** Keeps a draft, or (null) forgets it. A browser that has no room for it keeps it in the page alone. */
export async function keep(box: string, path: string, draft: Draft | null): Promise<void> {
  try {
    if (!draft) sessionStorage.removeItem(quickKey(box, path));
  } catch {
    // Storage is off.
  }
  const db = await open();
  if (!db) return;
  await new Promise<void>((resolve) => {
    const change = db.transaction(store, "readwrite");
    if (draft) change.objectStore(store).put(draft, keyOf(box, path));
    else change.objectStore(store).delete(keyOf(box, path));
    change.oncomplete = change.onerror = change.onabort = () => resolve();
  });
}

/** The same while the page goes away, when nothing can be waited for. */
export function keepAtOnce(box: string, path: string, draft: Draft): void {
  try {
    sessionStorage.setItem(quickKey(box, path), JSON.stringify(draft));
  } catch {
    // Too large, or off: what IndexedDB has is at most a moment older.
  }
}

/** The newest draft of a file. */
export async function find(box: string, path: string): Promise<Draft | null> {
  let quick: Draft | null = null;
  try {
    quick = JSON.parse(sessionStorage.getItem(quickKey(box, path)) ?? "null") as Draft | null;
  } catch {
    // Storage is off.
  }
  const db = await open();
  const kept = db
    ? await new Promise<Draft | null>((resolve) => {
        const request = db.transaction(store).objectStore(store).get(keyOf(box, path));
        request.onsuccess = () => resolve((request.result as Draft | undefined) ?? null);
        request.onerror = () => resolve(null);
      })
    : null;
  return quick && (!kept || quick.time >= kept.time) ? quick : kept;
}
