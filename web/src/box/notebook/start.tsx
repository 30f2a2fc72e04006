// The notebooks of a box, and a new one.

import { useCallback, useMemo, useState } from "react";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import type { Api } from "../../lib/api";
import { message } from "../../lib/errors";
import { bytes } from "../../lib/format";
import { useLoad } from "../../lib/load";
import { Ago, Empty } from "../../ui/bits";
import { Button, Loading } from "../../ui/button";
import { Problem } from "../../ui/error";
import { Icon } from "../../ui/icon";
import { Menu } from "../../ui/menu";
import { toastError } from "../../ui/toast";
import { useBox } from "../context";
import { newCell, randomHex } from "./model/nbformat";
import { formatEdit } from "./model/wire";
import { refusal } from "./api";

interface Entry {
  readonly path: string;
  readonly size: bigint;
  readonly changed: Date | undefined;
}

const mostFolders = 60;
const passed = /^(\.|node_modules$|__pycache__$|site-packages$|venv$)/;

/** Notebooks below the user's home, the newest first. Hidden and machine-made folders are passed over; at most 60 folders, 3 deep, are looked into. */
export async function notebooks(files: Api["files"], box: string, signal: AbortSignal): Promise<{ found: Entry[]; all: boolean }> {
  const found: Entry[] = [];
  let level = [""];
  let looked = 0;
  let all = true;
  for (let depth = 0; depth < 4 && level.length > 0; depth++) {
    const next: string[] = [];
    for (const folder of level) {
      if (++looked > mostFolders || depth === 3) {
        all = false;
        break;
      }
      const answer = await files.listFiles({ box, path: folder || ".", pageSize: 1000 }, { signal }).catch((err: unknown) => {
        if (folder === "") throw err;
        return null;
      });
      for (const file of answer?.files ?? []) {
        const name = file.path.split("/").at(-1) ?? "";
        const path = folder === "" ? name : `${folder}/${name}`;
        if (file.type === "directory" && !passed.test(name)) next.push(path);
        else if (name.endsWith(".ipynb") && file.type === "file") found.push({ path, size: file.size, changed: file.modifyTime && timestampDate(file.modifyTime) });
      }
    }
    level = next;
  }
  found.sort((a, b) => (b.changed?.getTime() ?? 0) - (a.changed?.getTime() ?? 0));
  return { found, all };
}

/** The first name that is free: Untitled.ipynb, Untitled1.ipynb, … */
export function freeName(taken: ReadonlySet<string>): string {
  for (let i = 0; ; i++) {
    const name = `Untitled${i || ""}.ipynb`;
    if (!taken.has(name)) return name;
  }
}

/** Paths of notebooks that were made in this page and have not been opened yet. */
export const begun = new Set<string>();

export function Start({ onOpen }: { onOpen: (path: string) => void }) {
  const { api, box, mayChange } = useBox();
  const list = useLoad((signal) => notebooks(api.files, box.id, signal), [box.id], 15_000);
  const specs = useLoad((signal) => api.notebooks.listKernelSpecs({ box: box.id }, { signal }), [box.id]);
  const status = useLoad((signal) => api.notebooks.getStatus({ box: box.id }, { signal }), [box.id], 5000);
  const [making, setMaking] = useState(false);
  const open = useMemo(() => new Set((status.data?.kernels ?? []).map((k) => k.path)), [status.data]);

  const make = useCallback(
    async (spec: string) => {
      setMaking(true);
      try {
        const now = await notebooks(api.files, box.id, new AbortController().signal).catch(() => ({ found: [] as Entry[] }));
        const path = freeName(new Set(now.found.map((e) => e.path)));
        await api.notebooks.editNotebook({
          box: box.id,
          path,
          create: true,
          kernelSpec: spec,
          requestId: randomHex(12),
          edits: [formatEdit({ kind: "insert", after: "", cell: newCell("code") })],
        });
        // The kernel starts while the page opens.
        api.notebooks.startKernel({ box: box.id, path, spec }).catch((err: unknown) => toastError(err));
        begun.add(path);
        onOpen(path);
      } catch (err) {
        toastError(new Error(refusal(err).message || message(err)));
        setMaking(false);
      }
    },
    [api, box.id, onOpen],
  );

  const kinds = specs.data?.specs ?? [];
  const standard = specs.data?.defaultSpec ?? "";
  const buttons = mayChange && (
    <div className="nb-new">
      <Button kind="primary" icon="plus" busy={making} onClick={() => void make("")}>
        New notebook
      </Button>
      {kinds.length > 1 && (
        <Menu
          label="New notebook with another kernel"
          className="button plain"
          items={kinds.map((k) => ({ label: k.displayName || k.name, checked: k.name === standard, act: () => void make(k.name) }))}
        >
          <Icon name="down" />
        </Menu>
      )}
    </div>
  );

  if (list.data === undefined) {
    return <div className="panel">{list.error !== undefined ? <Problem title="The notebooks cannot be listed" error={list.error} retry={list.reload} /> : <Loading>Looking for notebooks…</Loading>}</div>;
  }
  const { found, all } = list.data;
  if (found.length === 0) {
    return (
      <div className="panel nb-start">
        <Empty icon="notebook" title="No notebooks yet">
          <p>{mayChange ? "A notebook runs code cell by cell and keeps what comes of it. It goes on when you close the page." : "When somebody makes one it is here."}</p>
          {specs.error !== undefined && <Problem error={specs.error} />}
          {buttons}
        </Empty>
      </div>
    );
  }
  return (
    <div className="panel nb-start">
      <div className="nb-start-head">
        <h2>Notebooks</h2>
        {buttons}
      </div>
      <ul className="nb-list">
        {found.slice(0, 200).map((e) => (
          <li key={e.path}>
            <button type="button" onClick={() => onOpen(e.path)}>
              <Icon name="notebook" />
              <span className="nb-list-name">{e.path}</span>
              {(open.has(e.path) || [...open].some((p) => p.endsWith(`/${e.path}`))) && <span className="badge good">Kernel runs</span>}
              <span className="nb-list-more">
                {bytes(e.size)} · {e.changed && <Ago time={e.changed} />}
              </span>
            </button>
          </li>
        ))}
      </ul>
      {!all && <p className="nb-note">Deeper folders were not looked into. Open a notebook there from Files.</p>}
    </div>
  );
}
