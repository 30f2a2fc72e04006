import { type MessageInitShape, create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type StreamEvent, StreamEventSchema, type StreamRequest, StreamRequestSchema } from "../gen/carrel/v1/stream_pb";
import { boxSocket } from "../lib/api";
import { backoff, whenVisible } from "../lib/backoff";
import type { Link } from "../lib/follow";
import { signedOut } from "../lib/signin";

const protocol = "carrel.stream.v1";
/** The gateway sends something every 20 s; a socket that is silent for longer is lost, whatever the browser thinks. */
const silence = 45_000;
const closeRight = 4401;
const closeRefused = 4403;

export interface ChannelHandler {
  /** The request that opens the channel; asked for again after each reconnect, so that it can say where to go on. */
  request: () => MessageInitShape<typeof StreamRequestSchema>["request"];
  event: (event: StreamEvent["event"]) => void;
  /** "lost" and then "live" again: the channel was opened anew. */
  link?: (link: Link) => void;
}

export interface Channel {
  close: () => void;
}

/** The WebSocket of one box, shared by all parts of its page: channels are opened anew by themselves when the connection was lost. */
export class BoxStream {
  private readonly channels = new Map<number, ChannelHandler>();
  private readonly byPart = new Map<ChannelHandler, number>();
  private readonly terminals = new Set<{ event: (event: StreamEvent) => void; link?: (link: Link) => void }>();
  private last = 0;
  private ws: WebSocket | undefined;
  private stop: AbortController | undefined;
  private live = false;
  private quiet: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly box: string) {}

  /** Opens a channel for as long as it is not closed. */
  open(handler: ChannelHandler): Channel {
    this.begin(handler);
    this.wake();
    return {
      close: () => {
        const channel = this.byPart.get(handler);
        if (channel === undefined) return;
        this.byPart.delete(handler);
        this.channels.delete(channel);
        this.send({ channel, request: { case: "close", value: true } });
        this.rest();
      },
    };
  }

  /** Takes the events of terminals, which number their channels themselves. Whoever opens some does so at each "live". */
  openTerminals(handler: { event: (event: StreamEvent) => void; link?: (link: Link) => void }): Channel {
    this.terminals.add(handler);
    if (this.ws?.readyState === WebSocket.OPEN) handler.link?.("live");
    this.wake();
    return {
      close: () => {
        this.terminals.delete(handler);
        this.rest();
      },
    };
  }

  /** Sends a request if there is a connection, and says whether there is. */
  send(request: MessageInitShape<typeof StreamRequestSchema>): boolean {
    if (this.ws?.readyState !== WebSocket.OPEN) return false;
    this.ws.send(toBinary(StreamRequestSchema, create(StreamRequestSchema, request) as StreamRequest) as Uint8Array<ArrayBuffer>);
    return true;
  }

  /** The box runs, or does so no more: only one that runs can be connected to. */
  setLive(live: boolean): void {
    if (live === this.live) return;
    this.live = live;
    if (live) this.wake();
    else this.end();
  }

  /** Ends everything, for when the page is left. */
  close(): void {
    this.live = false;
    this.channels.clear();
    this.byPart.clear();
    this.terminals.clear();
    this.end();
  }

  private begin(handler: ChannelHandler): void {
    const channel = ++this.last;
    const before = this.byPart.get(handler);
    if (before !== undefined) this.channels.delete(before);
    this.channels.set(channel, handler);
    this.byPart.set(handler, channel);
    if (this.send({ channel, request: handler.request() } as MessageInitShape<typeof StreamRequestSchema>)) handler.link?.("live");
  }

  private wanted(): boolean {
    return this.live && this.channels.size + this.terminals.size > 0;
  }

  private wake(): void {
    if (this.stop || !this.wanted()) return;
    this.stop = new AbortController();
    void this.run(this.stop.signal);
  }

  private rest(): void {
    if (!this.wanted()) this.end();
  }

  private end(): void {
    this.stop?.abort();
    this.stop = undefined;
    this.ws?.close(1000);
    this.ws = undefined;
  }

  private async run(signal: AbortSignal): Promise<void> {
    for (let attempt = 0; !signal.aborted; attempt++) {
      await whenVisible(signal);
      if (signal.aborted) return;
      const { opened, code } = await this.connect(signal);
      if (signal.aborted) return;
      if (code === closeRefused) return;
      if (code === closeRight && !opened) return signedOut();
      if (opened) attempt = 0;
      await backoff(attempt, signal);
    }
  }

  private connect(signal: AbortSignal): Promise<{ opened: boolean; code: number }> {
    return new Promise((resolve) => {
      const ws = new WebSocket(boxSocket(this.box, "stream"), [protocol]);
      ws.binaryType = "arraybuffer";
      this.ws = ws;
      let opened = false;
      let finished = false;
      const finish = (code: number) => {
        if (finished) return;
        finished = true;
        clearTimeout(this.quiet);
        signal.removeEventListener("abort", give);
        if (this.ws === ws) this.ws = undefined;
        ws.onmessage = ws.onopen = ws.onclose = null;
        ws.close();
        if (opened) this.tell("lost");
        resolve({ opened, code });
      };
      const give = () => finish(1000);
      signal.addEventListener("abort", give);
      const heard = () => {
        clearTimeout(this.quiet);
        this.quiet = setTimeout(() => finish(1006), silence);
      };
      heard();
      ws.onopen = () => {
        opened = true;
        heard();
        for (const handler of [...this.byPart.keys()]) this.begin(handler);
        for (const t of this.terminals) t.link?.("live");
      };
      ws.onmessage = (e: MessageEvent<ArrayBuffer>) => {
        heard();
        this.take(fromBinary(StreamEventSchema, new Uint8Array(e.data)));
      };
      ws.onclose = (e) => finish(e.code);
    });
  }

  private take(event: StreamEvent): void {
    if (event.event.case === "terminal") {
      for (const t of this.terminals) t.event(event);
      return;
    }
    this.channels.get(event.channel)?.event(event.event);
  }

  private tell(link: Link): void {
    for (const handler of this.channels.values()) handler.link?.(link);
    for (const t of this.terminals) t.link?.(link);
  }
}
