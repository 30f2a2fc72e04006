// What can be done to a notebook, and how it and its kernel are.

import { useState } from "react";
import type { KernelSpec } from "../../gen/carrel/v1/notebooks_pb";
import { IconButton } from "../../ui/button";
import { Dialog } from "../../ui/dialog";
import { Icon } from "../../ui/icon";
import { Menu, type MenuItem } from "../../ui/menu";
import { keyHelp } from "./keys";
import type { CellType, KernelInfo } from "./model/types";

export interface ToolbarProps {
  name: string;
  readOnly: boolean;
  busy: boolean;
  type: CellType;
  kernel: KernelInfo | null;
  /** The name of the kernel that the notebook wants, while it has none. */
  wanted: string;
  saved: SaveState;
  canUndo: boolean;
  canRedo: boolean;
  actions: {
    run: () => void;
    runAll: () => void;
    runAbove: () => void;
    runBelow: () => void;
    interrupt: () => void;
    restart: () => void;
    restartAndRunAll: () => void;
    shutdown: () => void;
    add: () => void;
    setType: (type: CellType) => void;
    moveUp: () => void;
    moveDown: () => void;
    split: () => void;
    merge: () => void;
    cut: () => void;
    copy: () => void;
    paste: () => void;
    remove: () => void;
    undo: () => void;
    redo: () => void;
    clearAll: () => void;
    find: () => void;
    back: () => void;
    specs: () => Promise<KernelSpec[]>;
    choose: (spec: KernelSpec) => void;
  };
}

export interface SaveState {
  readonly text: string;
  readonly tone: "good" | "busy" | "bad";
  /** All of the reason. */
  readonly detail: string;
}

const kernelWords = {
  none: "No kernel",
  starting: "Starting",
  idle: "Idle",
  busy: "Busy",
  unresponsive: "Does not answer",
  dead: "Dead",
  restarting: "Restarting",
} as const;
const kernelTone = { none: "off", starting: "busy", idle: "good", busy: "busy", unresponsive: "bad", dead: "bad", restarting: "busy" } as const;

export function Toolbar(props: ToolbarProps) {
  const { actions: a, readOnly, busy } = props;
  const [help, setHelp] = useState(false);
  const more: MenuItem[] = [
    { label: "Run all above", icon: "play", act: a.runAbove },
    { label: "Run this and all below", icon: "play", act: a.runBelow },
    { label: "Move up", hint: "Alt+↑", icon: "chevron", act: a.moveUp },
    { label: "Move down", hint: "Alt+↓", icon: "down", act: a.moveDown },
    { label: "Cut", hint: "X", icon: "copy", act: a.cut },
    { label: "Copy", hint: "C", icon: "copy", act: a.copy },
    { label: "Paste below", hint: "V", icon: "copy", act: a.paste },
    { label: "Split at the caret", hint: "Ctrl+Shift+-", icon: "edit", act: a.split },
    { label: "Join with the cell below", hint: "Shift+M", icon: "edit", act: a.merge },
    { label: "Undo", hint: props.canUndo ? "Z" : "Nothing to undo", icon: "restart", act: a.undo },
    { label: "Redo", hint: props.canRedo ? "Shift+Z" : "Nothing to redo", icon: "restart", act: a.redo },
    { label: "Empty all outputs", icon: "close", act: a.clearAll },
    { label: "Delete the cell", hint: "D D", icon: "delete", danger: true, act: a.remove },
  ];
  return (
    <div className="nb-toolbar" role="toolbar" aria-label="Notebook">
      <button type="button" className="nb-back" onClick={a.back} aria-label="All notebooks" title="All notebooks">
        <Icon name="notebook" />
      </button>
      <strong className="nb-name" title={props.name}>
        {props.name}
      </strong>
      <span className={`nb-saved ${props.saved.tone}`} role="status" title={props.saved.detail}>
        {props.saved.text}
      </span>
      <span className="nb-space" />
      {!readOnly && (
        <>
          <div className="nb-tools">
            <button type="button" className="nb-tool primary" onClick={a.run} title="Run and go on (Shift+Enter)">
              <Icon name="play" />
              <span>Run</span>
            </button>
            <button type="button" className="nb-tool" onClick={a.interrupt} disabled={!busy} title="Interrupt (I I)" aria-label="Interrupt">
              <Icon name="stop" />
            </button>
            <IconButton icon="plus" label="Add a cell below (B)" onClick={a.add} />
            <label className="nb-type">
              <span className="nb-unseen">Kind of the cell</span>
              <select value={props.type} onChange={(e) => a.setType(e.target.value as CellType)}>
                <option value="code">Code</option>
                <option value="markdown">Text</option>
                <option value="raw">Raw</option>
              </select>
            </label>
            <Menu
              label="All cells: run or restart"
              className="nb-tool"
              items={[
                { label: "Run all", icon: "play", act: a.runAll },
                { label: "Restart and run all", hint: "Variables are lost", icon: "restart", act: a.restartAndRunAll },
                { label: "Restart", hint: "0 0 · Variables are lost", icon: "restart", act: a.restart },
              ]}
            >
              <Icon name="restart" />
              <span>All</span>
              <Icon name="down" size={12} />
            </Menu>
            <IconButton icon="search" label="Find in the notebook (Ctrl+F)" onClick={a.find} />
            <Menu label="More for cells" items={more}>
              <Icon name="more" />
            </Menu>
          </div>
        </>
      )}
      <KernelMenu {...props} />
      <IconButton icon="help" label="Keys of the notebook (H)" onClick={() => setHelp(true)} />
      {help && <KeyHelp onClose={() => setHelp(false)} />}
    </div>
  );
}

function KernelMenu({ wanted, kernel, readOnly, actions: a }: ToolbarProps) {
  const [specs, setSpecs] = useState<KernelSpec[]>([]);
  const health = kernel?.health ?? "none";
  const load = () => {
    if (specs.length === 0 && !readOnly) a.specs().then(setSpecs, () => {});
  };
  const items: MenuItem[] = [
    { label: kernel === null ? "Start" : "Restart", hint: kernel === null ? "The first cell starts it too" : "Variables are lost", icon: "restart", act: a.restart },
    ...(kernel === null ? [] : [{ label: "Shut down", hint: "Frees its memory; variables are lost", icon: "stop" as const, act: a.shutdown }]),
    ...specs.map((spec): MenuItem => ({ label: spec.displayName || spec.name, checked: spec.name === kernel?.spec, act: () => a.choose(spec) })),
  ];
  return (
    <div className="nb-kernel" onPointerEnter={load} onFocus={load}>
      <Menu label={`${kernel?.displayName ?? wanted} ${kernelWords[health]}, the kernel`} className="nb-kernel-button" items={readOnly ? [] : items}>
        <span className={`badge ${kernelTone[health]}`} data-kernel={health}>
          <span className={`dot ${kernelTone[health] === "busy" ? "moving" : ""}`} aria-hidden="true" />
          <span className="nb-kernel-name">{kernel?.displayName ?? wanted}</span>{" "}
          <span className="nb-kernel-state">{kernelWords[health]}</span>
        </span>
      </Menu>
    </div>
  );
}

export function KeyHelp({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Keys of the notebook" onClose={onClose} wide>
      <dl className="nb-keys">
        {keyHelp.map(([keys, what]) => (
          <div key={keys}>
            <dt>
              <kbd>{keys}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
