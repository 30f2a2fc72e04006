// One process on a terminal: what xterm.js shows of it, and how it is found again after the connection broke.

import { create } from "@bufbuild/protobuf";
import { FitAddon } from "@xterm/addon-fit";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { WebLinksAddon } from "@xterm/addon-web-links";
import { type ITheme, Terminal } from "@xterm/xterm";
import type { Process } from "../../gen/carrel/v1/processes_pb";
import { type TerminalEvent, type TerminalRequest, TerminalRequestSchema } from "../../gen/carrel/v1/terminal_pb";
import { type Typed, Typing, isAutomatic } from "./typing";

export type Phase = "starting" | "live" | "ended" | "failed";

const scrollback = 5000;
const utf8 = new TextEncoder();

/** Sends a request on the session's channel; false: there is no connection. */
export type Send = (request: TerminalRequest) => boolean;

export class Session {
  readonly term: Terminal;
  readonly element = document.createElement("div");
  phase: Phase = "starting";
  /** What the tab is called. */
  title: string;
  /** Why it failed or how it ended, for people. */
  words = "";
  private readonly fitting = new FitAddon();
  private readonly typing = new Typing();
  private channel = 0;
  private offset = 0n;
  /** Output is being read by the terminal: what it says now may be an answer. */
  private reading = 0;
  private caughtUp = false;
  private opened = false;

  /** `process` is none for one that is to be started. */
  constructor(
    readonly key: number,
    public process: string,
    title: string,
    private readonly send: Send,
    private readonly changed: () => void,
    private readonly mayType: boolean,
    theme: ITheme,
    private readonly requestId = crypto.getRandomValues(new Uint32Array(4)).join("-"),
  ) {
    this.title = title;
    this.term = new Terminal({
      allowProposedApi: true,
      scrollback,
      theme,
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono") || "monospace",
      fontSize: 14,
      cursorBlink: false,
      disableStdin: !mayType,
      macOptionIsMeta: true,
      minimumContrastRatio: 4.5,
    });
    this.term.loadAddon(this.fitting);
    this.term.loadAddon(new Unicode11Addon());
    this.term.unicode.activeVersion = "11";
    this.term.loadAddon(new WebLinksAddon((_, url) => window.open(url, "_blank", "noopener,noreferrer")));
    this.term.onData((data) => this.type(data));
    this.term.onBinary((data) => this.give(Uint8Array.from(data, (c) => c.charCodeAt(0))));
    this.term.onResize(({ rows, cols }) => {
      if (this.phase === "live" && this.mayType) this.ask({ case: "resize", value: { $typeName: "carrel.v1.TerminalSize", rows, cols } });
    });
    this.term.onTitleChange((title) => {
      // Programs choose it: one short line, without what turns text around.
      const clean = title.replace(/[\p{Cc}\p{Cf}]/gu, "").trim().slice(0, 60);
      if (!clean) return;
      this.title = clean;
      this.changed();
    });
    this.element.className = "terminal-screen";
  }

  /** Puts the terminal into the page, and makes it as large as its place. */
  show(place: HTMLElement): void {
    place.replaceChildren(this.element);
    if (!this.opened) {
      this.term.open(this.element);
      this.opened = true;
    }
    this.fit();
  }

  fit(): void {
    if (this.element.isConnected && this.element.clientWidth > 0) this.fitting.fit();
  }

  /** Asks for the process on a new connection, under a channel that was never used before. */
  connect(channel: number): void {
    if (this.phase === "ended" || this.phase === "failed") return;
    this.channel = channel;
    if (this.process) {
      this.caughtUp = false;
      this.ask({ case: "attach", value: { $typeName: "carrel.v1.AttachProcessRequest", box: "", org: "", process: this.process, stdoutOffset: this.offset, stderrOffset: 0n } });
      for (const typed of this.typing.again()) this.transmit(typed);
      return;
    }
    const { rows, cols } = this.term;
    const request = create(TerminalRequestSchema, {
      channel,
      request: { case: "open", value: { login: true, kind: "terminal", pty: { rows, cols }, env: { TERM: "xterm-256color", COLORTERM: "truecolor" }, requestId: this.requestId } },
    });
    this.send(request);
  }

  /** Takes an event; one of another channel is not its own. */
  take(event: TerminalEvent): void {
    if (event.channel !== this.channel) return;
    const { event: e } = event;
    switch (e.case) {
      case "started":
        this.process = e.value.id;
        this.phase = "live";
        // Its size may be another viewer's.
        if (this.mayType) this.ask({ case: "resize", value: { $typeName: "carrel.v1.TerminalSize", rows: this.term.rows, cols: this.term.cols } });
        this.changed();
        break;
      case "output":
        this.output(e.value.offset, e.value.data);
        break;
      case "gap":
        this.offset = e.value.nextOffset;
        this.term.write(`\x1b[0m\r\n\x1b[7m ${e.value.nextOffset - e.value.offset} bytes of output are no longer kept \x1b[0m\r\n`);
        break;
      case "live":
        this.caughtUp = true;
        break;
      case "inputOffset":
        this.typing.took(e.value);
        break;
      case "exited":
        this.end("ended", ending(e.value));
        break;
      case "error":
        if (e.value.reason === "input_full") {
          this.words = e.value.message;
          this.changed();
        } else this.end("failed", e.value.message);
        break;
    }
  }

  /** Hangs up: the shell and what runs in it is told to end. */
  hangUp(): void {
    if (this.process && this.phase === "live") this.ask({ case: "signal", value: "HUP" });
  }

  dispose(): void {
    this.term.dispose();
    this.element.remove();
  }

  /** What the buttons of a phone's key bar give. */
  press(data: string): void {
    // Programs that take arrows for themselves want another form of them.
    const arrow = /^\x1b\[([A-D])$/.exec(data); // eslint-disable-line no-control-regex -- what the key gives
    this.give(utf8.encode(arrow && this.term.modes.applicationCursorKeysMode ? `\x1bO${arrow[1]}` : data));
    this.term.focus();
  }

  private output(offset: bigint, data: Uint8Array): void {
    // Output that was shown already, because the connection broke behind it, is not shown again.
    const known = this.offset - offset;
    if (known >= BigInt(data.length)) return;
    const fresh = known > 0n ? data.subarray(Number(known)) : data;
    this.offset = offset + BigInt(data.length);
    this.reading++;
    this.term.write(fresh, () => this.reading--);
  }

  private type(data: string): void {
    const automatic = this.reading > 0 && isAutomatic(data);
    // Questions of output that is read again were answered long ago.
    if (automatic && !this.caughtUp) return;
    this.give(utf8.encode(data), automatic);
  }

  private give(data: Uint8Array, automatic = false): void {
    if (!this.mayType || this.phase !== "live") return;
    const pieces = this.typing.add(data);
    if (!pieces) {
      this.words = "The program takes no input at the moment. What you typed last was not given to it.";
      this.changed();
      return;
    }
    if (this.words) {
      this.words = "";
      this.changed();
    }
    for (const typed of pieces) this.transmit(typed, automatic);
  }

  private transmit(typed: Typed, automatic = false): void {
    this.ask({ case: "input", value: { $typeName: "carrel.v1.TerminalInput", offset: typed.offset, data: typed.data, eof: false, automatic, writer: this.typing.writer } });
  }

  private ask(request: TerminalRequest["request"]): boolean {
    return this.send(create(TerminalRequestSchema, { channel: this.channel, request }));
  }

  private end(phase: Phase, words: string): void {
    this.phase = phase;
    this.words = words;
    this.term.options.disableStdin = true;
    this.changed();
  }
}

/** How a process ended, in words. */
export function ending(p: Pick<Process, "exitCode" | "exitSignal" | "endedBy">): string {
  if (p.endedBy === "memory") return "It was ended because the box had no memory left.";
  if (p.exitSignal) return `It was ended by the signal ${p.exitSignal}.`;
  return p.exitCode === 0 ? "It has ended." : `It has ended with exit code ${p.exitCode}.`;
}
