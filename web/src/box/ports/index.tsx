import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type FormEvent, useState } from "react";
import type { BoxPort } from "../../gen/carrel/v1/boxes_pb";
import type { BoxListener } from "../../gen/carrel/v1/ports_pb";
import { restText } from "../../lib/states";
import { absolute, when } from "../../lib/format";
import { useLoad } from "../../lib/load";
import { Empty } from "../../ui/bits";
import { Button, IconButton } from "../../ui/button";
import { Dialog } from "../../ui/dialog";
import { Problem } from "../../ui/error";
import { Field } from "../../ui/field";
import { Icon } from "../../ui/icon";
import { Menu } from "../../ui/menu";
import { toast, toastError } from "../../ui/toast";
import { useBox } from "../context";
import { useBoxUse } from "../usage";
import "./style.css";

const visibilities = {
  private: { label: "Private", hint: "Only those who may use this box." },
  org: { label: "Organisation", hint: "Every member of the box's organisation." },
  public: { label: "Public", hint: "Everybody who has the address, without signing in." },
} as const;
type Visibility = keyof typeof visibilities;
const visibilityOf = (text: string | undefined): Visibility => (text === "org" || text === "public" ? text : "private");

export interface Row {
  port: number;
  process: string;
  /** Where a browser finds it; empty: nobody listens. */
  url: string;
  listening: boolean;
  visibility: Visibility;
}

/** Ports on which somebody listens, and those that were opened to more than their owner though nobody listens now. */
export function rows(listeners: readonly Pick<BoxListener, "port" | "process" | "url">[], ports: readonly Pick<BoxPort, "port" | "visibility">[]): Row[] {
  const all = new Map<number, Row>();
  for (const p of ports) if (visibilityOf(p.visibility) !== "private") all.set(p.port, { port: p.port, process: "", url: "", listening: false, visibility: visibilityOf(p.visibility) });
  for (const l of listeners) all.set(l.port, { port: l.port, process: l.process, url: l.url, listening: true, visibility: all.get(l.port)?.visibility ?? "private" });
  return [...all.values()].sort((a, b) => a.port - b.port);
}

/** Programs take ports from here on when any will do, such as kernels for their own talk; nobody would look for those first. */
const taken = 32768;
const isOwn = (r: Row): boolean => r.port >= taken && r.visibility === "private";

/** Programs of the box that listen, and who may reach them. */
export default function Ports() {
  const { box, live, mayChange, api } = useBox();
  const { listeners } = useBoxUse();
  const rules = useLoad((signal) => api.boxes.listBoxPorts({ id: box.id }, { signal }), [box.id, box.etag]);
  const [share, setShare] = useState<number>();
  const list = rows(listeners ?? [], rules.data?.ports ?? []);
  const open = async (port: number) => {
    // Opened at the click, or the browser takes it for an advertisement.
    const page = window.open("about:blank", "_blank");
    if (page) page.opener = null;
    try {
      const { url } = await api.ports.openPort({ box: box.id, port });
      if (page) page.location.replace(url);
      else location.assign(url);
    } catch (err) {
      page?.close();
      toastError(err);
    }
  };
  const show = async (port: number, visibility: Visibility) => {
    try {
      await api.boxes.setBoxPort({ id: box.id, port, visibility });
      toast(`Port ${port}: ${visibilities[visibility].hint}`);
      rules.reload();
    } catch (err) {
      toastError(err);
    }
  };
  const first = list.filter((r) => !isOwn(r));
  const own = list.filter(isOwn);
  const item = (r: Row) => (
    <li key={r.port} className="item" data-port={r.port}>
      <div>
        <strong>{r.port}</strong> {r.process && <span className="soft">{r.process}</span>}
        <p className="soft small">{r.listening ? r.url : "Nobody listens now."}</p>
      </div>
      <div className="ports-verbs">
        {mayChange ? (
          <Menu
            label={`Who may reach port ${r.port}: ${visibilities[r.visibility].label}`}
            className="button plain small"
            items={(Object.keys(visibilities) as Visibility[]).map((v) => ({
              label: visibilities[v].label,
              hint: visibilities[v].hint,
              checked: v === r.visibility,
              act: () => void show(r.port, v),
            }))}
          >
            {visibilities[r.visibility].label} <Icon name="down" size={14} />
          </Menu>
        ) : (
          <span className="badge off">{visibilities[r.visibility].label}</span>
        )}
        {mayChange && r.listening && <IconButton icon="key" label={`A link to port ${r.port} for somebody else`} onClick={() => setShare(r.port)} />}
        {mayChange && r.listening && (
          <Button small kind="primary" icon="external" onClick={() => void open(r.port)}>
            Open
          </Button>
        )}
      </div>
    </li>
  );
  return (
    <div className="panel ports">
      {rules.error !== undefined && <Problem title="Who may reach the ports cannot be shown" error={rules.error} retry={rules.reload} />}
      {first.length === 0 && (live ? listeners !== undefined : true) && (
        <Empty icon="ports" title={live ? "Nothing listens" : restText(box)}>
          <p>{live ? "Start a web server in the box, on any port: it appears here by itself." : "Its programs listen again when it does."}</p>
          {live && (
            <p>
              <code>python3 -m http.server 8000</code>
            </p>
          )}
        </Empty>
      )}
      {first.length > 0 && <h2>Ports on which programs of the box listen</h2>}
      {first.length > 0 && (
        <ul className="items ports-list" aria-label="Ports">
          {first.map(item)}
        </ul>
      )}
      {own.length > 0 && (
        <details className="ports-own">
          <summary>
            {own.length === 1 ? "One port that a program" : `${own.length} ports that programs`} took for {own.length === 1 ? "its" : "their"} own use
          </summary>
          <ul className="items">{own.map(item)}</ul>
        </details>
      )}
      {mayChange && live && <Other open={open} />}
      {share !== undefined && <Share port={share} onClose={() => setShare(undefined)} />}
    </div>
  );
}

/** A port that is not seen, because it is about to listen, say. */
function Other({ open }: { open: (port: number) => Promise<void> }) {
  const [text, setText] = useState("");
  const port = Number(text);
  const good = /^\d+$/.test(text.trim()) && port >= 1 && port <= 65535;
  const submit = (e: FormEvent) => {
    e.preventDefault();
    if (good) void open(port);
  };
  return (
    <form className="ports-other" onSubmit={submit}>
      <Field label="Another port" inputMode="numeric" placeholder="8000" value={text} onChange={(e) => setText(e.target.value)} problem={text && !good ? "A port is a number from 1 to 65535." : undefined} />
      <Button type="submit" disabled={!good}>
        Open
      </Button>
    </form>
  );
}

const lives = [
  { label: "1 hour", hours: 1 },
  { label: "1 day", hours: 24 },
  { label: "7 days", hours: 168 },
] as const;

function Share({ port, onClose }: { port: number; onClose: () => void }) {
  const { box, api } = useBox();
  const [link, setLink] = useState<{ url: string; until: Date | undefined }>();
  const [busy, setBusy] = useState(0);
  const make = async (hours: number) => {
    setBusy(hours);
    try {
      const { url, expireTime } = await api.boxes.createPortURL({ id: box.id, port, lifetime: durationFromMs(hours * 3_600_000) });
      setLink({ url, until: when(expireTime) });
    } catch (err) {
      toastError(err);
    } finally {
      setBusy(0);
    }
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(link!.url);
      toast("The link was copied");
    } catch {
      toast("Select the link and copy it by hand: the browser does not let this page do it");
    }
  };
  return (
    <Dialog title={`A link to port ${port}`} onClose={onClose}>
      <p>Whoever has the link can use what listens on port {port} of {box.name}, without signing in, until the link ends.</p>
      <div className="ports-lives" role="group" aria-label="How long the link is good">
        {lives.map((l) => (
          <Button key={l.hours} small busy={busy === l.hours} onClick={() => void make(l.hours)}>
            {l.label}
          </Button>
        ))}
      </div>
      {link && (
        <>
          <div className="secret">
            <code>{link.url}</code>
            <IconButton icon="copy" label="Copy the link" onClick={() => void copy()} />
          </div>
          {link.until && <p className="soft small">Good until {absolute(link.until)}.</p>}
        </>
      )}
    </Dialog>
  );
}
