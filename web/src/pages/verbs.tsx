import { Suspense, lazy, useState } from "react";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { askAndTell } from "../lib/actions";
import { type Verb, verbs, verbsOf } from "../lib/states";
import { Button } from "../ui/button";
import { Dialog } from "../ui/dialog";
import { Field } from "../ui/field";
import { Icon, type IconName } from "../ui/icon";
import { Menu, type MenuItem } from "../ui/menu";

/** Its fields are not part of the first page. */
export const Change = lazy(() => import("./change"));

const icons: Record<Verb, IconName> = { start: "play", resume: "play", pause: "pause", stop: "stop", restart: "restart", delete: "delete" };

/** The most likely thing to do with a box in its state. */
export function VerbButton({ box, small }: { box: Box; small?: boolean }) {
  const [busy, setBusy] = useState(false);
  const verb = verbsOf(box).find((v) => v === "pause" || v === "resume" || v === "start");
  if (!verb) return null;
  return (
    <Button
      small={small ?? false}
      kind={verb === "pause" ? "plain" : "primary"}
      icon={icons[verb]}
      busy={busy}
      title={verbs[verb].effect}
      aria-label={small ? `${verbs[verb].label} ${box.name}` : undefined}
      onClick={() => {
        setBusy(true);
        void askAndTell(verb, box).finally(() => setBusy(false));
      }}
    >
      {verbs[verb].label}
    </Button>
  );
}

/** Everything that may be done with a box now, each with what it does to memory and files. */
export function VerbMenu({ box, onDeleted }: { box: Box; onDeleted?: () => void }) {
  const [sure, setSure] = useState<Verb | null>(null);
  const [changing, setChanging] = useState(false);
  const possible = verbsOf(box);
  if (possible.length === 0) return null;
  const item = (verb: Verb): MenuItem => ({
    label: verbs[verb].label,
    hint: verbs[verb].effect,
    icon: icons[verb],
    danger: verb === "delete",
    act: () => {
      if (verb === "delete" || verb === "restart" || verb === "stop") setSure(verb);
      else void askAndTell(verb, box);
    },
  });
  return (
    <>
      <Menu
        label={`What to do with ${box.name}`}
        items={[
          ...possible.filter((verb) => verb !== "delete").map(item),
          { label: "Change…", hint: "Name, size, sleep and variables.", icon: "edit", act: () => setChanging(true) },
          ...possible.filter((verb) => verb === "delete").map(item),
        ]}
      >
        <Icon name="more" />
      </Menu>
      {changing && (
        <Suspense>
          <Change box={box} onClose={() => setChanging(false)} />
        </Suspense>
      )}
      {sure && <Sure verb={sure} box={box} onClose={() => setSure(null)} onDone={sure === "delete" ? onDeleted : undefined} />}
    </>
  );
}

/** Asks before something is lost; a box is deleted by who types its name. */
export function Sure({ verb, box, onClose, onDone }: { verb: Verb; box: Box; onClose: () => void; onDone?: (() => void) | undefined }) {
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const text = verbs[verb];
  const ready = verb !== "delete" || typed.trim() === box.name;
  const act = async () => {
    setBusy(true);
    const taken = await askAndTell(verb, box);
    setBusy(false);
    if (!taken) return;
    onClose();
    onDone?.();
  };
  return (
    <Dialog title={`${text.label} ${box.name}?`} onClose={onClose}>
      <form
        onSubmit={(e) => {
          e.preventDefault();
          if (ready) void act();
        }}
      >
        <p>{text.effect}</p>
        {verb === "delete" && <Field label={`Type ${box.name} to delete it`} value={typed} onChange={(e) => setTyped(e.target.value)} data-focus />}
        <div className="dialog-buttons">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind={verb === "delete" ? "danger" : "primary"} busy={busy} disabled={!ready} data-focus={verb === "delete" ? undefined : true}>
            {text.label}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
