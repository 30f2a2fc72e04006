// The outputs of one cell.

import { memo, useMemo } from "react";
import { bytes } from "../../../lib/format";
import { ErrorBoundary } from "../../../ui/error";
import type { Cell, Output, RichOutput } from "../model/types";
import type { CleanOptions } from "./clean";
import { isSimple } from "./clean";
import { OutputFrame } from "./frame";
import { JsonTree } from "./json";
import { choose, pictureURL, pixels } from "./mime";
import { Rendered } from "./rendered";
import { TextOutput } from "./text";

export interface OutputsProps {
  cell: Cell;
  /** Place of the cell, for names. */
  place: number;
  options: CleanOptions;
  /** The address of a file in the box. */
  file: (path: string) => string;
}

/** More outputs than this are shown when asked for. */
const most = 200;

export const Outputs = memo(function Outputs({ cell, place, options, file }: OutputsProps) {
  const { outputs } = cell;
  const shown = outputs.length > most ? outputs.slice(-most) : outputs;
  return (
    <div className="nb-outputs">
      {outputs.length > most && (
        <p className="nb-note">
          The last {most} of {outputs.length.toLocaleString()} outputs are shown. All are in the notebook’s file.
        </p>
      )}
      {shown.map((output) => (
        <ErrorBoundary key={output.key} what="This output">
          <One output={output} label={`Output of cell ${place}`} options={options} file={file} />
        </ErrorBoundary>
      ))}
    </div>
  );
});

const One = memo(function One({ output, label, options, file }: { output: Output; label: string; options: CleanOptions; file: (path: string) => string }) {
  switch (output.kind) {
    case "stream":
      return <TextOutput text={output.text} kind={output.name === "stderr" ? "stderr" : "stdout"} label={label} />;
    case "error": {
      const text = output.traceback.length > 0 ? output.traceback.join("\n") : `${output.name}: ${output.value}`;
      return <TextOutput text={text} kind="error" label={label} />;
    }
    case "truncated":
      return (
        <p className="nb-note nb-cut">
          There is more output than is shown here{output.bytes > 0 ? ` (${bytes(output.bytes)} more)` : ""}.{" "}
          {output.file !== "" && (
            <>
              All of it is in{" "}
              <a href={file(output.file)} download>
                {output.file}
              </a>
              .
            </>
          )}
        </p>
      );
    case "rich":
      return <Rich output={output} label={label} options={options} />;
  }
});

function Rich({ output, label, options }: { output: RichOutput; label: string; options: CleanOptions }) {
  const { data, metadata } = output;
  const { type, way, richer } = useMemo(() => choose(data), [data]);
  const value = data[type];
  const text = typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value);
  return (
    <div className="nb-rich" data-mime={type}>
      {richer !== "" && <p className="nb-note">{richer} is here. This page shows what it says as text; JupyterLab, connected to this box, shows it whole.</p>}
      <Way way={way} type={type} value={value} text={text} metadata={metadata} label={label} options={options} />
    </div>
  );
}

interface WayProps {
  way: ReturnType<typeof choose>["way"];
  type: string;
  value: unknown;
  text: string;
  metadata: RichOutput["metadata"];
  label: string;
  options: CleanOptions;
}

function Way({ way, type, value, text, metadata, label, options }: WayProps) {
  const simple = useMemo(() => way === "html" && isSimple(text), [way, text]);
  switch (way) {
    case "html":
      return simple ? <Rendered kind="html" source={text} options={options} /> : <OutputFrame html={text} label={label} />;
    case "javascript":
      return <OutputFrame html={`<script>${text.replace(/<\/(script)/gi, "<\\/$1")}</script>`} label={label} />;
    case "markdown":
      return <Rendered kind="markdown" source={text} options={options} />;
    case "latex":
      return <Rendered kind="latex" source={text} options={options} />;
    case "svg":
    case "image": {
      const url = pictureURL(type, value);
      const size = (metadata[type] ?? {}) as Record<string, unknown>;
      if (url === "") return <TextOutput text="A picture that cannot be read." kind="stderr" label={label} />;
      return <img className="nb-picture" src={url} alt={label} width={pixels(size.width)} height={pixels(size.height)} />;
    }
    case "json":
      return <JsonTree value={value} open={(metadata[type] as { expanded?: unknown } | undefined)?.expanded === true} />;
    case "text":
      return <TextOutput text={text} kind="result" label={label} />;
    case "none":
      return <p className="nb-note">An output of a kind that this page does not show.</p>;
  }
}
