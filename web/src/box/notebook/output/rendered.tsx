// Markdown, formulas and simple HTML as part of the page.

import { useEffect, useRef, useState } from "react";
import type { CleanOptions } from "./clean";
import type { RenderKind } from "./render";

/** Loaded when the first output needs it. */
const chunk = () => import("./render");

export interface RenderedProps {
  kind: RenderKind;
  source: string;
  options: CleanOptions;
}

export function Rendered({ kind, source, options }: RenderedProps) {
  const host = useRef<HTMLDivElement>(null);
  const [failed, setFailed] = useState(false);
  useEffect(() => {
    let wanted = true;
    chunk()
      .then(({ render }) => {
        if (wanted && host.current !== null) return render(kind, host.current, source, options);
      })
      .then(() => wanted && setFailed(false))
      .catch((err: unknown) => {
        console.error("rendering", err);
        if (wanted) setFailed(true);
      });
    return () => {
      wanted = false;
    };
  }, [kind, source, options]);
  return (
    <>
      {failed && <pre className="nb-text">{source}</pre>}
      <div ref={host} className={`nb-rendered ${kind}`} hidden={failed} />
    </>
  );
}
