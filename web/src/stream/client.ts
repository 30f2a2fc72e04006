// The stream of one box: one WebSocket, made again when it breaks. What to do when is decided by session.ts; this file
// only does it.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { boxSocket } from "../lib/api";
import { signedOut } from "../lib/signin";
import { type StreamEvent, StreamEventSchema, StreamRequestSchema, TerminalErrorSchema } from "./proto";
import { type Effect, type Input, type Link, type News, newSession, type RequestInit, step, type Want } from "./session";

const subprotocol = "carrel.stream.v1";

export interface StreamConfig {
  /** Address of the WebSocket; default: the box's at this page's host. */
  url?: string;
  /** Called when nobody is signed in any more; default: go to the sign-in page. */
  onSignedOut?: () => void;
  /** For tests: makes a socket. */
  socket?: (url: string, protocols: string[]) => WebSocket;
  /** For tests: milliseconds that only rise. */
  now?: () => number;
}

/** What a banner shows. */
export interface Connection {
  readonly phase: Link["phase"];
  /** Milliseconds until the next try, when waiting. */
  readonly retryIn: number;
  /** Broken for long enough that a person should be told. */
  readonly broken: boolean;
  readonly offline: boolean;
  readonly message: string;
}

/** A watch's hold on the stream. */
export interface Hold {
  /** Ends the watch. */
  close(): void;
  /** After a gap: go on from this cursor. */
  restart(after: string): void;
}

/** A part of the page that has a channel. */
export interface ChannelHandler {
  /** The request that opens the channel; asked for again after each reconnect, so that it can say where to go on. */
  request: () => RequestInit["request"];
  event: (event: StreamEvent["event"]) => void;
  /** "lost", and "live" again when the channel was opened anew. */
  link?: (link: "live" | "lost") => void;
}

export interface TerminalsHandler {
  event: (event: StreamEvent) => void;
  link?: (link: "live" | "lost") => void;
}

export interface Channel {
  close: () => void;
}

/** Called for each piece of news, in order. */
export type Tell = (news: News, hold: Hold) => void;

/** A break shorter than this is not worth a word. In milliseconds. */
const quietBreak = 1500;

export class BoxStream {
  private session = newSession();
  private socket: WebSocket | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private patience: ReturnType<typeof setTimeout> | undefined;
  private readonly handlers = new Map<number, { tell: Tell; hold: Hold; request?: ChannelHandler["request"] }>();
  private readonly listeners = new Set<() => void>();
  private readonly queue: Input[] = [];
  private running = false;
  private nextId = 1;
  private shown: Connection;
  private stop: (() => void) | undefined;
  private readonly now: () => number;

  constructor(
    private readonly box: string,
    private readonly config: StreamConfig = {},
  ) {
    this.now = config.now ?? (() => performance.now());
    this.shown = this.connectionNow();
  }

  /** The box runs, or does so no more: only one that runs can be connected to. */
  setLive(live: boolean) {
    if (live) this.stop ??= this.listenToPage();
    this.input({ type: "live", live });
  }

  /** Opens a channel of any kind for as long as it is not closed. */
  open(handler: ChannelHandler): Channel {
    return this.add({ kind: "channel" }, (news) => {
      if (news.kind === "event") handler.event(news.event);
      else if (news.kind === "live" || news.kind === "lost") handler.link?.(news.kind);
      else if (news.kind === "ended") handler.event({ case: "error", value: create(TerminalErrorSchema, { code: news.code, reason: news.reason, message: news.message }) });
    }, handler.request);
  }

  /** Takes the events of terminals, which number their channels themselves. Whoever opens some does so at each "live". */
  openTerminals(handler: TerminalsHandler): Channel {
    return this.add({ kind: "terminals" }, (news) => {
      if (news.kind === "event") handler.event(create(StreamEventSchema, { event: news.event }));
      else if (news.kind === "live" || news.kind === "lost") handler.link?.(news.kind);
    });
  }

  /** Sends a request if there is a connection, and says whether there is. */
  send(request: RequestInit): boolean {
    return this.session.link.phase === "open" && this.transmit(request);
  }

  /** Looks at something; tell is called for each piece of news, in order. */
  watch(want: Want, tell: Tell): Hold {
    return this.add(want, tell);
  }

  private add(want: Want, tell: Tell, request?: ChannelHandler["request"]): Hold {
    const id = this.nextId++;
    const hold: Hold = {
      close: () => {
        this.handlers.delete(id);
        this.input({ type: "unwatch", id });
      },
      restart: (after) => this.input({ type: "restart", id, after }),
    };
    this.handlers.set(id, { tell, hold, ...(request && { request }) });
    this.input({ type: "watch", id, want });
    return hold;
  }

  /** Tries at once instead of waiting. */
  retry() {
    this.input({ type: "retry" });
  }

  /** The state of the connection; the same object until it changes. */
  connection = (): Connection => this.shown;

  /** Calls back when `connection` changes; gives what ends it. */
  subscribe = (changed: () => void): (() => void) => {
    this.listeners.add(changed);
    return () => this.listeners.delete(changed);
  };

  /** Ends everything, for when the page is left. */
  close() {
    this.input({ type: "live", live: false });
    this.stop?.();
    this.stop = undefined;
    clearTimeout(this.timer);
    clearTimeout(this.patience);
  }

  private input(input: Input) {
    this.queue.push(input);
    // A handler that asks for something while it is told waits its turn.
    if (this.running) return;
    this.running = true;
    try {
      for (let next = this.queue.shift(); next !== undefined; next = this.queue.shift()) {
        const { session, effects } = step(this.session, next, { now: this.now(), random: Math.random() });
        this.session = session;
        for (const effect of effects) this.act(effect);
      }
    } finally {
      this.running = false;
    }
    this.show();
  }

  private act(effect: Effect) {
    switch (effect.type) {
      case "connect":
        this.drop();
        this.connect();
        break;
      case "disconnect":
        this.drop();
        break;
      case "send":
        this.transmit(effect.request);
        break;
      case "ask": {
        const request = this.handlers.get(effect.id)?.request?.();
        if (request !== undefined) this.transmit({ channel: effect.channel, request });
        break;
      }
      case "timer":
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.input({ type: "timer" }), effect.ms);
        break;
      case "tell":
        try {
          const handler = this.handlers.get(effect.id);
          handler?.tell(effect.news, handler.hold);
        } catch (err) {
          // One part of the page that fails must not stop the others.
          console.error("a watch failed", err);
        }
        break;
      case "sign-in":
        (this.config.onSignedOut ?? signedOut)();
        break;
    }
  }

  private connect() {
    const { config } = this;
    const url = config.url ?? boxSocket(this.box, "stream");
    let socket: WebSocket;
    try {
      socket = config.socket?.(url, [subprotocol]) ?? new WebSocket(url, [subprotocol]);
    } catch (err) {
      console.error("opening the stream", err);
      queueMicrotask(() => this.input({ type: "closed", code: 1006, reason: "" }));
      return;
    }
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    const mine = () => this.socket === socket;
    socket.onopen = () => mine() && this.input({ type: "opened" });
    socket.onclose = (e) => {
      if (!mine()) return;
      this.socket = null;
      this.input({ type: "closed", code: e.code, reason: e.reason });
    };
    socket.onmessage = (e) => {
      if (!mine() || !(e.data instanceof ArrayBuffer)) return;
      let event;
      try {
        event = fromBinary(StreamEventSchema, new Uint8Array(e.data));
      } catch (err) {
        // Another program than ours answers, or one of another time.
        console.error("a message of the stream cannot be read", err);
        return;
      }
      this.input({ type: "event", event });
    };
  }

  private transmit(request: RequestInit): boolean {
    const { socket } = this;
    if (socket === null || socket.readyState !== 1) return false;
    socket.send(toBinary(StreamRequestSchema, create(StreamRequestSchema, request)));
    return true;
  }

  private drop() {
    const { socket } = this;
    this.socket = null;
    if (socket === null) return;
    socket.onopen = socket.onclose = socket.onmessage = null;
    socket.close(1000);
  }

  private listenToPage(): () => void {
    if (typeof document === "undefined") return () => {};
    const seen = () => {
      if (document.visibilityState === "hidden") this.input({ type: "hidden", hidden: true });
      else this.input({ type: "woke" });
    };
    const online = () => this.input({ type: "woke" });
    const offline = () => this.input({ type: "offline", offline: true });
    document.addEventListener("visibilitychange", seen);
    window.addEventListener("online", online);
    window.addEventListener("offline", offline);
    window.addEventListener("pageshow", online);
    return () => {
      document.removeEventListener("visibilitychange", seen);
      window.removeEventListener("online", online);
      window.removeEventListener("offline", offline);
      window.removeEventListener("pageshow", online);
    };
  }

  private connectionNow(): Connection {
    const { link, brokenSince, offline } = this.session;
    const broken = link.phase === "refused" || (brokenSince > 0 && this.now() - brokenSince >= quietBreak);
    return {
      phase: link.phase,
      retryIn: link.phase === "waiting" ? Math.max(0, link.until - this.now()) : 0,
      broken,
      offline,
      message: link.phase === "refused" ? link.message : "",
    };
  }

  private show() {
    const next = this.connectionNow();
    if (!next.broken && this.session.brokenSince > 0) {
      clearTimeout(this.patience);
      this.patience = setTimeout(() => this.show(), quietBreak);
    }
    const was = this.shown;
    if (next.phase === was.phase && next.broken === was.broken && next.offline === was.offline && next.message === was.message) return;
    this.shown = next;
    for (const changed of this.listeners) changed();
  }
}
