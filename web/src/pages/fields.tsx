import { useState } from "react";
import { type Resources, type IdlePolicy } from "../gen/carrel/v1/common_pb";
import { bytes, durationMs, parseBytes, parseSpan, span } from "../lib/format";
import { Button, IconButton } from "../ui/button";
import { Field, SelectField } from "../ui/field";

const namePattern = /^[a-z][a-z0-9-]{0,39}$/;

/** What is wrong with a name; undefined: nothing, or nothing was typed. */
export function nameProblem(name: string, taken: boolean): string | undefined {
  if (!name) return undefined;
  if (!namePattern.test(name) || name.endsWith("-")) return "Lower case letters, digits and hyphens; a letter first; at most 40.";
  return taken ? "You have a box of this name already." : undefined;
}

export interface Pair {
  name: string;
  value: string;
}

/** What people type about a box; an empty field says nothing. */
export interface BoxFields {
  cpu: string;
  memory: string;
  home: string;
  after: string;
  action: string;
  env: Pair[];
}

export const pairs = (map: Record<string, string>): Pair[] => Object.entries(map).map(([name, value]) => ({ name, value }));
export const mapOf = (list: readonly Pair[]): Record<string, string> => Object.fromEntries(list.filter((v) => v.name).map((v) => [v.name, v.value]));

/** What is wrong with each field; undefined: nothing. */
export function fieldProblems(f: BoxFields) {
  return {
    cpu: f.cpu && !(Number(f.cpu) > 0) ? "A number such as 2 or 0.5." : undefined,
    memory: f.memory && parseBytes(f.memory) === null ? "A size such as 2 GiB or 512 MiB." : undefined,
    home: f.home && parseBytes(f.home) === null ? "A size such as 4 GiB." : undefined,
    after: f.after && parseSpan(f.after) === null ? "A time such as 30 min or 2 h." : undefined,
    env: f.env.find((v) => v.name && !/^[A-Za-z_][A-Za-z0-9_]*$/.test(v.name)) ? "Names have letters, digits and underscores." : undefined,
  };
}

/** The sizes that were typed; 0 where nothing was. */
export const sizesOf = (f: BoxFields) => ({
  cpuMillis: f.cpu ? BigInt(Math.round(Number(f.cpu) * 1000)) : 0n,
  memoryBytes: (f.memory && parseBytes(f.memory)) || 0n,
  homeBytes: (f.home && parseBytes(f.home)) || 0n,
});

export function useBoxFields(env: Pair[] = []) {
  const [fields, setFields] = useState<BoxFields>({ cpu: "", memory: "", home: "", after: "", action: "", env });
  return [fields, (change: Partial<BoxFields>) => setFields((f) => ({ ...f, ...change }))] as const;
}

interface Props {
  fields: BoxFields;
  change: (change: Partial<BoxFields>) => void;
  problems: ReturnType<typeof fieldProblems>;
  /** What holds where nothing is typed. */
  size: Resources | undefined;
  idle: IdlePolicy | undefined;
  /** What no choice of an idle action means. */
  unset: string;
  /** The box has been started: its home keeps its size. */
  homeFixed?: boolean;
}

export function BoxFieldSet({ fields, change, problems, size, idle, unset, homeFixed }: Props) {
  const set = (i: number, pair: Partial<Pair>) => change({ env: fields.env.map((x, j) => (j === i ? { ...x, ...pair } : x)) });
  return (
    <>
      <div className="fields">
        <Field label="Processors" inputMode="decimal" value={fields.cpu} onChange={(e) => change({ cpu: e.target.value })} placeholder={size ? String(Number(size.cpuMillis) / 1000) : ""} problem={problems.cpu} />
        <Field label="Memory" value={fields.memory} onChange={(e) => change({ memory: e.target.value })} placeholder={size ? bytes(size.memoryBytes) : ""} problem={problems.memory} />
        {!homeFixed && <Field label="Space for files" value={fields.home} onChange={(e) => change({ home: e.target.value })} placeholder={size ? bytes(size.homeBytes) : ""} problem={problems.home} />}
      </div>
      <div className="fields">
        <Field label="Unused for" value={fields.after} onChange={(e) => change({ after: e.target.value })} placeholder={idle?.after ? span(durationMs(idle.after)) : "30 min"} problem={problems.after} />
        <SelectField label="then" value={fields.action} onChange={(e) => change({ action: e.target.value })}>
          <option value="">{unset}</option>
          <option value="pause">pause it (memory and files are kept)</option>
          <option value="stop">stop it (files are kept)</option>
          <option value="nothing">leave it running</option>
        </SelectField>
      </div>
      <fieldset className="env">
        <legend>Variables of its environment</legend>
        {fields.env.map((v, i) => (
          <div className="env-row" key={i}>
            <input aria-label={`Name of variable ${i + 1}`} value={v.name} placeholder="NAME" spellCheck={false} autoComplete="off" onChange={(e) => set(i, { name: e.target.value })} />
            <input aria-label={`Value of variable ${i + 1}`} value={v.value} placeholder="value" spellCheck={false} autoComplete="off" onChange={(e) => set(i, { value: e.target.value })} />
            <IconButton icon="close" label={`Remove variable ${i + 1}`} onClick={() => change({ env: fields.env.filter((_, j) => j !== i) })} />
          </div>
        ))}
        {problems.env && (
          <p className="field-problem" role="alert">
            {problems.env}
          </p>
        )}
        <Button small icon="plus" onClick={() => change({ env: [...fields.env, { name: "", value: "" }] })}>
          Add a variable
        </Button>
      </fieldset>
    </>
  );
}
