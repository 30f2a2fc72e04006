// The editor of one notebook.

import { useCallback, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { useConnection } from "../../stream/hooks";
import type { KernelSpec } from "../../gen/carrel/v1/notebooks_pb";
import { sentence } from "../../lib/errors";
import { type Command, useCommands } from "../../palette/commands";
import { Button, Loading } from "../../ui/button";
import { Confirm } from "../../ui/dialog";
import { Problem } from "../../ui/error";
import { toast, toastError } from "../../ui/toast";
import { useBox } from "../context";
import { NotebookApi } from "./api";
import { type CellActions, CellView } from "./cell";
import type { EditorHandle } from "./editor/editor";
import { Find, type Found } from "./find";
import { type Action, CommandKeys, everywhere, paletteActions, press } from "./keys";
import { Keeper } from "./keeper";
import { folderOf } from "./links";
import { object, randomHex } from "./model/nbformat";
import { queuePlaces } from "./model/reduce";
import { conflicts, settled } from "./model/sync";
import type { CellType } from "./model/types";
import { begun } from "./start";
import { NotebookStore, type Snapshot } from "./store";
import { KeyHelp, type SaveState, Toolbar } from "./toolbar";

interface Selection {
  /** Where it began, and where the keyboard is. */
  readonly anchor: string;
  readonly head: string;
  readonly editing: boolean;
}

export function NotebookView({ path, onBack }: { path: string; onBack: () => void }) {
  const { api, box, stream, mayChange, path: rest } = useBox();
  const store = useMemo(() => {
    const page = `web-${randomHex(6)}`;
    const say = (text: string, bad: boolean) => (bad ? toastError(new Error(text)) : toast(text));
    return new NotebookStore(new NotebookApi(api, box.id, path, page), stream, say, mayChange ? new Keeper(box.id, path, page) : null);
  }, [api, box.id, path, stream, mayChange]);
  useEffect(() => {
    store.open();
    return () => store.close();
  }, [store]);
  const snapshot = useSyncExternalStore(store.subscribe, store.read);
  useEffect(() => {
    const leaving = (e: BeforeUnloadEvent) => {
      store.flush();
      if (store.unsaved()) e.preventDefault();
    };
    const hidden = () => document.visibilityState === "hidden" && store.flush();
    window.addEventListener("beforeunload", leaving);
    window.addEventListener("pagehide", store.keepAtOnce);
    document.addEventListener("visibilitychange", hidden);
    return () => {
      window.removeEventListener("beforeunload", leaving);
      window.removeEventListener("pagehide", store.keepAtOnce);
      document.removeEventListener("visibilitychange", hidden);
    };
  }, [store]);
  // Relative paths begin at the user's home.
  const file = useCallback((p: string) => rest(p.startsWith("/") ? `fs${p}` : `fs/~/${p}`), [rest]);
  if (snapshot.error !== undefined && snapshot.doc === null) {
    return (
      <div className="panel">
        <Problem title="The notebook cannot be opened" error={snapshot.error} retry={store.reload} />
        <Button onClick={onBack}>All notebooks</Button>
      </div>
    );
  }
  if (snapshot.doc === null) return <Loading>Opening the notebook…</Loading>;
  return <Editor store={store} snapshot={snapshot} path={path} readOnly={!mayChange} file={file} onBack={onBack} />;
}

interface EditorProps {
  store: NotebookStore;
  snapshot: Snapshot;
  path: string;
  readOnly: boolean;
  file: (path: string) => string;
  onBack: () => void;
}

function Editor({ store, snapshot, path, readOnly, file, onBack }: EditorProps) {
  const { api, box } = useBox();
  const doc = snapshot.doc as NonNullable<Snapshot["doc"]>;
  const state = snapshot.sync as NonNullable<Snapshot["sync"]>;
  // Who made the notebook just now writes at once; on a phone that would cover half of it with keys.
  const [writing] = useState(() => begun.delete(path) && !readOnly && !matchMedia("(pointer: coarse)").matches);
  const [selection, setSelection] = useState<Selection>({ anchor: doc.order[0] ?? "", head: doc.order[0] ?? "", editing: writing });
  const [finding, setFinding] = useState(false);
  const [help, setHelp] = useState(false);
  const [restarting, setRestarting] = useState(false); // it is asked whether to
  const keys = useRef(new CommandKeys());
  const handles = useRef(new Map<string, EditorHandle>());
  const wantsFocus = useRef<{ id: string; at: "start" | "end" | null } | null>(writing ? { id: doc.order[0] ?? "", at: null } : null);
  const root = useRef<HTMLDivElement>(null);

  // A cell that is gone is not selected.
  const head = doc.cells.has(selection.head) ? selection.head : (doc.order[0] ?? "");
  const anchor = doc.cells.has(selection.anchor) ? selection.anchor : head;
  const editing = selection.editing && selection.head === head;
  const selected = useMemo(() => {
    const a = doc.order.indexOf(anchor);
    const b = doc.order.indexOf(head);
    return doc.order.slice(Math.min(a, b), Math.max(a, b) + 1);
  }, [doc.order, anchor, head]);

  const latest = useRef({ doc, head, anchor, selected, editing, readOnly });
  latest.current = { doc, head, anchor, selected, editing, readOnly };

  const select = useCallback((id: string, extend = false) => {
    setSelection((s) => (extend ? { anchor: s.anchor, head: id, editing: false } : s.head === id && s.anchor === id ? s : { anchor: id, head: id, editing: false }));
  }, []);

  const edit = useCallback((id: string, on: boolean, at: "start" | "end" | null = null) => {
    if (on && latest.current.readOnly) return;
    if (on) {
      const handle = handles.current.get(id);
      if (handle === undefined) wantsFocus.current = { id, at };
      else if (document.activeElement?.closest("[data-cell]")?.getAttribute("data-cell") !== id || document.activeElement.closest(".cm-editor") === null) {
        if (at !== null) handle.placeCaret(at);
        handle.focus();
      }
    }
    setSelection((s) => (s.head === id && s.anchor === id && s.editing === on ? s : { anchor: id, head: id, editing: on }));
    if (!on) root.current?.querySelector<HTMLElement>(`[data-cell="${CSS.escape(id)}"]`)?.focus({ preventScroll: true });
  }, []);

  const act = useCallback(
    (action: Action): boolean => {
      const { doc, head, selected, readOnly, editing } = latest.current;
      const at = doc.order.indexOf(head);
      const near = (by: number) => doc.order[Math.max(0, Math.min(doc.order.length - 1, at + by))] ?? head;
      const go = (id: string) => id !== "" && select(id);
      switch (action) {
        case "up":
          go(near(-1));
          return true;
        case "down":
          go(near(1));
          return true;
        case "first":
          go(doc.order[0] ?? "");
          return true;
        case "last":
          go(doc.order.at(-1) ?? "");
          return true;
        case "extend-up":
          select(near(-1), true);
          return true;
        case "extend-down":
          select(near(1), true);
          return true;
        case "select-all":
          setSelection({ anchor: doc.order[0] ?? "", head: doc.order.at(-1) ?? "", editing: false });
          return true;
        case "copy":
          store.copy(selected);
          return true;
        case "find":
          setFinding(true);
          return true;
        case "help":
          setHelp(true);
          return true;
        case "interrupt":
          void store.interrupt();
          return true;
      }
      if (readOnly) return false;
      const fold = (key: "outputs_hidden" | "source_hidden") => {
        for (const id of selected) store.setMetadata(id, { [key]: object(doc.cells.get(id)?.metadata.jupyter)[key] === true ? undefined : true }, "jupyter");
      };
      switch (action) {
        case "edit":
          edit(head, true);
          break;
        case "run-stay":
          edit(head, false);
          void store.run(selected);
          break;
        case "run-next": {
          void store.run(selected);
          const last = selected.at(-1) ?? head;
          const next = doc.order[doc.order.indexOf(last) + 1];
          if (next === undefined) edit(store.insert(last, "code"), true);
          else {
            edit(next, false);
            select(next);
          }
          break;
        }
        case "run-insert":
          void store.run(selected);
          edit(store.insert(selected.at(-1) ?? head, "code"), true);
          break;
        case "insert-above":
          select(store.insert(store.before(selected[0] ?? head), "code"));
          break;
        case "insert-below":
          select(store.insert(selected.at(-1) ?? head, "code"));
          break;
        case "cut":
          store.copy(selected);
          select(store.remove(selected));
          break;
        case "paste":
          go(store.paste(selected.at(-1) ?? head));
          break;
        case "paste-above":
          go(store.paste(store.before(selected[0] ?? head)));
          break;
        case "delete":
          select(store.remove(selected));
          break;
        case "undo":
          store.undo();
          break;
        case "redo":
          store.redo();
          break;
        case "to-code":
        case "to-markdown":
        case "to-raw":
          store.changeType(selected, action.slice(3) as CellType);
          break;
        case "merge":
          store.merge(selected);
          select(selected[0] ?? head);
          break;
        case "split":
          if (editing) edit(store.split(head, handles.current.get(head)?.caret() ?? 0), true, "start");
          break;
        case "move-up":
          store.move(selected, -1);
          break;
        case "move-down":
          store.move(selected, 1);
          break;
        case "toggle-output":
          fold("outputs_hidden");
          break;
        case "toggle-source":
          fold("source_hidden");
          break;
        case "restart":
          setRestarting(true);
          break;
        case "save":
          store.flush();
          break;
        default:
          if (action.startsWith("heading-")) {
            const level = Number(action.slice(8));
            const text = (doc.cells.get(head)?.source ?? "").replace(/^#+\s*/, "");
            store.edit([
              { kind: "type", cell: head, type: "markdown" },
              { kind: "source", cell: head, source: `${"#".repeat(level)} ${text}` },
            ]);
            break;
          }
          return false;
      }
      return true;
    },
    [store, select, edit],
  );

  const actions = useMemo<CellActions>(
    () => ({
      select: (id, extend) => {
        const now = latest.current;
        if (!(now.editing && now.head === id)) select(id, extend);
      },
      edit: (id, on) => edit(id, on),
      leave: (id, how) => {
        if (how === "escape") edit(id, false);
        else {
          const { order } = latest.current.doc;
          const next = order[order.indexOf(id) + (how === "up" ? -1 : 1)];
          if (next !== undefined) edit(next, true, how === "up" ? "end" : "start");
        }
      },
      key: (_id, event) => {
        const action = everywhere(press(event));
        return action !== null && act(action);
      },
      type: (id, text) => store.type(id, text),
      run: (id) => {
        edit(id, false);
        void store.run([id]);
      },
      answer: (execution, value) => store.answer(execution, value),
      resolve: (id, text) => store.resolve(id, text),
      toggleOutput: (id) => {
        select(id);
        store.setMetadata(id, { outputs_hidden: undefined }, "jupyter");
        store.setMetadata(id, { collapsed: undefined });
      },
      toggleSource: (id) => store.setMetadata(id, { source_hidden: undefined }, "jupyter"),
      handle: (id, handle) => {
        if (handle === null) {
          handles.current.delete(id);
          return;
        }
        handles.current.set(id, handle);
        if (wantsFocus.current?.id === id) {
          const { at } = wantsFocus.current;
          wantsFocus.current = null;
          // When everything is in its place.
          queueMicrotask(() => {
            if (at !== null) handle.placeCaret(at);
            handle.focus();
          });
        }
      },
      file,
      help: store.help,
    }),
    [store, act, edit, select, file],
  );

  const language = languageOf(doc);
  const places = useMemo(() => queuePlaces(doc), [doc]);
  const busy = [...doc.runs.values()].some((r) => r.state === "running" || r.state === "queued") || snapshot.asked.size > 0;
  const name = path.split("/").at(-1) ?? path;
  const toolbar = useMemo(
    () => ({
      run: () => act("run-next"),
      runAll: () => void store.runAll(),
      runAbove: () => void store.run(latest.current.doc.order.slice(0, latest.current.doc.order.indexOf(latest.current.head))),
      runBelow: () => void store.run(latest.current.doc.order.slice(latest.current.doc.order.indexOf(latest.current.head))),
      interrupt: () => void store.interrupt(),
      restart: () => void store.restart(),
      restartAndRunAll: () => void store.restartAndRunAll(),
      shutdown: () => void store.shutdown(),
      add: () => {
        const { selected, head } = latest.current;
        edit(store.insert(selected.at(-1) ?? head, "code"), true);
      },
      setType: (type: CellType) => store.changeType(latest.current.selected, type),
      moveUp: () => act("move-up"),
      moveDown: () => act("move-down"),
      split: () => act("split"),
      merge: () => act("merge"),
      cut: () => act("cut"),
      copy: () => act("copy"),
      paste: () => act("paste"),
      remove: () => act("delete"),
      undo: () => store.undo(),
      redo: () => store.redo(),
      clearAll: () => store.clearOutputs("*"),
      find: () => setFinding(true),
      back: onBack,
      specs: async () => (await api.notebooks.listKernelSpecs({ box: box.id })).specs,
      choose: (spec: KernelSpec) => void store.chooseKernel(spec.name, spec.displayName, spec.language),
    }),
    [store, act, edit, onBack, api, box.id],
  );
  useCommands(
    useMemo<Command[]>(() => {
      const c = (id: string, title: string, ownKeys: string, run: () => void, words = ""): Command => ({ id: `notebook.${id}`, title, words, group: "Notebook", icon: "notebook", ownKeys, run });
      return [
        c("run-all", "Run all cells", "", toolbar.runAll),
        c("run-above", "Run all cells above", "", toolbar.runAbove),
        c("run-below", "Run the cell and all below", "", toolbar.runBelow),
        { ...c("interrupt", "Interrupt the kernel", "", toolbar.interrupt, "stop"), keys: "I I" },
        { ...c("restart", "Restart the kernel", "", toolbar.restart), keys: "0 0" },
        c("restart-all", "Restart the kernel and run all cells", "", toolbar.restartAndRunAll),
        c("shutdown", "Shut the kernel down", "", toolbar.shutdown, "end memory"),
        ...paletteActions.map(([action, title, keys, words]) => c(action, title, keys, () => act(action), words)),
        c("clear", "Empty all outputs", "", toolbar.clearAll, "clear"),
        c("back", "All notebooks", "", onBack),
      ];
    }, [toolbar, act, onBack]),
  );

  const goTo = (found: Found) => {
    edit(found.cell, true);
    handles.current.get(found.cell)?.select(found.from, found.to);
  };

  return (
    <div
      ref={root}
      className="panel fill nb"
      onKeyDown={(e) => {
        if (e.defaultPrevented || (e.target instanceof Element && e.target.closest("input, textarea, select, .cm-editor, .menu, dialog, [role=menu]"))) return;
        if (e.target instanceof Element && e.target.closest("button, a, .nb-window-text") && (e.key === "Enter" || e.key === " " || e.key.startsWith("Arrow"))) return;
        if (e.target instanceof Element && e.target.closest(".nb-toolbar")) return;
        const action = keys.current.read(press(e), e.timeStamp);
        if (action !== null && act(action)) {
          e.preventDefault();
          e.stopPropagation();
        }
      }}
    >
      <Toolbar
        name={name}
        readOnly={readOnly}
        busy={busy}
        type={doc.cells.get(head)?.type ?? "code"}
        kernel={doc.kernel}
        wanted={String(object(doc.metadata.kernelspec).display_name ?? "") || "Kernel"}
        saved={saveState(snapshot)}
        canUndo={snapshot.canUndo}
        canRedo={snapshot.canRedo}
        actions={toolbar}
      />
      {finding && (
        <Find
          doc={doc}
          onGo={goTo}
          onClose={() => {
            setFinding(false);
            edit(head, false);
          }}
        />
      )}
      <Banners store={store} doc={doc} state={state} />
      <div className="nb-unseen" role="status" aria-live="polite">
        {snapshot.announcement}
      </div>
      <div className="nb-cells" role="region" aria-label={`Cells of ${name}`}>
        {doc.order.map((id, i) => {
          const cell = doc.cells.get(id);
          if (cell === undefined) return null;
          return (
            <CellView
              key={id}
              cell={cell}
              place={i + 1}
              selected={selected.includes(id)}
              active={id === head}
              editing={editing && id === head}
              run={doc.runs.get(cell.execution)}
              queuePlace={places.get(cell.execution) ?? 0}
              asked={snapshot.asked.has(id)}
              draft={state.drafts.get(id)}
              language={language}
              readOnly={readOnly}
              folder={folderOf(path)}
              actions={actions}
            />
          );
        })}
        {!readOnly && (
          <div className="nb-end">
            <Button small icon="plus" onClick={() => edit(store.insert(doc.order.at(-1) ?? "", "code"), true)}>
              Code
            </Button>
            <Button small icon="plus" onClick={() => edit(store.insert(doc.order.at(-1) ?? "", "markdown"), true)}>
              Text
            </Button>
          </div>
        )}
      </div>
      {!readOnly && (
        <button type="button" className="nb-big-run" onClick={() => act("run-next")} aria-label="Run the cell and go on">
          ▶
        </button>
      )}
      {help && <KeyHelp onClose={() => setHelp(false)} />}
      {restarting && (
        <Confirm
          title="Restart the kernel?"
          text="Its variables are lost, and what runs ends. Cells and outputs stay."
          verb="Restart"
          act={() => store.restart()}
          onClose={() => setRestarting(false)}
        />
      )}
    </div>
  );
}

function Banners({ store, doc, state }: { store: NotebookStore; doc: NonNullable<Snapshot["doc"]>; state: NonNullable<Snapshot["sync"]> }) {
  const connection = useConnection();
  const { kernel } = doc;
  return (
    <>
      {connection.broken && (
        <div className="nb-banner" role="status">
          <span>{connection.phase === "refused" ? connection.message : "Reconnecting… your code goes on, and nothing of its output is lost."}</span>
          <Button small onClick={connection.retry}>
            Try now
          </Button>
        </div>
      )}
      {doc.removed && (
        <div className="nb-banner bad" role="alert">
          The file of this notebook was removed from the box. What you see is all that is left of it; an edit makes the file again.
        </div>
      )}
      {doc.unsaved !== "" && (
        <div className="nb-banner bad" role="alert">
          <span>
            <strong>Not saved to the file.</strong> {sentence(doc.unsaved)} Your changes are kept in the box meanwhile, and are saved by themselves as soon as that is possible.
          </span>
        </div>
      )}
      {state.trouble !== "" && doc.unsaved === "" && (
        <div className="nb-banner" role="status">
          <span>Your last changes are not at the box yet. {state.trouble}</span>
        </div>
      )}
      {(kernel?.health === "dead" || kernel?.health === "unresponsive") && (
        <div className="nb-banner bad" role="alert">
          <span>
            {kernel.health === "dead" ? "The kernel has ended" : "The kernel does not answer"}
            {kernel.message ? `: ${kernel.message}` : "."} {kernel.health === "dead" ? "Its variables are lost; outputs are kept." : "It may be busy in code that cannot be interrupted."}
          </span>
          {kernel.health === "unresponsive" && (
            <Button small onClick={() => void store.interrupt()}>
              Interrupt
            </Button>
          )}
          <Button small onClick={() => void store.restart()}>
            Restart
          </Button>
        </div>
      )}
    </>
  );
}

function languageOf(doc: NonNullable<Snapshot["doc"]>): string {
  const info = object(doc.metadata.language_info).name ?? object(doc.metadata.kernelspec).language ?? doc.kernel?.language;
  return typeof info === "string" ? info : (doc.kernel?.language ?? "python");
}

function saveState({ doc, sync }: Snapshot): SaveState {
  if (doc?.unsaved) return { text: "Not saved", tone: "bad", detail: doc.unsaved };
  if (sync === null || settled(sync)) return { text: "Saved", tone: "good", detail: "The box has everything; the file follows a moment later" };
  if (sync.trouble !== "") return { text: "Not saved yet", tone: "bad", detail: sync.trouble };
  if (conflicts(sync).length > 0) return { text: "Choose a text", tone: "bad", detail: "A cell was changed in two places" };
  return { text: "Saving…", tone: "busy", detail: "Being saved" };
}
