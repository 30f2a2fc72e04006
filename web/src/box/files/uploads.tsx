import { useState, useSyncExternalStore } from "react";
import { bytes } from "../../lib/format";
import { Button, IconButton, Spinner } from "../../ui/button";
import { Icon } from "../../ui/icon";
import { ClashDialog } from "./dialogs";
import { baseOf } from "./names";
import { FileName } from "./parts";
import { type Upload, type Uploads, over, sum } from "./upload";

/** So many are listed one by one; the rest is in the sum. */
const listed = 50;

/** What is on its way into the box. Stays until it is put away. */
export function UploadList({ uploads }: { uploads: Uploads }) {
  const list = useSyncExternalStore(uploads.subscribe, uploads.list);
  const [open, setOpen] = useState(true);
  if (list.length === 0) return null;
  const all = sum(list);
  const asking = list.find((u) => u.phase === "asking");
  const percent = all.size > 0 ? Math.floor((all.sent / all.size) * 100) : all.files === all.done ? 100 : 0;
  const title = all.running ? `Uploading ${all.files === 1 ? "one file" : `${all.files} files`}` : all.asking ? "Waiting for your answer" : all.failed ? `${all.failed} of ${all.files} did not arrive` : `${all.done === 1 ? "One file has" : `${all.done} files have`} arrived`;
  // Those that go on and those that did not work come first.
  const rank = (u: Upload) => ["sending", "waiting", "asking", "failed", "queued", "cancelled", "skipped", "done"].indexOf(u.phase);
  const shown = [...list].sort((a, b) => rank(a) - rank(b) || a.id - b.id).slice(0, listed);
  return (
    <section className="files-uploads" aria-label="Uploads">
      <header>
        <button type="button" className="files-uploads-title" aria-expanded={open} onClick={() => setOpen(!open)}>
          {all.running ? <Spinner /> : <Icon name={all.failed ? "warning" : "check"} size={16} />}
          <span role="status">{title}</span>
          {all.running && (
            <span className="soft">
              {bytes(all.sent)} of {bytes(all.size)}
            </span>
          )}
        </button>
        {all.running || all.asking ? (
          <Button small kind="quiet" onClick={() => uploads.cancelAll()}>
            Cancel all
          </Button>
        ) : (
          <IconButton icon="close" label="Put the list of uploads away" onClick={() => uploads.clear()} />
        )}
      </header>
      <div className="meter-bar" role="progressbar" aria-label="All uploads" aria-valuemin={0} aria-valuemax={100} aria-valuenow={percent}>
        <span style={{ width: `${percent}%` }} />
      </div>
      {open && (
        <ul>
          {shown.map((u) => (
            <Row key={u.id} u={u} uploads={uploads} />
          ))}
          {list.length > listed && <li className="soft small">and {list.length - listed} more</li>}
        </ul>
      )}
      {asking && (
        <ClashDialog
          key={asking.id}
          name={baseOf(asking.path)}
          more={list.length > 1}
          onAnswer={(answer) => (answer ? uploads.answer(asking.id, answer.clash, answer.forAll) : uploads.answer(asking.id, "skip", false))}
        />
      )}
    </section>
  );
}

const words: Record<Upload["phase"], string> = { queued: "waits", sending: "", waiting: "", asking: "waits for your answer", done: "arrived", failed: "", cancelled: "cancelled", skipped: "skipped" };

function Row({ u, uploads }: { u: Upload; uploads: Uploads }) {
  const percent = u.size > 0 ? Math.floor((u.sent / u.size) * 100) : 0;
  return (
    <li data-phase={u.phase}>
      <span className="files-upload-name">
        <FileName name={u.label} />
        {u.words && <small>{u.words}</small>}
      </span>
      <span className="soft small">{u.phase === "sending" || u.phase === "waiting" ? `${percent} % of ${bytes(u.size)}` : words[u.phase] || bytes(u.size)}</span>
      {!over(u.phase) && <IconButton icon="close" label={`Cancel ${baseOf(u.path)}`} onClick={() => uploads.cancel(u.id)} />}
      {(u.phase === "failed" || u.phase === "cancelled") && <IconButton icon="restart" label={`Try ${baseOf(u.path)} again`} onClick={() => uploads.retry(u.id)} />}
    </li>
  );
}
