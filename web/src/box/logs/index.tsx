import { useEffect, useLayoutEffect, useRef, useState } from "react";
import type { Process } from "../../gen/carrel/v1/processes_pb";
import { bytes, span, when } from "../../lib/format";
import { useLoad } from "../../lib/load";
import { useNow } from "../../lib/now";
import { useRouter } from "../../lib/router";
import { Ago, Empty } from "../../ui/bits";
import { IconButton, Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { Icon } from "../../ui/icon";
import { Menu } from "../../ui/menu";
import { toastError } from "../../ui/toast";
import { useBox } from "../context";
import { Rest } from "../rest";
import { TextOutput } from "../notebook/output/text";
import "../notebook/style.css";
import { follow, none, type Output } from "./output";
import "./style.css";

const kinds: Record<string, string> = { exec: "Command", startup: "Start-up", kernel: "Kernel", terminal: "Terminal", ssh: "SSH" };

/** How a process ended, or that it has not. */
export function stateOf(p: Pick<Process, "running" | "exitCode" | "exitSignal" | "endedBy">): { text: string; tone: "good" | "off" | "bad" } {
  if (p.running) return { text: "Runs", tone: "good" };
  if (p.endedBy === "memory") return { text: "Ended: out of memory", tone: "bad" };
  if (p.exitSignal) return { text: `Ended by ${p.exitSignal}`, tone: p.exitSignal === "KILL" || p.exitSignal === "SEGV" || p.exitSignal === "ABRT" ? "bad" : "off" };
  return p.exitCode === 0 ? { text: "Done", tone: "off" } : { text: `Failed with ${p.exitCode}`, tone: "bad" };
}

/** A command as one would type it; the shell that runs a line is left out. */
export function commandOf(args: readonly string[]): string {
  if (args.length === 3 && args[1] === "-c" && /(^|\/)(ba|da)?sh$/.test(args[0]!)) return args[2]!;
  return args.map((a) => (/^[\w@%+=:,./-]+$/.test(a) ? a : `'${a.replaceAll("'", "'\\''")}'`)).join(" ");
}

const began = (p: Process): number => when(p.startTime)?.getTime() ?? 0;

/** What the box's commands have put out: those of its start, kernels, terminals, and whatever was begun from elsewhere. */
export default function Logs() {
  const { box, live, mayChange, api, query } = useBox();
  const { go } = useRouter();
  const list = useLoad((signal) => (live ? api.processes.listProcesses({ box: box.id }, { signal }) : Promise.resolve(undefined)), [box.id, live, box.runId], live ? 3000 : undefined);
  const all = [...(list.data?.processes ?? [])].sort((a, b) => began(b) - began(a));
  const chosen = all.find((p) => p.id === query.get("process"));
  const choose = (id?: string) => go(`/boxes/${box.id}/logs${id ? `?process=${id}` : ""}`, { replace: true });
  if (!live) {
    return (
      <div className="panel">
        <Rest icon="logs">
          <p>What its commands put out belongs to its memory: it is here again after a pause, not after a stop. What happened to the box itself is under Events.</p>
        </Rest>
      </div>
    );
  }
  if (!list.data && list.error !== undefined) return <Problem title="The logs cannot be shown" error={list.error} retry={list.reload} />;
  if (!list.data) return <Loading>Looking for what runs…</Loading>;
  if (all.length === 0) {
    return (
      <div className="panel">
        <Empty icon="logs" title="No command has run yet">
          <p>The output of commands, kernels and terminals is kept here, also when nobody looks.</p>
          <p>
            <code>carrel exec {box.name} -- make test</code>
          </p>
        </Empty>
      </div>
    );
  }
  return (
    <div className="panel fill logs" data-chosen={chosen !== undefined}>
      <ul className="logs-list" aria-label="Commands, the newest first">
        {all.map((p) => (
          <Row key={p.id} process={p} chosen={p === chosen} choose={() => choose(p.id)} />
        ))}
      </ul>
      <div className="logs-main">
        {chosen ? (
          <One key={chosen.id} process={chosen} mayChange={mayChange} back={() => choose()} changed={list.reload} />
        ) : (
          <Empty icon="logs" title="Choose a command">
            <p>Its output is shown as it comes.</p>
          </Empty>
        )}
      </div>
    </div>
  );
}

function Row({ process: p, chosen, choose }: { process: Process; chosen: boolean; choose: () => void }) {
  const { text, tone } = stateOf(p);
  return (
    <li>
      <button type="button" className="logs-row" aria-current={chosen || undefined} onClick={choose}>
        <code className="logs-command">{commandOf(p.args)}</code>
        <span className="logs-facts">
          <span className={`logs-state ${tone}`}>{text}</span>
          <span>{kinds[p.kind] ?? p.kind}</span>
          <Ago time={p.running ? p.startTime : p.endTime} />
        </span>
      </button>
    </li>
  );
}

const signals = [
  { label: "Interrupt", signal: "INT", hint: "As Ctrl C does." },
  { label: "End", signal: "TERM", hint: "Lets it clean up." },
  { label: "Kill", signal: "KILL", hint: "At once, whatever it does.", danger: true },
];

function One({ process: p, mayChange, back, changed }: { process: Process; mayChange: boolean; back: () => void; changed: () => void }) {
  const { box, api } = useBox();
  const [output, setOutput] = useState<Output>(none);
  const [round, setRound] = useState(0);
  const first = useRef(p);
  const scroll = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const now = useNow();
  useEffect(() => {
    const abort = new AbortController();
    // However much comes, it is drawn once a frame.
    let frame = 0;
    let newest = none;
    setOutput(none);
    void follow(api.processes, box.id, first.current, abort.signal, (o) => {
      newest = o;
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        setOutput(newest);
      });
    });
    return () => {
      abort.abort();
      cancelAnimationFrame(frame);
    };
  }, [api, box.id, round]);
  useLayoutEffect(() => {
    const el = scroll.current;
    // Who looks at the end goes on looking at the end.
    if (el && atEnd.current) el.scrollTop = el.scrollHeight;
  }, [output.text]);
  const send = async (signal: string) => {
    try {
      await api.processes.signalProcess({ box: box.id, process: p.id, signal });
      changed();
    } catch (err) {
      toastError(err);
    }
  };
  const keep = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([output.text], { type: "text/plain" }));
    link.download = `${box.name}-${p.id}.log`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  const { text, tone } = stateOf(p);
  const from = began(p);
  const to = p.running ? now : (when(p.endTime)?.getTime() ?? from);
  const quiet = p.stdoutBytes + p.stderrBytes === 0n && output.text === "";
  return (
    <>
      <header className="logs-head">
        <IconButton icon="chevron" label="All commands" className="logs-back" onClick={back} />
        <code className="logs-title" title={commandOf(p.args)}>
          {commandOf(p.args)}
        </code>
        <IconButton icon="download" label="Download what is shown" disabled={output.text === ""} onClick={keep} />
        {mayChange && p.running && (
          <Menu label="End the command" className="button plain small" items={signals.map((s) => ({ label: s.label, hint: s.hint, danger: s.danger === true, act: () => void send(s.signal) }))}>
            End <Icon name="down" size={14} />
          </Menu>
        )}
      </header>
      <p className="logs-facts logs-about">
        <span className={`logs-state ${tone}`}>{text}</span>
        <span>
          {p.running ? "for" : "after"} {span(to - from)}
        </span>
        <span>
          as {p.user} in {p.cwd}
        </span>
        <span>{bytes(p.stdoutBytes + p.stderrBytes)} put out</span>
      </p>
      {output.error !== undefined && <Problem title="The output cannot be followed" error={output.error} retry={() => setRound((r) => r + 1)} />}
      {output.missing > 0 && <p className="notice logs-missing">Its beginning is not shown: {bytes(output.missing)} are no longer kept or too much for a page.</p>}
      <div
        ref={scroll}
        className="logs-text"
        tabIndex={0}
        role="region"
        aria-label="Output"
        onScroll={(e) => {
          const el = e.currentTarget;
          atEnd.current = el.scrollTop + el.clientHeight >= el.scrollHeight - 30;
        }}
      >
        {output.text && <TextOutput text={output.text} kind="stdout" label="Output" />}
        {quiet && <p className="soft pad">{p.running ? "It has put out nothing yet." : "It put out nothing."}</p>}
      </div>
    </>
  );
}
