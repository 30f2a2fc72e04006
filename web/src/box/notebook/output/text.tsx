// Text outputs: streams, tracebacks and text/plain. A little text is laid out whole; much of it is a window that shows only
// the lines in sight.

import { memo, type ReactNode, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "react";
import { bytes } from "../../../lib/format";
import { type Line, links, Screen, type Span } from "./screen";

/** More than this is shown in a window of its own. */
const mostLines = 300;
const mostCharacters = 100_000;
/** Height of a line in a window, in pixels; style.css has the same. */
const lineHeight = 20;

/** Writes text to a screen as it grows; text that does not go on from what was there begins anew. */
function useScreen(text: string): Screen {
  const held = useRef<{ screen: Screen; text: string } | null>(null);
  return useMemo(() => {
    let h = held.current;
    if (h === null || text.length < h.text.length || !text.startsWith(h.text.slice(-256), Math.max(0, h.text.length - 256))) {
      h = { screen: new Screen(), text: "" };
    }
    if (text.length > h.text.length) h.screen.write(text.slice(h.text.length));
    held.current = { screen: h.screen, text };
    return h.screen;
  }, [text]);
}

export interface TextProps {
  text: string;
  kind: "stdout" | "stderr" | "result" | "error";
  label: string;
}

export const TextOutput = memo(function TextOutput({ text, kind, label }: TextProps) {
  const screen = useScreen(text);
  const { lines } = screen;
  const count = lines.at(-1)?.length === 0 ? lines.length - 1 : lines.length;
  if (count <= mostLines && text.length <= mostCharacters) {
    return (
      <pre className={`nb-text ${kind}`}>
        {lines.slice(0, count).map((line, i) => (
          <LineText key={i} line={line} end={i < count - 1 ? "\n" : ""} />
        ))}
      </pre>
    );
  }
  return <TextWindow lines={lines} count={count} size={text.length} kind={kind} label={label} />;
});

function TextWindow({ lines, count, size, kind, label }: { lines: readonly Line[]; count: number; size: number; kind: string; label: string }) {
  const box = useRef<HTMLDivElement>(null);
  const [tall, setTall] = useState(false);
  const [at, setAt] = useState({ top: 0, height: 480 });
  const atEnd = useRef(true);
  const look = useCallback(() => {
    const el = box.current;
    if (el === null) return;
    atEnd.current = el.scrollTop + el.clientHeight >= el.scrollHeight - 2 * lineHeight;
    setAt({ top: el.scrollTop, height: el.clientHeight });
  }, []);
  useLayoutEffect(() => {
    const el = box.current;
    // Who looks at the end goes on looking at the end.
    if (el !== null && atEnd.current) el.scrollTop = el.scrollHeight;
    look();
  }, [count, tall, look]);
  useEffect(() => {
    const el = box.current;
    if (el === null || typeof ResizeObserver === "undefined") return;
    const observer = new ResizeObserver(look);
    observer.observe(el);
    return () => observer.disconnect();
  }, [look]);
  const first = Math.max(0, Math.floor(at.top / lineHeight) - 20);
  const last = Math.min(count, Math.ceil((at.top + at.height) / lineHeight) + 20);
  const rows: ReactNode[] = [];
  for (let i = first; i < last; i++) rows.push(<LineText key={i} line={lines[i] as Line} end={"\n"} />);
  return (
    <div className="nb-window">
      <div className="nb-window-head">
        <span>
          {count.toLocaleString()} lines, {bytes(size)}
        </span>
        <button type="button" className="nb-small" onClick={() => setTall(!tall)}>
          {tall ? "Smaller" : "Larger"}
        </button>
        <button type="button" className="nb-small" onClick={() => box.current?.scrollTo({ top: 0 })}>
          Top
        </button>
        <button type="button" className="nb-small" onClick={() => box.current?.scrollTo({ top: box.current.scrollHeight })}>
          End
        </button>
      </div>
      <div ref={box} className={`nb-window-text ${tall ? "tall" : ""}`} onScroll={look} role="region" aria-label={`${label}, ${count} lines`} tabIndex={0}>
        <div style={{ height: count * lineHeight, position: "relative" }}>
          <pre className={`nb-text ${kind}`} style={{ position: "absolute", top: first * lineHeight }}>
            {rows}
          </pre>
        </div>
      </div>
    </div>
  );
}

const LineText = memo(function LineText({ line, end }: { line: Line; end: string }) {
  return (
    <>
      {line.map((span, i) => (
        <SpanText key={i} span={span} />
      ))}
      {end}
    </>
  );
});

function SpanText({ span }: { span: Span }) {
  const { style } = span;
  const content = span.text.includes("://")
    ? links(span.text).map((piece, i) =>
        piece.href === "" ? (
          piece.text
        ) : (
          <a key={i} href={piece.href} target="_blank" rel="noopener noreferrer nofollow">
            {piece.text}
          </a>
        ),
      )
    : span.text;
  let { fg, bg } = style;
  if (style.inverse) [fg, bg] = [bg || "paper", fg || "ink"];
  const names: string[] = [];
  const css: React.CSSProperties = {};
  if (fg.startsWith("#")) css.color = fg;
  else if (fg !== "") names.push(`ansi-fg-${fg}`);
  if (bg.startsWith("#")) css.backgroundColor = bg;
  else if (bg !== "") names.push(`ansi-bg-${bg}`);
  if (style.bold) names.push("ansi-bold");
  if (style.dim) names.push("ansi-dim");
  if (style.italic) names.push("ansi-italic");
  if (style.underline) names.push("ansi-underline");
  if (style.sign) names.push("ansi-sign");
  if (names.length === 0 && Object.keys(css).length === 0) return <>{content}</>;
  return (
    <span className={names.join(" ")} style={css}>
      {content}
    </span>
  );
}
