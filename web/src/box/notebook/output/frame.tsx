// HTML and script of a box, in a frame of another origin: it can reach nothing of this page, load nothing, and go nowhere. The page and
// the frame exchange three words: what to show, how high it is, and which link was clicked.

import { useEffect, useRef, useState } from "react";
import { useDark } from "../../../lib/theme";
import { linkTarget } from "./clean";

const url = "/sandbox/output.html";
/** In pixels. What is higher scrolls in its frame. */
const highest = 2400;

export interface FrameProps {
  /** Markup of the box. */
  html: string;
  label: string;
}

export function OutputFrame({ html, label }: FrameProps) {
  const frame = useRef<HTMLIFrameElement>(null);
  const dark = useDark();
  const [near, setNear] = useState(false);
  const [height, setHeight] = useState(60);
  const [ready, setReady] = useState(0);

  // A frame costs much: it is made when its place comes near.
  useEffect(() => {
    const el = frame.current;
    if (near || el === null) return;
    if (typeof IntersectionObserver === "undefined") {
      setNear(true);
      return;
    }
    const observer = new IntersectionObserver((entries) => entries.some((e) => e.isIntersecting) && setNear(true), { rootMargin: "600px" });
    observer.observe(el);
    return () => observer.disconnect();
  }, [near]);

  useEffect(() => {
    const heard = (e: MessageEvent<unknown>) => {
      // Of another origin, "null", and of this very frame.
      if (e.source === null || e.source !== frame.current?.contentWindow || e.origin !== "null") return;
      const said = (typeof e.data === "object" && e.data !== null ? e.data : {}) as Record<string, unknown>;
      if (said.ready === true) setReady((n) => n + 1);
      if (typeof said.height === "number" && Number.isFinite(said.height)) setHeight(Math.max(20, Math.min(highest, Math.ceil(said.height))));
      if (typeof said.open === "string") {
        const target = linkTarget(said.open);
        // Only what a person clicked just now, and in this frame, is opened.
        if (target !== "" && navigator.userActivation?.isActive === true && document.activeElement === frame.current) window.open(target, "_blank", "noopener,noreferrer");
      }
    };
    window.addEventListener("message", heard);
    return () => window.removeEventListener("message", heard);
  }, []);

  useEffect(() => {
    // Its origin has no name, so that the message can only be sent to any; it holds nothing but what the box wrote.
    if (ready > 0) frame.current?.contentWindow?.postMessage({ show: html, dark, font: getComputedStyle(document.body).fontFamily }, "*");
  }, [ready, html, dark]);

  return (
    <iframe
      ref={frame}
      className="nb-frame"
      title={label}
      sandbox="allow-scripts"
      referrerPolicy="no-referrer"
      allow=""
      src={near ? url : undefined}
      style={{ height }}
    />
  );
}
