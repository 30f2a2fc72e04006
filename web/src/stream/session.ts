// What a box's stream does next, as a pure function: step(session, input) gives the session after it and what is to be
// done. No socket, clock or randomness in here, so that every order of events can be tested.
//
// Words: a *watch* is what somebody on the page wants to see (a notebook's events, say); it outlives sockets. A *channel*
// is its number on the present socket. Channels are never used again on a socket.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { delay } from "./backoff";
import { standing } from "./cursor";
import type {
  BoxUsage,
  FileEvent,
  ListBoxListenersResponse,
  NotebookEvent,
  StreamEvent,
  StreamRequestSchema,
  TerminalEvent,
  TerminalRequest,
} from "./proto";

export type RequestInit = MessageInitShape<typeof StreamRequestSchema>;

/** What a watch asks for. Terminals ask for themselves at each connection, since they keep offsets of their own. */
export type Want =
  | { kind: "notebooks"; path: string; after: string }
  | { kind: "files"; path: string; recursive: boolean }
  | { kind: "usage"; seconds: number }
  | { kind: "terminal" };

/** What a watch is told. */
export type News =
  | { kind: "notebook"; event: NotebookEvent }
  /** Events were lost, or the journal is another one: read again, then `restart` the watch from the new cursor. */
  | { kind: "gap" }
  | { kind: "file"; event: FileEvent }
  | { kind: "usage"; usage: BoxUsage }
  | { kind: "listeners"; listeners: ListBoxListenersResponse }
  | { kind: "terminal"; event: TerminalEvent }
  /** Connected (again): a terminal sends its attach now, with this channel number. */
  | { kind: "attach"; channel: number }
  | { kind: "detached" }
  /** The box refused or ended this watch; it is over. */
  | { kind: "ended"; code: string; reason: string; message: string };

interface Watch {
  readonly want: Want;
  /** 0: not on the socket. */
  readonly channel: number;
}

export type Link =
  | { readonly phase: "idle" }
  | { readonly phase: "connecting"; readonly attempt: number }
  | { readonly phase: "open"; readonly heard: number; readonly attempt: number }
  | { readonly phase: "waiting"; readonly attempt: number; readonly until: number }
  /** The right was taken away, or the page is too old to be understood: not tried again by itself. */
  | { readonly phase: "refused"; readonly code: number; readonly message: string };

export interface Session {
  readonly link: Link;
  readonly watches: ReadonlyMap<number, Watch>;
  readonly nextChannel: number;
  readonly nextTerminal: number;
  readonly hidden: boolean;
  readonly offline: boolean;
  /** Since when the stream has been broken, in ms; 0: it is not. */
  readonly brokenSince: number;
}

export type Input =
  | { type: "watch"; id: number; want: Want }
  | { type: "unwatch"; id: number }
  /** After a gap: go on from this cursor. */
  | { type: "restart"; id: number; after: string }
  | { type: "opened" }
  | { type: "event"; event: StreamEvent }
  | { type: "closed"; code: number; reason: string }
  | { type: "timer" }
  /** The page is seen again, or the network is back. */
  | { type: "woke" }
  | { type: "hidden"; hidden: boolean }
  | { type: "offline"; offline: boolean }
  | { type: "retry" };

export type Effect =
  | { type: "connect" }
  | { type: "disconnect" }
  | { type: "send"; request: RequestInit }
  | { type: "timer"; ms: number }
  | { type: "tell"; id: number; news: News }
  /** The ticket or session has ended: ask who one is before the next try. */
  | { type: "sign-in" };

export interface Moment {
  /** Milliseconds, rising. */
  readonly now: number;
  /** In [0, 1). */
  readonly random: number;
}

/** The server says something every 20 s; after this long without a word the connection is taken for dead. */
export const silence = 45_000;
/** A page that comes back after a sleep does not wait so long for a sign of life. */
const silenceAfterSleep = 22_000;

export function newSession(): Session {
  return {
    link: { phase: "idle" },
    watches: new Map(),
    nextChannel: 1,
    nextTerminal: 1,
    hidden: false,
    offline: false,
    brokenSince: 0,
  };
}

class Turn {
  readonly effects: Effect[] = [];
  constructor(
    public s: Session,
    readonly at: Moment,
  ) {}

  set(change: Partial<Session>) {
    this.s = { ...this.s, ...change };
  }

  put(id: number, watch: Watch | null) {
    const watches = new Map(this.s.watches);
    if (watch === null) watches.delete(id);
    else watches.set(id, watch);
    this.set({ watches });
  }

  tell(id: number, news: News) {
    this.effects.push({ type: "tell", id, news });
  }

  send(request: RequestInit) {
    this.effects.push({ type: "send", request });
  }

  connect(attempt: number) {
    this.set({ link: { phase: "connecting", attempt } });
    this.effects.push({ type: "connect" });
    // A connection that neither opens nor fails is given up.
    this.effects.push({ type: "timer", ms: silence });
  }

  /** Puts a watch on the open socket. */
  join(id: number) {
    const watch = this.s.watches.get(id);
    if (watch === undefined || this.s.link.phase !== "open") return;
    const { want } = watch;
    if (want.kind === "terminal") {
      const channel = this.s.nextTerminal;
      this.set({ nextTerminal: channel + 1 });
      this.put(id, { ...watch, channel });
      this.tell(id, { kind: "attach", channel });
      return;
    }
    const channel = this.s.nextChannel;
    this.set({ nextChannel: channel + 1 });
    this.put(id, { ...watch, channel });
    switch (want.kind) {
      case "notebooks":
        this.send({ channel, request: { case: "notebooks", value: { path: want.path, after: want.after } } });
        break;
      case "files":
        this.send({ channel, request: { case: "files", value: { path: want.path, recursive: want.recursive } } });
        break;
      case "usage":
        this.send({ channel, request: { case: "usage", value: { seconds: want.seconds } } });
        break;
    }
  }

  leave(id: number) {
    const watch = this.s.watches.get(id);
    if (watch === undefined || watch.channel === 0 || this.s.link.phase !== "open") return;
    if (watch.want.kind === "terminal") {
      this.send({ request: { case: "terminal", value: { channel: watch.channel, request: { case: "close", value: true } } } });
    } else {
      this.send({ channel: watch.channel, request: { case: "close", value: true } });
    }
    this.put(id, { ...watch, channel: 0 });
  }

  /** The socket is gone: every watch is off it. */
  detach() {
    for (const [id, watch] of this.s.watches) {
      if (watch.channel === 0) continue;
      this.put(id, { ...watch, channel: 0 });
      this.tell(id, { kind: "detached" });
    }
  }

  wait(attempt: number) {
    if (this.s.watches.size === 0) {
      this.set({ link: { phase: "idle" }, brokenSince: 0 });
      return;
    }
    const ms = delay(attempt, this.at.random, this.s.hidden);
    this.set({ link: { phase: "waiting", attempt: attempt + 1, until: this.at.now + ms } });
    this.effects.push({ type: "timer", ms });
  }

  broke() {
    if (this.s.brokenSince === 0) this.set({ brokenSince: this.at.now });
    this.detach();
  }
}

/** The session after an input, and what is to be done, in order. */
export function step(session: Session, input: Input, at: Moment): { session: Session; effects: Effect[] } {
  const t = new Turn(session, at);
  switch (input.type) {
    case "watch":
      t.put(input.id, { want: input.want, channel: 0 });
      if (t.s.link.phase === "idle") t.connect(0);
      else t.join(input.id);
      break;
    case "unwatch":
      t.leave(input.id);
      t.put(input.id, null);
      if (t.s.watches.size === 0 && t.s.link.phase !== "refused") {
        if (t.s.link.phase === "open" || t.s.link.phase === "connecting") t.effects.push({ type: "disconnect" });
        t.set({ link: { phase: "idle" }, brokenSince: 0 });
      }
      break;
    case "restart": {
      const watch = t.s.watches.get(input.id);
      if (watch === undefined || watch.want.kind !== "notebooks") break;
      t.leave(input.id);
      t.put(input.id, { want: { ...watch.want, after: input.after }, channel: 0 });
      t.join(input.id);
      break;
    }
    case "opened":
      // The numbers begin again: channels belong to the socket.
      t.set({
        link: { phase: "open", heard: at.now, attempt: t.s.link.phase === "connecting" ? t.s.link.attempt : 0 },
        nextChannel: 1,
        nextTerminal: 1,
        brokenSince: 0,
      });
      for (const id of [...t.s.watches.keys()]) t.join(id);
      t.effects.push({ type: "timer", ms: silence });
      break;
    case "event":
      heard(t, input.event);
      break;
    case "closed":
      closed(t, input.code, input.reason);
      break;
    case "timer":
      timer(t);
      break;
    case "woke":
      woke(t);
      break;
    case "hidden":
      t.set({ hidden: input.hidden });
      break;
    case "offline":
      t.set({ offline: input.offline });
      break;
    case "retry":
      if (t.s.link.phase === "waiting" || t.s.link.phase === "refused") t.connect(0);
      break;
  }
  return { session: t.s, effects: t.effects };
}

function timer(t: Turn) {
  const { link } = t.s;
  if (link.phase === "waiting") {
    if (t.at.now >= link.until) t.connect(link.attempt);
    else t.effects.push({ type: "timer", ms: link.until - t.at.now });
  } else if (link.phase === "connecting") {
    t.effects.push({ type: "disconnect" });
    t.broke();
    t.wait(link.attempt);
  } else if (link.phase === "open") {
    const quiet = t.at.now - link.heard;
    if (quiet >= silence) {
      t.effects.push({ type: "disconnect" });
      t.broke();
      t.wait(0);
    } else {
      t.effects.push({ type: "timer", ms: silence - quiet });
    }
  }
}

function woke(t: Turn) {
  t.set({ hidden: false, offline: false });
  const { link } = t.s;
  if (link.phase === "waiting") t.connect(link.attempt);
  else if (link.phase === "open" && t.at.now - link.heard > silenceAfterSleep) {
    // The socket did not survive the sleep, whatever the browser thinks.
    t.effects.push({ type: "disconnect" });
    t.broke();
    t.connect(0);
  }
}

function closed(t: Turn, code: number, reason: string) {
  const { link } = t.s;
  if (link.phase !== "open" && link.phase !== "connecting") return;
  const lived = link.phase === "open";
  t.broke();
  switch (code) {
    case 4403:
      t.set({ link: { phase: "refused", code, message: reason || "You may no longer look into this box." } });
      return;
    case 1008:
    case 1009:
      t.set({ link: { phase: "refused", code, message: "This page and the server do not understand each other. Reload the page." } });
      return;
    case 4401:
      t.effects.push({ type: "sign-in" });
      break;
  }
  // A connection that lived is tried again soon; one that never opened, or was cut at once, more slowly each time.
  t.wait(lived && link.attempt === 0 ? 0 : link.attempt);
}

function heard(t: Turn, event: StreamEvent) {
  if (t.s.link.phase !== "open") return;
  t.set({ link: { phase: "open", heard: t.at.now, attempt: 0 } });
  const body = event.event;
  if (body.case === undefined || body.case === "keepAlive") return;
  const terminal = body.case === "terminal";
  const channel = terminal ? body.value.channel : event.channel;
  const found = [...t.s.watches].find(([, w]) => w.channel === channel && channel !== 0 && (w.want.kind === "terminal") === terminal);
  // Late words on a channel that was left.
  if (found === undefined) return;
  const [id, watch] = found;
  switch (body.case) {
    case "terminal":
      t.tell(id, { kind: "terminal", event: body.value });
      break;
    case "notebook":
      notebook(t, id, watch, body.value);
      break;
    case "file":
      t.tell(id, { kind: "file", event: body.value });
      break;
    case "usage":
      t.tell(id, { kind: "usage", usage: body.value });
      break;
    case "listeners":
      t.tell(id, { kind: "listeners", listeners: body.value });
      break;
    case "error":
      t.put(id, { ...watch, channel: 0 });
      t.tell(id, { kind: "ended", code: body.value.code, reason: body.value.reason, message: body.value.message });
      break;
  }
}

function notebook(t: Turn, id: number, watch: Watch, event: NotebookEvent) {
  if (watch.want.kind !== "notebooks") return;
  if (event.event.case === "keepAlive") return;
  const how = standing(event.cursor, watch.want.after);
  if (event.event.case === "gap" || how === "other-journal") {
    // What follows is passed on all the same: the page keeps it until it has read again.
    t.put(id, { ...watch, want: { ...watch.want, after: event.cursor || watch.want.after } });
    t.tell(id, { kind: "gap" });
    if (event.event.case !== "gap") t.tell(id, { kind: "notebook", event });
    return;
  }
  if (how === "seen") return;
  if (how === "new") t.put(id, { ...watch, want: { ...watch.want, after: event.cursor } });
  t.tell(id, { kind: "notebook", event });
}

/** The request that a terminal sends on its channel. */
export function terminalRequest(request: TerminalRequest): RequestInit {
  return { request: { case: "terminal", value: request } };
}
