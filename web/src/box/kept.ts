// What was typed and is not in the box yet, kept in this browser. IndexedDB holds it while the page is open; what was typed in the moment before
// the page went goes to the tab's own storage, which takes it at once.

/** Anything that can be kept as JSON. */
export interface Kept {
  /** When, in milliseconds since 1970. */
  time: number;
}

const name = "carrel-drafts";
const store = "drafts";
/** What nobody came back for goes after this, in milliseconds. */
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
    if (Date.now() - (cursor.value as Kept).time > life) cursor.delete();
    cursor.continue();
  };
}

const quick = "carrel.draft.";

/** Keeps something, or (null) forgets it. A browser that has no room for it keeps it in the page alone. */
export async function keep(key: string, value: Kept | null): Promise<void> {
  try {
    if (!value) sessionStorage.removeItem(quick + key);
  } catch {
    // Storage is off.
  }
  const db = await open();
  if (!db) return;
  await new Promise<void>((resolve) => {
    const change = db.transaction(store, "readwrite");
    if (value) change.objectStore(store).put(value, key);
    else change.objectStore(store).delete(key);
    change.oncomplete = change.onerror = change.onabort = () => resolve();
  });
}

/** The same while the page goes away, when nothing can be waited for. */
export function keepAtOnce(key: string, value: Kept): void {
  try {
    sessionStorage.setItem(quick + key, JSON.stringify(value));
  } catch {
    // Too large, or off: what IndexedDB has is at most a moment older.
  }
}

/** The newest of what was kept. */
export async function find<T extends Kept>(key: string): Promise<T | null> {
  let atOnce: T | null = null;
  try {
    atOnce = JSON.parse(sessionStorage.getItem(quick + key) ?? "null") as T | null;
  } catch {
    // Storage is off.
  }
  const db = await open();
  const kept = db
    ? await new Promise<T | null>((resolve) => {
        const request = db.transaction(store).objectStore(store).get(key);
        request.onsuccess = () => resolve((request.result as T | undefined) ?? null);
        request.onerror = () => resolve(null);
      })
    : null;
  return atOnce && (!kept || atOnce.time >= kept.time) ? atOnce : kept;
}

/** The keys that begin so. */
export async function keys(prefix: string): Promise<string[]> {
  const all = new Set<string>();
  try {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith(quick + prefix)) all.add(key.slice(quick.length));
  } catch {
    // Storage is off.
  }
  const db = await open();
  const kept = db
    ? await new Promise<IDBValidKey[]>((resolve) => {
        const request = db.transaction(store).objectStore(store).getAllKeys(IDBKeyRange.bound(prefix, `${prefix}\uffff`));
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => resolve([]);
      })
    : [];
  for (const key of kept) if (typeof key === "string") all.add(key);
  return [...all];
}
