// What a box's stream does next, as a pure function: step(session, input) gives the session after it and what is to be
// done. No socket, clock or randomness in here, so that every order of events can be tested.
//
// Words: a *watch* is what somebody on the page wants to see (a notebook's events, say); it outlives sockets. A *channel*
// is its number on the present socket. Channels are never used again on a socket.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { delay } from "../lib/backoff";
import { standing } from "./cursor";
import type { NotebookEvent, StreamEvent, StreamRequestSchema } from "./proto";

export type RequestInit = MessageInitShape<typeof StreamRequestSchema>;

/** What a watch asks for. */
export type Want =
  | { kind: "notebooks"; path: string; after: string }
  /** A channel whose request is asked for anew at each connection. */
  | { kind: "channel" }
  /** All terminals: whoever watches numbers their channels and keeps their offsets. */
  | { kind: "terminals" };

/** What a watch is told. */
export type News =
  | { kind: "event"; event: StreamEvent["event"] }
  /** Notebooks alone: events were lost, or the journal is another one. Read again, then `restart` the watch from the new cursor. */
  | { kind: "gap" }
  /** The connection stands (again) and the request has been sent. */
  | { kind: "live" }
  | { kind: "lost" }
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
  | { readonly phase: "open"; readonly heard: number; readonly attempt: number; readonly fresh: boolean }
  | { readonly phase: "waiting"; readonly attempt: number; readonly until: number }
  /** The right was taken away, or the page is too old to be understood: not tried again by itself. */
  | { readonly phase: "refused"; readonly code: number; readonly message: string };

export interface Session {
  readonly link: Link;
  readonly watches: ReadonlyMap<number, Watch>;
  readonly nextChannel: number;
  /** The box runs: only then is there anything to connect to. */
  readonly live: boolean;
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
  | { type: "live"; live: boolean }
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
  /** Send the request that the watch has now, on this channel. */
  | { type: "ask"; id: number; channel: number }
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
    live: false,
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

  /** Connects if there is what to look at. */
  begin() {
    if (this.s.live && this.s.watches.size > 0 && this.s.link.phase === "idle") this.connect(0);
  }

  /** Puts a watch on the open socket. */
  join(id: number) {
    const watch = this.s.watches.get(id);
    if (watch === undefined || this.s.link.phase !== "open") return;
    const { want } = watch;
    const channel = this.s.nextChannel;
    this.set({ nextChannel: channel + 1 });
    this.put(id, { ...watch, channel });
    if (want.kind === "notebooks") this.send({ channel, request: { case: "notebooks", value: { path: want.path, after: want.after } } });
    else if (want.kind === "channel") this.effects.push({ type: "ask", id, channel });
    this.tell(id, { kind: "live" });
  }

  leave(id: number) {
    const watch = this.s.watches.get(id);
    if (watch === undefined || watch.channel === 0 || this.s.link.phase !== "open") return;
    if (watch.want.kind !== "terminals") this.send({ channel: watch.channel, request: { case: "close", value: true } });
    this.put(id, { ...watch, channel: 0 });
  }

  /** Ends the connection and does not make another. */
  rest() {
    if (this.s.link.phase === "refused" && this.s.live) return;
    if (this.s.link.phase === "open" || this.s.link.phase === "connecting") this.effects.push({ type: "disconnect" });
    this.detach();
    this.set({ link: { phase: "idle" }, brokenSince: 0 });
  }

  /** The socket is gone: every watch is off it. */
  detach() {
    for (const [id, watch] of this.s.watches) {
      if (watch.channel === 0) continue;
      this.put(id, { ...watch, channel: 0 });
      this.tell(id, { kind: "lost" });
    }
  }

  wait(attempt: number) {
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
      if (t.s.link.phase === "idle") t.begin();
      else t.join(input.id);
      break;
    case "unwatch":
      t.leave(input.id);
      t.put(input.id, null);
      if (t.s.watches.size === 0) t.rest();
      break;
    case "live":
      if (input.live === t.s.live) break;
      t.set({ live: input.live });
      if (input.live) t.begin();
      else t.rest();
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
        link: { phase: "open", heard: at.now, attempt: t.s.link.phase === "connecting" ? t.s.link.attempt : 0, fresh: true },
        nextChannel: 1,
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
  const heardFrom = link.phase === "open" && !link.fresh;
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
      // A right that ended while it was used may have been renewed since; one that is refused at once was not.
      if (!heardFrom) t.effects.push({ type: "sign-in" });
      break;
  }
  // A connection that was of use is tried again soon; one that never opened, or was cut at once, more slowly each time.
  t.wait(link.attempt);
}

function heard(t: Turn, event: StreamEvent) {
  if (t.s.link.phase !== "open") return;
  t.set({ link: { phase: "open", heard: t.at.now, attempt: 0, fresh: false } });
  const body = event.event;
  if (body.case === undefined || body.case === "keepAlive") return;
  for (const [id, watch] of t.s.watches) {
    if (watch.channel === 0) continue;
    if (body.case === "terminal") {
      if (watch.want.kind === "terminals") t.tell(id, { kind: "event", event: body });
    } else if (watch.channel === event.channel && watch.want.kind !== "terminals") {
      if (body.case === "error") {
        t.put(id, { ...watch, channel: 0 });
        t.tell(id, { kind: "ended", code: body.value.code, reason: body.value.reason, message: body.value.message });
      } else if (body.case === "notebook") {
        notebook(t, id, watch, body.value);
      } else {
        t.tell(id, { kind: "event", event: body });
      }
      return;
    }
  }
}

function notebook(t: Turn, id: number, watch: Watch, event: NotebookEvent) {
  const news: News = { kind: "event", event: { case: "notebook", value: event } };
  if (watch.want.kind !== "notebooks") {
    t.tell(id, news);
    return;
  }
  if (event.event.case === "keepAlive") return;
  const how = standing(event.cursor, watch.want.after);
  if (event.event.case === "gap" || how === "other-journal") {
    // What follows is passed on all the same: the page keeps it until it has read again.
    t.put(id, { ...watch, want: { ...watch.want, after: event.cursor || watch.want.after } });
    t.tell(id, { kind: "gap" });
    if (event.event.case !== "gap") t.tell(id, news);
    return;
  }
  if (how === "seen") return;
  if (how === "new") t.put(id, { ...watch, want: { ...watch.want, after: event.cursor } });
  t.tell(id, news);
}
