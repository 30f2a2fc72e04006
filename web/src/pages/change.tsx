import { type FormEvent, useState } from "react";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { api } from "../lib/api";
import { useBoxes } from "../lib/boxes";
import { parseSpan } from "../lib/format";
import { isLive } from "../lib/states";
import { Button } from "../ui/button";
import { Dialog } from "../ui/dialog";
import { Problem } from "../ui/error";
import { Field } from "../ui/field";
import { toast } from "../ui/toast";
import { BoxFieldSet, fieldProblems, mapOf, nameProblem, pairs, sizesOf, useBoxFields } from "./fields";

/** Changes a box's name, size, sleep and variables, and says when each of them holds. */
export default function Change({ box, onClose }: { box: Box; onClose: () => void }) {
  const { boxes } = useBoxes();
  // As the box was when the window was opened: what somebody else changes meanwhile is not overwritten, the server says so.
  const [was] = useState(box);
  const [name, setName] = useState(was.name);
  const [fields, change] = useBoxFields(pairs(was.env));
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const taken = name !== was.name && [...(boxes?.values() ?? [])].some((b) => b.name === name && b.id !== was.id);
  const problems = { ...fieldProblems(fields), name: name ? nameProblem(name, taken) : "A box has a name." };
  const sizes = sizesOf(fields);
  const env = mapOf(fields.env);
  const paths = [
    ...(name !== was.name ? ["name"] : []),
    ...(sizes.cpuMillis ? ["resources.cpu_millis"] : []),
    ...(sizes.memoryBytes ? ["resources.memory_bytes"] : []),
    ...(JSON.stringify(pairs(env).toSorted(byName)) !== JSON.stringify(pairs(was.env).toSorted(byName)) ? ["env"] : []),
    ...(fields.after ? ["idle.after"] : []),
    ...(fields.action ? ["idle.action"] : []),
  ];
  const ready = paths.length > 0 && !Object.values(problems).some(Boolean);
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (!ready || busy) return;
    setBusy(true);
    setError(undefined);
    const seconds = fields.after ? parseSpan(fields.after) : null;
    try {
      const changed = await api.boxes.updateBox({
        id: was.id,
        etag: was.etag,
        updateMask: { paths },
        box: { name, resources: sizes, env, idle: { action: fields.action, ...(seconds ? { after: durationFromMs(seconds * 1000) } : {}) } },
      });
      const later = paths.some((p) => p === "env" || p.startsWith("resources."));
      toast(`${changed.name} is changed${later && isLive(was) ? "; restart it to have all of it now" : ""}`);
      onClose();
    } catch (err) {
      setError(err);
      setBusy(false);
    }
  };
  return (
    <Dialog title={`Change ${was.name}`} onClose={onClose} wide>
      <form onSubmit={(e) => void submit(e)} noValidate>
        <Field label="Name" value={name} onChange={(e) => setName(e.target.value)} problem={problems.name} data-focus />
        <BoxFieldSet fields={fields} change={change} problems={problems} size={was.resources} idle={was.idle} unset="as it is now" homeFixed />
        <p className="soft small">
          Its name and what becomes of it when nobody uses it hold at once. Processors, memory and variables hold from when it next starts afresh{isLive(was) ? ": a restart does that, keeps files and gives up memory" : ", not when its memory is resumed"}. Its space for files
          stays as it was made.
        </p>
        {error !== undefined && <Problem title="The box was not changed" error={error} />}
        <div className="dialog-buttons">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" busy={busy} disabled={!ready}>
            Change
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1);
