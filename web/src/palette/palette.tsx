import { useEffect, useId, useMemo, useRef, useState } from "react";
import { Icon } from "../ui/icon";
import { Dialog } from "../ui/dialog";
import { type Command, search, useAllCommands } from "./commands";
import { keyNames } from "./keys";

export function Keys({ keys }: { keys: string }) {
  return (
    <span className="keys">
      {keyNames(keys).map((k, i) => (
        <kbd key={i}>{k}</kbd>
      ))}
    </span>
  );
}

/** Finds and runs everything by a few letters. */
export function Palette({ onClose }: { onClose: () => void }) {
  const all = useAllCommands();
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const id = useId();
  const list = useRef<HTMLDivElement>(null);
  const found = useMemo(() => (text.trim() ? search(all, text) : grouped(all)), [all, text]);
  const current = Math.min(at, found.length - 1);
  useEffect(() => {
    list.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  }, [current]);
  const run = (command: Command) => {
    onClose();
    // When the keyboard is back where it was: a command may move it on.
    setTimeout(command.run);
  };
  return (
    <Dialog title="Commands" onClose={onClose} wide>
      <div className="palette">
        <div className="palette-input">
          <Icon name="search" />
          <input
            data-focus
            role="combobox"
            aria-label="Find a command"
            aria-expanded="true"
            aria-controls={id}
            aria-activedescendant={found[current] ? `${id}-${current}` : undefined}
            placeholder="Find a box, a page or something to do"
            autoComplete="off"
            spellCheck={false}
            value={text}
            onChange={(e) => {
              setText(e.target.value);
              setAt(0);
            }}
            onKeyDown={(e) => {
              if (e.key === "ArrowDown" || e.key === "ArrowUp") {
                e.preventDefault();
                const n = found.length;
                if (n) setAt((current + (e.key === "ArrowDown" ? 1 : n - 1)) % n);
              } else if (e.key === "Enter" && found[current]) {
                e.preventDefault();
                run(found[current]);
              }
            }}
          />
        </div>
        <div ref={list} id={id} role="listbox" aria-label="Commands" className="palette-list">
          {found.map((command, i) => (
            <div key={command.id} id={`${id}-${i}`} role="option" aria-selected={i === current} className="palette-item" onPointerMove={() => setAt(i)} onClick={() => run(command)}>
              {command.icon && <Icon name={command.icon} />}
              <span className="palette-title">{command.title}</span>
              <span className="palette-group">{command.group}</span>
              {(command.keys ?? command.ownKeys) && <Keys keys={(command.keys ?? command.ownKeys)!} />}
            </div>
          ))}
        </div>
        {found.length === 0 && <p className="palette-none">Nothing fits “{text}”.</p>}
      </div>
    </Dialog>
  );
}

function grouped(all: readonly Command[]): Command[] {
  const groups = new Map<string, Command[]>();
  for (const c of all) groups.set(c.group, [...(groups.get(c.group) ?? []), c]);
  return [...groups.values()].flat();
}

/** Every shortcut that works here. */
export function ShortcutHelp({ onClose }: { onClose: () => void }) {
  const all = useAllCommands().filter((c) => c.keys);
  const groups = [...new Set(all.map((c) => c.group))];
  return (
    <Dialog title="Keyboard shortcuts" onClose={onClose} wide>
      <div className="shortcuts">
        {groups.map((group) => (
          <section key={group}>
            <h3>{group}</h3>
            <dl>
              {all
                .filter((c) => c.group === group)
                .map((c) => (
                  <div key={c.id}>
                    <dt>{c.title}</dt>
                    <dd>
                      <Keys keys={c.keys!} />
                    </dd>
                  </div>
                ))}
            </dl>
          </section>
        ))}
      </div>
    </Dialog>
  );
}
