import { useCallback } from "react";
import { useBox } from "../context";
import { Rest } from "../rest";
import { NotebookView } from "./notebook";
import { Start } from "./start";
import "./style.css";

/** The notebook part of a box's page: the notebook that the URL names, or the list of all. */
export default function NotebookTab() {
  const { live, query, open, box } = useBox();
  const path = query.get("path") ?? "";
  const show = useCallback((to: string) => open("notebook", to === "" ? undefined : { path: to }), [open]);
  const back = useCallback(() => show(""), [show]);
  if (!live && path === "") {
    return (
      <div className="panel">
        <Rest icon="pause">
          <p>Its notebooks are in its files, and running cells of a paused box go on when it is resumed. Start or resume the box to see them.</p>
        </Rest>
      </div>
    );
  }
  if (path === "") return <Start onOpen={show} />;
  return <NotebookView key={`${box.id} ${path}`} path={path} onBack={back} />;
}
