// The stream of one box: one WebSocket, made again when it breaks. What to do when is decided by session.ts; this file
// only does it.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { StreamEventSchema, StreamRequestSchema, type TerminalRequest } from "./proto";
import { type Effect, type Input, type Link, type News, newSession, type RequestInit, step, terminalRequest, type Want } from "./session";

const subprotocol = "carrel.stream.v1";

export interface StreamConfig {
  /** Id of the box. */
  box: string;
  /** Address of the WebSocket; default: this page's host. */
  url?: string;
  /** Called when the sign-in has ended; the next try comes after what it returns. */
  onSignIn?: () => Promise<void> | void;
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
  /** For terminals: sends on the channel that `attach` told; false when not connected. */
  send(request: TerminalRequest): boolean;
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
  private readonly handlers = new Map<number, { tell: Tell; hold: Hold }>();
  private readonly listeners = new Set<() => void>();
  private readonly queue: Input[] = [];
  private running = false;
  private nextId = 1;
  private shown: Connection;
  private readonly stop: () => void;
  private readonly now: () => number;

  constructor(private readonly config: StreamConfig) {
    this.now = config.now ?? (() => performance.now());
    this.shown = this.connectionNow();
    this.stop = this.listenToPage();
  }

  /** Looks at something; tell is called for each piece of news, in order. */
  watch(want: Want, tell: Tell): Hold {
    const id = this.nextId++;
    const hold: Hold = {
      close: () => {
        this.handlers.delete(id);
        this.input({ type: "unwatch", id });
      },
      restart: (after) => this.input({ type: "restart", id, after }),
      send: (request) => {
        if (this.session.link.phase !== "open") return false;
        return this.transmit(terminalRequest(request));
      },
    };
    this.handlers.set(id, { tell, hold });
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

  /** Ends everything. The stream cannot be used again. */
  dispose() {
    this.stop();
    clearTimeout(this.timer);
    clearTimeout(this.patience);
    this.handlers.clear();
    this.drop();
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
        void this.config.onSignIn?.();
        break;
    }
  }

  private connect() {
    const { config } = this;
    const url = config.url ?? streamURL(window.location, config.box);
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

/** The address of a box's stream at a page's host. */
export function streamURL(location: { protocol: string; host: string }, box: string): string {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  return `${scheme}//${location.host}/v1/boxes/${encodeURIComponent(box)}/stream`;
}
