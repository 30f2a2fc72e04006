import { type DragEvent, memo, useCallback, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { isPassing } from "../../lib/errors";
import { toast, toastError } from "../../ui/toast";
import { type Command, useCommands } from "../../palette/commands";
import { IconButton, Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { useBox, useBoxStream } from "../context";
import { Rest } from "../rest";
import { type Place, makeDirectory, makeFile, remove, rename, transfer } from "./actions";
import { type Ask, Questions } from "./dialogs";
import { dropped, picked } from "./drop";
import { download } from "./http";
import { baseOf, join, parentOf } from "./names";
import { ContextMenu, type ContextItem } from "./parts";
import { Search } from "./search";
import { Crumbs } from "./crumbs";
import { fileStore } from "./store";
import { type Entry, choose, find, isDirectory, openDirectories, placeFor, topmost } from "./tree";
import { type Editing, FileTree } from "./view";
import { UploadList } from "./uploads";
import { usePaths } from "./watch";
import "./style.css";

/** What Cut and Copy took, within this page. */
let clipboard: { how: "move" | "copy"; paths: string[] } | null = null;

/** The tree with everything that can be done to files. In the editor's side it is `compact`. */
export const FilePanel = memo(function FilePanel({ compact, current }: { compact?: boolean; current?: string }) {
  const { box, api, live, mayChange, open } = useBox();
  const stream = useBoxStream();
  const store = fileStore(box.id, api);
  const tree = useSyncExternalStore(store.subscribe, store.get);
  const [error, setError] = useState<unknown>();
  const [editing, setEditing] = useState<Editing | null>(null);
  const [menu, setMenu] = useState<{ x: number; y: number; entry: Entry | null } | null>(null);
  const [ask, setAsk] = useState<Ask | null>(null);
  const [searching, setSearching] = useState("");
  const [over, setOver] = useState("");
  const treeElement = useRef<HTMLDivElement>(null);
  const fileInput = useRef<HTMLInputElement>(null);
  const folderInput = useRef<HTMLInputElement>(null);
  const place = useMemo<Place>(() => ({ box: box.id, api, store }), [box.id, api, store]);

  const begin = useCallback(() => {
    setError(undefined);
    store.begin().catch((err: unknown) => setError(err));
  }, [store]);
  useEffect(() => {
    store.uploads.setLive(live);
    if (live) begin();
  }, [live, store, begin]);
  // A box that has only just begun to run may not answer yet.
  useEffect(() => {
    if (error === undefined || !isPassing(error)) return;
    const timer = setTimeout(begin, 3000);
    return () => clearTimeout(timer);
  }, [error, begin]);

  const watched = live && tree.root ? openDirectories(tree) : [];
  usePaths(stream, watched, (directory, event) => {
    if (event.kind === "ready") return;
    store.noteChange(directory, event.kind === "overflow" || event.kind === "unwatched" ? undefined : event.path);
  });
  useEffect(() => {
    const look = () => {
      if (!document.hidden && live) store.refresh();
    };
    document.addEventListener("visibilitychange", look);
    return () => document.removeEventListener("visibilitychange", look);
  }, [store, live]);

  const focusTree = () => treeElement.current?.focus({ preventScroll: true });
  const openFile = useCallback(
    async (path: string) => {
      if (await store.leadsToDirectory(path)) return store.toggle(path);
      open(/\.ipynb$/i.test(path) ? "notebook" : "editor", { path });
    },
    [store, open],
  );
  const asker = useMemo(() => ({ clash: (name: string, more: boolean) => new Promise<Awaited<ReturnType<Parameters<typeof transfer>[4]["clash"]>>>((resolve) => setAsk({ kind: "clash", name, more, resolve })) }), []);
  const carry = useCallback(
    async (how: "move" | "copy", paths: readonly string[], directory: string) => {
      for (const [from, to] of await transfer(place, how, paths, directory, asker)) if (how === "move") store.went(from, to);
    },
    [place, asker, store],
  );
  const upload = useCallback(
    async (directory: string, drop: ReturnType<typeof dropped>) => {
      try {
        const { files, empty } = await drop;
        store.uploads.add(directory, files);
        await store.uploads.addDirectories(directory, empty);
        if (empty.length > 0) store.noteChange(directory);
        void store.toggle(directory, true);
      } catch (err) {
        toastError(err);
      }
    },
    [store],
  );
  const chosenOr = (entry: Entry | null): string[] => {
    const now = store.get();
    if (entry && !now.chosen.has(entry.path)) return [entry.path];
    return now.chosen.size > 0 ? [...now.chosen] : entry ? [entry.path] : [];
  };
  const askRemove = (paths: readonly string[]) => {
    const all = topmost(paths);
    if (!mayChange || all.length === 0) return;
    setAsk({
      kind: "remove",
      entries: all.map((p) => find(store.get(), p) ?? { path: p, name: baseOf(p), type: "file", size: 0, modified: undefined, target: "" }),
      resolve: async (yes) => {
        if (yes) for (const path of await remove(place, all)) store.went(path, null);
        focusTree();
      },
    });
  };
  const begins = async (kind: "file" | "directory", directory = placeFor(store.get())) => {
    setSearching("");
    await store.toggle(directory, true);
    setEditing({ kind, directory });
  };
  const edited = async (name: string | null) => {
    const was = editing;
    setEditing(null);
    if (name === null || !was) return focusTree();
    if (was.kind === "rename") {
      const to = await rename(place, was.path, name);
      if (to) {
        store.went(was.path, to);
        store.set((t) => choose(t, to, "only"));
      }
    } else {
      const path = join(was.directory, name);
      const made = was.kind === "file" ? await makeFile(place, path) : await makeDirectory(place, path);
      if (made) store.set((t) => choose(t, path, "only"));
      if (made && was.kind === "file") return void openFile(path);
    }
    focusTree();
  };
  const cut = (how: "move" | "copy", paths: string[]) => {
    clipboard = paths.length > 0 ? { how, paths } : null;
    if (clipboard) toast(`${paths.length === 1 ? "One file is" : `${paths.length} files are`} ready to be ${how === "move" ? "moved" : "copied"}: paste where they belong`);
  };
  const paste = (directory: string) => {
    if (!clipboard || !mayChange) return;
    const { how, paths } = clipboard;
    if (how === "move") clipboard = null;
    void carry(how, paths, directory);
  };

  const items = (entry: Entry | null): ContextItem[] => {
    const paths = chosenOr(entry);
    const one = paths.length === 1 ? entry : null;
    const directory = !entry ? tree.root : isDirectory(entry) ? entry.path : parentOf(entry.path);
    const list: (ContextItem | false | null)[] = [
      one && !isDirectory(one) && { label: "Open", icon: "edit", keys: "Enter", act: () => void openFile(one.path) },
      mayChange && paths.length <= 1 && { label: "New file", icon: "plus", act: () => void begins("file", directory) },
      mayChange && paths.length <= 1 && { label: "New folder", icon: "files", act: () => void begins("directory", directory) },
      mayChange && paths.length <= 1 && { label: "Upload files here", icon: "upload", act: () => chooseFiles(directory, false) },
      paths.length > 0 && { label: paths.length > 1 ? `Download ${paths.length}` : one && isDirectory(one) ? "Download as archive" : "Download", icon: "download", act: () => downloadAll(paths) },
      mayChange && one && { label: "Rename", icon: "edit", keys: "F2", act: () => setEditing({ kind: "rename", path: one.path }) },
      mayChange && one && { label: "Duplicate", icon: "copy", act: () => void carry("copy", [one.path], parentOf(one.path)) },
      mayChange && paths.length > 0 && { label: "Cut", keys: "Ctrl X", act: () => cut("move", paths) },
      mayChange && paths.length > 0 && { label: "Copy", icon: "copy", keys: "Ctrl C", act: () => cut("copy", paths) },
      mayChange && clipboard && { label: "Paste here", keys: "Ctrl V", act: () => paste(directory) },
      one && { label: "Copy the path", act: () => void navigator.clipboard?.writeText(one.path).then(() => toast("The path was copied"), toastError) },
      one && isDirectory(one) && { label: "Show only this folder", icon: "search", act: () => void store.goTo(one.path) },
      mayChange && paths.length > 0 && { label: paths.length > 1 ? `Delete ${paths.length}…` : "Delete…", icon: "delete", keys: "Del", danger: true, act: () => askRemove(paths) },
    ];
    return list.filter((i): i is ContextItem => !!i);
  };
  const downloadAll = (paths: readonly string[]) => {
    for (const path of topmost(paths)) {
      const entry = find(store.get(), path);
      download(box.id, path, entry !== undefined && isDirectory(entry));
    }
  };
  const into = useRef("");
  const chooseFiles = (directory: string, folder: boolean) => {
    into.current = directory;
    (folder ? folderInput : fileInput).current?.click();
  };

  const latest = useRef({ begins, chooseFiles });
  useEffect(() => {
    latest.current = { begins, chooseFiles };
  });
  const commands = useMemo<Command[]>(
    () => [
      ...(mayChange && live
        ? [
            { id: "files-new", title: "New file", group: "Files", icon: "plus" as const, run: () => void latest.current.begins("file") },
            { id: "files-folder", title: "New folder", group: "Files", icon: "files" as const, run: () => void latest.current.begins("directory") },
            { id: "files-upload", title: "Upload files", group: "Files", icon: "upload" as const, run: () => latest.current.chooseFiles(placeFor(store.get()), false) },
          ]
        : []),
      { id: "files-hidden", title: "Show or hide hidden files", words: "dot", group: "Files", run: () => store.set((t) => ({ ...t, hidden: !t.hidden })) },
      { id: "files-search", title: "Search files by name", words: "find", group: "Files", icon: "search", run: () => document.getElementById("files-search")?.focus() },
    ],
    [mayChange, live, store],
  );
  useCommands(commands);

  if (!live) {
    return (
      <Rest icon="files">
        <p>{mayChange ? "Its files are safe. Start or resume it to see them." : "Its files are seen while it runs."}</p>
      </Rest>
    );
  }
  if (error !== undefined) return <Problem title="The files of the box cannot be shown" error={error} retry={begin} />;
  if (!tree.root) return <Loading>Looking at the files…</Loading>;

  const dropOn = (e: DragEvent, directory: string) => {
    e.preventDefault();
    e.stopPropagation();
    setOver("");
    if (!mayChange) return;
    const paths = e.dataTransfer.getData("application/x-carrel-paths");
    if (paths) void carry(e.ctrlKey || e.altKey ? "copy" : "move", JSON.parse(paths) as string[], directory);
    else if (e.dataTransfer.types.includes("Files")) void upload(directory, dropped(e.dataTransfer));
  };

  return (
    <div className={`files ${compact ? "compact" : ""}`}>
      <div className="files-bar" role="toolbar" aria-label="Files">
        <Search value={searching} onChange={setSearching} />
        {mayChange && (
          <>
            <IconButton icon="plus" label="New file" onClick={() => void begins("file")} />
            <button type="button" className="icon-button" aria-label="New folder" title="New folder" onClick={() => void begins("directory")}>
              <svg className="icon" viewBox="0 0 20 20" width={18} height={18} fill="none" stroke="currentColor" strokeWidth="1.6" strokeLinecap="round" strokeLinejoin="round" aria-hidden="true">
                <path d="M3 5.500h5l1.500 2H17v8H3zM10 9.500v4M8 11.500h4" />
              </svg>
            </button>
            <IconButton icon="upload" label="Upload" aria-haspopup="menu" onClick={(e) => {
              const at = e.currentTarget.getBoundingClientRect();
              setMenu({ x: at.left, y: at.bottom + 4, entry: uploadMenu });
            }} />
          </>
        )}
        <IconButton
          icon="more"
          label="More about files"
          aria-haspopup="menu"
          onClick={(e) => {
            const at = e.currentTarget.getBoundingClientRect();
            setMenu({ x: at.left, y: at.bottom + 4, entry: moreMenu });
          }}
        />
      </div>
      <Crumbs root={tree.root} home={store.home} onGo={(path) => void store.goTo(path)} onDrop={mayChange ? dropOn : undefined} />
      {searching ? (
        <Search.Results
          name={searching}
          root={tree.root}
          hidden={tree.hidden}
          onOpen={(entry) => {
            setSearching("");
            void store.reveal(entry.path).then(() => (isDirectory(entry) ? store.toggle(entry.path, true) : openFile(entry.path)));
          }}
        />
      ) : (
        <FileTree
          ref={treeElement}
          store={store}
          tree={tree}
          compact={compact ?? false}
          current={current}
          editing={editing}
          mayChange={mayChange}
          over={over}
          setOver={setOver}
          onDrop={dropOn}
          onEdited={(name) => void edited(name)}
          onOpen={(entry) => void openFile(entry.path)}
          onMenu={(x, y, entry) => setMenu({ x, y, entry })}
          onKey={(key, entry) => {
            if (key === "Delete") askRemove(chosenOr(entry));
            else if (key === "F2" && entry && mayChange) setEditing({ kind: "rename", path: entry.path });
            else if (key === "copy" || key === "cut") {
              if (mayChange) cut(key === "cut" ? "move" : "copy", chosenOr(entry));
            } else if (key === "paste") paste(placeFor(store.get()));
            else return false;
            return true;
          }}
        />
      )}
      <UploadList uploads={store.uploads} />
      <input ref={fileInput} type="file" multiple hidden aria-hidden="true" data-testid="files-input" onChange={(e) => {
        store.uploads.add(into.current, picked(e.target.files));
        e.target.value = "";
      }} />
      <input ref={folderInput} type="file" multiple hidden aria-hidden="true" {...{ webkitdirectory: "" }} onChange={(e) => {
        store.uploads.add(into.current, picked(e.target.files));
        e.target.value = "";
      }} />
      {menu && (
        <ContextMenu
          x={menu.x}
          y={menu.y}
          label={menu.entry && menu.entry.path ? "What to do with it" : "Files"}
          items={
            menu.entry === uploadMenu
              ? [
                  { label: "Upload files", icon: "upload", act: () => chooseFiles(placeFor(store.get()), false) },
                  { label: "Upload a folder", icon: "files", act: () => chooseFiles(placeFor(store.get()), true) },
                ]
              : menu.entry === moreMenu
                ? [
                    { label: tree.hidden ? "Hide hidden files" : "Show hidden files", ...(tree.hidden && { icon: "check" as const }), act: () => store.set((t) => ({ ...t, hidden: !t.hidden })) },
                    { label: "Look again", icon: "restart", act: () => store.refresh() },
                    { label: "Close all folders", act: () => store.set((t) => ({ ...t, open: new Set([t.root]) })) },
                    ...(clipboard && mayChange ? [{ label: "Paste here", act: () => paste(placeFor(store.get())) }] : []),
                    { label: "Download all as archive", icon: "download", act: () => download(box.id, tree.root, true) },
                  ]
                : items(menu.entry)
          }
          onClose={(back) => {
            setMenu(null);
            if (back) focusTree();
          }}
        />
      )}
      <Questions ask={ask} onEnd={() => setAsk(null)} />
    </div>
  );
});

/** The menus of two buttons of the bar, told apart from those of entries. */
const uploadMenu: Entry = { path: "", name: "upload", type: "", size: 0, modified: undefined, target: "" };
const moreMenu: Entry = { ...uploadMenu, name: "more" };
