import { Suspense, lazy, useEffect, useRef } from "react";
import { openSearchPanel } from "@codemirror/search";
import { bytes } from "../../lib/format";
import { Empty } from "../../ui/bits";
import { Button, IconButton, Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { Icon } from "../../ui/icon";
import { useBox } from "../context";
import { Rest } from "../rest";
import { download } from "../files/http";
import { plain } from "../files/names";
import { FileName } from "../files/parts";
import type { Document, Documents } from "./documents";
import { isDirty, stateWords } from "./sync";
import { isSVG } from "./text";

const Merge = lazy(() => import("./merge"));

/** One open file. */
export function Pane({ document: d, documents, onClose }: { document: Document; documents: Documents; onClose: () => void }) {
  const { box, live, mayChange } = useBox();
  const keep = () => download(box.id, d.path, false);
  const head = (
    <header className="editor-head">
      <span className="editor-path" title={plain(d.path)}>
        <FileName name={d.path} />
      </span>
      {d.kind === "text" && <State document={d} />}
      {d.kind === "text" && (
        <>
          <IconButton icon="search" label="Find and replace" onClick={() => d.editor && openSearchPanel(d.editor)} />
          <button type="button" className="icon-button" aria-label="Wrap long lines" title="Wrap long lines" aria-pressed={documents.wrap} onClick={() => documents.setWrap(!documents.wrap)}>
            <svg className="icon" viewBox="0 0 20 20" width={18} height={18} fill="none" stroke="currentColor" strokeWidth="1.6" strokeLinecap="round" strokeLinejoin="round" aria-hidden="true">
              <path d="M3 5h14M3 10h11a2.500 2.500 0 0 1 0 5h-4M12 13l-2 2 2 2M3 15h3" />
            </svg>
          </button>
        </>
      )}
      <IconButton icon="download" label="Download" disabled={!live} onClick={keep} />
    </header>
  );
  return (
    <div id="editor-pane" role="tabpanel" aria-label={plain(d.name)} className="editor-pane">
      {head}
      {d.kind === "opening" &&
        (live ? (
          <Loading>Opening…</Loading>
        ) : (
          <Rest icon="edit">
            <p>{mayChange ? "The file is opened when it runs again." : "Its files are seen while it runs."}</p>
          </Rest>
        ))}
      {d.kind === "failed" && <Problem title="The file cannot be opened" error={d.error} retry={() => void d.open()} />}
      {d.kind === "picture" && <Picture document={d} />}
      {(d.kind === "binary" || d.kind === "large") && (
        <Empty icon="files" title={d.kind === "binary" ? "This is not a text" : "Too large to be edited here"}>
          <p>
            {d.kind === "binary" ? "It holds bytes that no text has." : "Files of more than 5 MiB are not edited in the browser."} It has {bytes(d.size)}.
          </p>
          <div className="editor-choices">
            <Button kind="primary" icon="download" onClick={keep}>
              Download
            </Button>
            <Button onClick={() => void d.openSample()}>{d.size > 1 << 20 ? "Look at its beginning" : "Look at it anyway"}</Button>
            <Button kind="quiet" onClick={onClose}>
              Close
            </Button>
          </div>
        </Empty>
      )}
      {d.kind === "text" && (
        <>
          <Notice document={d} />
          {d.sync.phase === "conflict" ? (
            <Suspense fallback={<Loading>Preparing the comparison…</Loading>}>
              <Merge document={d} key={d.sync.theirs?.etag} />
            </Suspense>
          ) : (
            <Text document={d} />
          )}
          <Foot document={d} />
        </>
      )}
    </div>
  );
}

function State({ document: d }: { document: Document }) {
  if (d.fixed) return <span className="badge off">Read only</span>;
  const { text, tone } = stateWords(d.sync);
  return (
    <span className={`editor-state ${tone}`} role="status" title={text} data-dirty={isDirty(d.sync)} data-phase={d.sync.phase}>
      {tone === "bad" && <Icon name="warning" size={15} />}
      {tone === "calm" && <Icon name="check" size={15} />}
      <span>{text}</span>
    </span>
  );
}

function Notice({ document: d }: { document: Document }) {
  if (d.fixed) return <p className="editor-notice">{d.fixed}</p>;
  if (d.sync.phase === "unsaved") {
    return (
      <div className="editor-notice bad" role="alert">
        <span>
          <strong>Not saved.</strong> {d.sync.words} What you typed is kept in this browser meanwhile.
        </span>
        {d.sync.live && (
          <Button small onClick={() => d.save()}>
            Save now
          </Button>
        )}
      </div>
    );
  }
  if (d.sync.phase === "gone") {
    return (
      <div className="editor-notice bad" role="alert">
        <span>
          <strong>The file is gone from the disk.</strong> It was removed or moved away. What you see here is all that is left of it in this page.
        </span>
        <Button small onClick={() => d.resolve("mine")}>
          Save it again
        </Button>
      </div>
    );
  }
  return null;
}

function Text({ document: d }: { document: Document }) {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => d.attach(host.current!), [d]);
  return <div ref={host} className="editor-text" />;
}

function Foot({ document: d }: { document: Document }) {
  const state = d.state;
  if (!state) return null;
  const at = state.selection.main.head;
  const line = state.doc.lineAt(at);
  const chosen = state.selection.ranges.reduce((n, r) => n + r.to - r.from, 0);
  return (
    <footer className="editor-foot">
      <span>
        Line {line.number}, column {at - line.from + 1}
        {chosen > 0 && ` (${chosen} selected)`}
      </span>
      <span className="grow" />
      <span>{d.eol === "\r\n" ? "CRLF" : "LF"}</span>
      <span>{d.language}</span>
    </footer>
  );
}

function Picture({ document: d }: { document: Document }) {
  return (
    <>
      <div className="editor-picture">
        <img src={d.picture} alt={`Picture ${plain(d.name)}`} />
      </div>
      <footer className="editor-foot">
        <span>{bytes(d.size)}</span>
        <span className="grow" />
        {isSVG(d.name) && (
          <Button small kind="quiet" onClick={() => void d.open(true)}>
            Show its text
          </Button>
        )}
      </footer>
    </>
  );
}
