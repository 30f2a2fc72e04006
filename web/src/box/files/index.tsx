import { FilePanel } from "./panel";

/** The files of the box. */
export default function Files() {
  return (
    <div className="panel fill">
      <FilePanel />
    </div>
  );
}
