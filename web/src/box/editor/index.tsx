import { type KeyboardEvent, type ReactNode, useCallback, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { openSearchPanel } from "@codemirror/search";
import { type Command, useCommands } from "../../palette/commands";
import { Empty } from "../../ui/bits";
import { Button, IconButton } from "../../ui/button";
import { Dialog } from "../../ui/dialog";
import { useBox, useBoxStream } from "../context";
import { baseOf, plain } from "../files/names";
import { FilePanel } from "../files/panel";
import { FileName } from "../files/parts";
import { fileStore } from "../files/store";
import { usePaths } from "../files/watch";
import { type Document, documentsOf } from "./documents";
import { Pane } from "./pane";
import "./style.css";

/** Files that are open, beside the tree. The one in sight is in the page's address. */
export default function Editor() {
  const { box, api, live, mayChange, query, open } = useBox();
  const stream = useBoxStream();
  const documents = documentsOf(box.id, api, mayChange);
  useSyncExternalStore(documents.subscribe, documents.get);
  const path = query.get("path") ?? "";
  const line = Number(query.get("line") ?? 0);
  const current = documents.list.find((d) => d.path === path);
  const [closing, setClosing] = useState<Document | null>(null);
  const tabs = useRef<HTMLDivElement>(null);
  const latest = useRef({ open, path });
  useEffect(() => {
    latest.current = { open, path };
  });

  useEffect(() => {
    documents.setLive(live);
  }, [documents, live]);
  useEffect(() => {
    documents.restore();
    documents.lookAll();
    return () => documents.saveAll();
  }, [documents]);
  useEffect(() => {
    if (/\.ipynb$/i.test(path)) open("notebook", { path });
    else if (path) documents.open(path);
    else if (documents.list[0]) open("editor", { path: documents.list[0].path });
    // eslint-disable-next-line react-hooks/exhaustive-deps -- `open` is another one at each render, and means the same
  }, [documents, path]);
  useEffect(() => {
    if (line > 0 && current?.kind === "text") current.goTo(line);
  }, [line, current, current?.kind]);
  useEffect(
    () =>
      fileStore(box.id, api).follow((from, to) => {
        const went = documents.went(from, to);
        if (latest.current.path === from || latest.current.path.startsWith(`${from}/`)) latest.current.open("editor", went ? { path: went } : documents.list[0] ? { path: documents.list[0].path } : undefined);
      }),
    [box.id, api, documents],
  );
  // The file in sight is watched first.
  const watched = live ? [path, ...documents.list.map((d) => d.path).filter((p) => p !== path)].filter((p) => documents.list.some((d) => d.path === p)) : [];
  usePaths(stream, watched, (file, event) => {
    if (event.kind !== "ready") documents.event(file);
  });

  const closeNow = useCallback(
    (document: Document, forget: boolean) => {
      const at = documents.list.indexOf(document);
      documents.close(document, forget);
      setClosing(null);
      if (document.path !== latest.current.path) return;
      const next = documents.list[Math.min(at, documents.list.length - 1)];
      if (next) latest.current.open("editor", { path: next.path });
      else latest.current.open("files");
    },
    [documents],
  );
  const close = useCallback((document: Document) => (document.dirty ? setClosing(document) : closeNow(document, false)), [closeNow]);

  const commands = useMemo<Command[]>(
    () =>
      current
        ? [
            { id: "editor-save", title: "Save", group: "Editor", keys: "Mod+S", run: () => current.save() },
            { id: "editor-find", title: "Find and replace", group: "Editor", icon: "search", run: () => current.editor && openSearchPanel(current.editor) },
            { id: "editor-wrap", title: "Wrap long lines", group: "Editor", run: () => documents.setWrap(!documents.wrap) },
            { id: "editor-close", title: `Close ${plain(current.name)}`, group: "Editor", icon: "close", run: () => close(current) },
          ]
        : [],
    [current, documents, close],
  );
  useCommands(commands);

  const moveBy = (e: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (e.key === "Delete" && current) close(current);
    if (!by || !current) return;
    e.preventDefault();
    const all = documents.list;
    const next = all[(all.indexOf(current) + by + all.length) % all.length]!;
    open("editor", { path: next.path });
    requestAnimationFrame(() => tabs.current?.querySelector<HTMLElement>("[aria-selected=true]")?.focus());
  };
  return (
    <div className="panel fill editor">
      <aside className="editor-side" aria-label="Files">
        <FilePanel compact current={path} />
      </aside>
      <div className="editor-main">
        <div className="editor-tabs">
          <IconButton icon="files" label="All files" className="editor-back" onClick={() => open("files")} />
          <div role="tablist" aria-label="Open files" ref={tabs} onKeyDown={moveBy}>
            {documents.list.map((d) => (
              <Tab key={d.path} document={d} selected={d === current} twin={documents.list.some((o) => o !== d && o.name === d.name)} onSelect={() => open("editor", { path: d.path })} onClose={() => close(d)} />
            ))}
          </div>
        </div>
        {current ? (
          <Pane key={`${current.path} ${documents.list.indexOf(current)}`} document={current} documents={documents} onClose={() => close(current)} />
        ) : (
          <Empty icon="edit" title="No file is open">
            <p>Choose one in the tree.</p>
            <Button onClick={() => open("files")} icon="files">
              All files
            </Button>
          </Empty>
        )}
      </div>
      {closing && <Closing document={closing} onEnd={() => setClosing(null)} onClose={() => closeNow(closing, true)} />}
    </div>
  );
}

function Tab({ document: d, selected, twin, onSelect, onClose }: { document: Document; selected: boolean; twin: boolean; onSelect: () => void; onClose: () => void }) {
  const element = useRef<HTMLSpanElement>(null);
  useEffect(() => {
    if (selected) element.current?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [selected]);
  return (
    <span ref={element} className={`editor-tab ${selected ? "selected" : ""}`} role="presentation" title={plain(d.path)}>
      <button type="button" role="tab" aria-selected={selected} aria-controls={selected ? "editor-pane" : undefined} aria-keyshortcuts="Delete" tabIndex={selected ? 0 : -1} onClick={onSelect}>
        {d.dirty && <span className="editor-dirty" aria-hidden="true" />}
        <FileName name={d.name} />
        {twin && (
          <span className="editor-twin">
            <FileName name={baseOf(d.path.slice(0, -d.name.length - 1)) || "/"} />
          </span>
        )}
        {d.dirty && <span className="visually-hidden"> (not saved)</span>}
      </button>
      <button type="button" className="icon-button" tabIndex={-1} aria-hidden="true" title={`Close ${plain(d.name)}`} onClick={onClose}>
        <svg className="icon" viewBox="0 0 20 20" width={13} height={13} fill="none" stroke="currentColor" strokeWidth="2" strokeLinecap="round" aria-hidden="true">
          <path d="m5 5 10 10M15 5 5 15" />
        </svg>
      </button>
    </span>
  );
}

function Closing({ document: d, onEnd, onClose }: { document: Document; onEnd: () => void; onClose: () => void }): ReactNode {
  // Saved meanwhile: there is nothing to ask any more.
  const done = !d.dirty;
  useEffect(() => {
    if (done) onClose();
  }, [done, onClose]);
  return (
    <Dialog title="Not saved yet" onClose={onEnd}>
      <p>
        What you typed into{" "}
        <strong>
          <FileName name={d.name} />
        </strong>{" "}
        is not on the box&apos;s disk. Closing it gives that up.
      </p>
      <div className="dialog-buttons">
        <Button onClick={onEnd}>Keep it open</Button>
        <Button kind="danger" onClick={onClose}>
          Close without saving
        </Button>
        <Button kind="primary" onClick={() => d.save()}>
          Save
        </Button>
      </div>
    </Dialog>
  );
}
