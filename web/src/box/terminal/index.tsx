import "@xterm/xterm/css/xterm.css";
import type { ITheme } from "@xterm/xterm";
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { useDark } from "../../lib/theme";
import { type Command, useCommands } from "../../palette/commands";
import type { BoxStream } from "../../stream";
import { useConnection, useTerminal } from "../../stream/hooks";
import { Empty } from "../../ui/bits";
import { Button, IconButton, Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { Icon } from "../../ui/icon";
import { useBox, useBoxStream } from "../context";
import { Rest } from "../rest";
import { Session } from "./session";
import "./style.css";

/** Terminals whose process is one of these are offered to whoever opens the page. */
const ours = "terminal";

// Channels of a socket are never used twice, also not by the tab that is opened after another one.
const channels = new WeakMap<BoxStream, number>();
function nextChannel(stream: BoxStream): number {
  const n = (channels.get(stream) ?? 0) + 1;
  channels.set(stream, n);
  return n;
}

function themeOf(dark: boolean): ITheme {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  return {
    background: colour("--card"),
    foreground: colour("--ink"),
    cursor: colour("--accent"),
    cursorAccent: colour("--card"),
    selectionBackground: dark ? "#ffffff33" : "#0000002b",
    ...(dark ? {} : { black: "#1d2330", white: "#5a6272", brightWhite: "#1d2330", brightBlack: "#5a6272", yellow: "#7a5200", brightYellow: "#7a5200" }),
  };
}

/** Shells in the box. They go on when the page is closed, and are found again by any other. */
export default function Terminals() {
  const { live, mayChange } = useBox();
  if (!live) {
    return (
      <div className="panel">
        <Rest icon="terminal">
          <p>{mayChange ? "Start or resume it to get a terminal. After a pause the terminals are where they were." : "Terminals are shown while it runs."}</p>
        </Rest>
      </div>
    );
  }
  return <Shells />;
}

function Shells() {
  const { box, api, mayChange } = useBox();
  const stream = useBoxStream();
  const dark = useDark();
  const connection = useConnection();
  const sessions = useRef<Session[]>([]);
  const [, render] = useState(0);
  const changed = useCallback(() => render((n) => n + 1), []);
  const [current, setCurrent] = useState(0);
  const [found, setFound] = useState(false);
  const [error, setError] = useState<unknown>();
  const [round, setRound] = useState(0);
  const keys = useRef(0);
  const connected = useRef(false);
  const place = useRef<HTMLDivElement>(null);

  const { send } = useTerminal({
    onLive: () => {
      connected.current = true;
      for (const s of sessions.current) s.connect(nextChannel(stream));
    },
    onLost: () => {
      connected.current = false;
    },
    onEvent: (event) => {
      if (event.event.case === "terminal") for (const s of sessions.current) s.take(event.event.value);
    },
  });
  const latest = useRef({ send, dark });
  useEffect(() => {
    latest.current = { send, dark };
  });

  const add = useCallback(
    (process: string, title: string) => {
      const s = new Session(++keys.current, process, title, (r) => latest.current.send(r), changed, mayChange, themeOf(latest.current.dark));
      sessions.current = [...sessions.current, s];
      if (connected.current) s.connect(nextChannel(stream));
      setCurrent(s.key);
      changed();
    },
    [changed, mayChange, stream],
  );
  const open = useCallback(() => add("", `Shell ${keys.current + 1}`), [add]);

  // Shells of before are shown again; where there is none, one is opened.
  useEffect(() => {
    const abort = new AbortController();
    setError(undefined);
    api.processes
      .listProcesses({ box: box.id }, { signal: abort.signal })
      .then(({ processes }) => {
        if (abort.signal.aborted) return;
        for (const p of processes) {
          if (p.running && p.pty && p.kind === ours && !sessions.current.some((s) => s.process === p.id)) add(p.id, p.foreground || `Shell ${keys.current + 1}`);
        }
        if (sessions.current.length === 0 && mayChange) open();
        setFound(true);
      })
      .catch((err: unknown) => {
        if (!abort.signal.aborted) setError(err);
      });
    return () => abort.abort();
  }, [api, box.id, add, open, mayChange, round]);
  useEffect(
    () => () => {
      for (const s of sessions.current) s.dispose();
      sessions.current = [];
    },
    [],
  );

  const session = sessions.current.find((s) => s.key === current);
  useEffect(() => {
    if (!place.current || !session) return;
    session.show(place.current);
    session.term.focus();
    const sizes = new ResizeObserver(() => session.fit());
    sizes.observe(place.current);
    return () => sizes.disconnect();
  }, [session]);
  useEffect(() => {
    for (const s of sessions.current) s.term.options.theme = themeOf(dark);
  }, [dark]);

  const close = useCallback(
    (s: Session) => {
      s.hangUp();
      s.dispose();
      const at = sessions.current.indexOf(s);
      sessions.current = sessions.current.filter((other) => other !== s);
      setCurrent((now) => (now === s.key ? (sessions.current[Math.min(at, sessions.current.length - 1)]?.key ?? 0) : now));
      changed();
    },
    [changed],
  );
  const commands = useMemo<Command[]>(
    () => [
      ...(mayChange ? [{ id: "terminal-new", title: "New terminal", group: "Terminal", icon: "terminal" as const, run: open }] : []),
      {
        id: "terminal-reader",
        title: "Read terminals to a screen reader",
        group: "Terminal",
        run: () => {
          for (const s of sessions.current) s.term.options.screenReaderMode = !s.term.options.screenReaderMode;
        },
      },
    ],
    [open, mayChange],
  );
  useCommands(commands);

  if (!found && error !== undefined) return <Problem title="The terminals of the box cannot be found" error={error} retry={() => setRound((n) => n + 1)} />;
  if (!found) return <Loading>Looking for terminals…</Loading>;
  return (
    <div className="panel fill terminal">
      <div className="terminal-tabs">
        <div role="tablist" aria-label="Terminals">
          {sessions.current.map((s) => (
            <span key={s.key} className="terminal-tab" role="presentation">
              <button type="button" role="tab" id={`terminal-tab-${s.key}`} aria-selected={s.key === current} aria-controls="terminal-place" tabIndex={s.key === current ? 0 : -1} onClick={() => setCurrent(s.key)} aria-keyshortcuts="Delete" onKeyDown={(e) => (e.key === "Delete" && mayChange ? close(s) : move(e.key, sessions.current, current, setCurrent))}>
                <span className={`dot ${s.phase === "starting" ? "moving" : ""}`} data-phase={s.phase} aria-hidden="true" />
                {s.title}
                {s.phase === "ended" && <span className="visually-hidden"> (ended)</span>}
              </button>
              {mayChange && <IconButton icon="close" label={`Close ${s.title}`} tabIndex={-1} aria-hidden="true" onClick={() => close(s)} />}
            </span>
          ))}
        </div>
        {mayChange && <IconButton icon="plus" label="New terminal" onClick={open} />}
        <span className="grow" />
        {connection.broken && (
          <span className="badge busy" role="status">
            Reconnecting… programs go on
          </span>
        )}
        {!mayChange && <span className="badge off">You may look</span>}
      </div>
      {session ? (
        <>
          <div ref={place} id="terminal-place" className="terminal-place" role="tabpanel" aria-labelledby={`terminal-tab-${session.key}`} />
          {session.words && (
            <p className="terminal-words" role="status">
              <Icon name={session.phase === "failed" ? "warning" : "terminal"} size={16} /> {session.words}
              {(session.phase === "ended" || session.phase === "failed") && mayChange && (
                <Button
                  small
                  onClick={() => {
                    close(session);
                    open();
                  }}
                >
                  New terminal
                </Button>
              )}
            </p>
          )}
          {mayChange && <Keys session={session} />}
        </>
      ) : (
        <Empty icon="terminal" title="No terminal is open">
          {mayChange ? (
            <Button kind="primary" icon="plus" onClick={open}>
              New terminal
            </Button>
          ) : (
            <p>Those that somebody opens are shown here.</p>
          )}
        </Empty>
      )}
    </div>
  );
}

/** Arrow keys go from tab to tab; Delete closes one, as its button does. */
function move(key: string, all: readonly Session[], current: number, set: (key: number) => void) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (!by) return;
  const next = all[(all.findIndex((s) => s.key === current) + by + all.length) % all.length];
  if (!next) return;
  set(next.key);
  document.getElementById(`terminal-tab-${next.key}`)?.focus();
}

const bar = [
  { label: "Esc", data: "\x1b" },
  { label: "Tab", data: "\t" },
  { label: "Ctrl-C", data: "\x03" },
  { label: "Ctrl-D", data: "\x04" },
  { label: "↑", name: "Up", data: "\x1b[A" },
  { label: "↓", name: "Down", data: "\x1b[B" },
  { label: "←", name: "Left", data: "\x1b[D" },
  { label: "→", name: "Right", data: "\x1b[C" },
] as const;

/** Keys that phones do not have. */
function Keys({ session }: { session: Session }) {
  return (
    <div className="terminal-keys" role="group" aria-label="Keys">
      {bar.map((k) => (
        <button key={k.label} type="button" aria-label={"name" in k ? k.name : k.label} onClick={() => session.press(k.data)}>
          {k.label}
        </button>
      ))}
    </div>
  );
}
