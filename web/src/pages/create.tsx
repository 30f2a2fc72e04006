import { type FormEvent, useMemo, useState } from "react";
import type { Template } from "../gen/carrel/v1/catalog_pb";
import { State } from "../gen/carrel/v1/common_pb";
import { api } from "../lib/api";
import { useBoxes } from "../lib/boxes";
import { bytes, cpus, durationMs, parseBytes, parseSpan, span, when } from "../lib/format";
import { useLoad } from "../lib/load";
import { Link, useRouter } from "../lib/router";
import { useSession } from "../lib/session";
import { isLive } from "../lib/states";
import { useTitle } from "../lib/title";
import { Empty } from "../ui/bits";
import { Button, IconButton, Loading } from "../ui/button";
import { Problem } from "../ui/error";
import { Field, SelectField } from "../ui/field";
import { Icon } from "../ui/icon";
import { Steps } from "./steps";

export default function CreatePage() {
  useTitle("New box");
  const { org, mayChange } = useSession();
  const { query, go } = useRouter();
  const templates = useLoad((signal) => api.templates.listTemplates({ org: org.id, pageSize: 200 }, { signal }), [org.id]);
  const [made, setMade] = useState<{ box: string; name: string; since: number }>();
  if (!mayChange) return <Empty icon="box" title="You may look at boxes here, not make them" />;
  if (made) return <Progress {...made} />;
  const list = templates.data?.templates ?? [];
  const chosen = list.find((t) => t.name === query.get("template")) ?? list.find((t) => t.name === "python") ?? list[0];
  return (
    <div className="page">
      <header className="page-head">
        <h1>New box</h1>
      </header>
      {templates.error !== undefined && <Problem title="The templates cannot be shown" error={templates.error} retry={templates.reload} />}
      {templates.loading && !templates.data && <Loading>Looking for templates…</Loading>}
      {templates.data && list.length === 0 && (
        <Empty icon="files" title="There is no template yet">
          <p>Templates say what a new box has in it. Whoever runs this Carrel adds them.</p>
        </Empty>
      )}
      {chosen && (
        <>
          <fieldset className="templates">
            <legend>What should be in it?</legend>
            {list.map((t) => (
              <TemplateCard key={t.id} template={t} chosen={t === chosen} choose={() => go(`/new?template=${encodeURIComponent(t.name)}`, { replace: true })} />
            ))}
          </fieldset>
          <Form key={chosen.id} template={chosen} org={org.id} onMade={(box, name) => setMade({ box, name, since: Date.now() })} />
        </>
      )}
    </div>
  );
}

function TemplateCard({ template, chosen, choose }: { template: Template; chosen: boolean; choose: () => void }) {
  const r = template.resources;
  return (
    <label className={`template ${chosen ? "chosen" : ""}`}>
      <input type="radio" name="template" checked={chosen} onChange={choose} />
      <span className="template-name">{template.name}</span>
      <span className="template-about">{template.description}</span>
      {r && (
        <span className="template-facts">
          {cpus(r.cpuMillis)} · {bytes(r.memoryBytes)} memory · {bytes(r.homeBytes)} for files
        </span>
      )}
    </label>
  );
}

const namePattern = /^[a-z][a-z0-9-]{0,39}$/;

/** What is wrong with a name; undefined: nothing, or nothing was typed. */
export function nameProblem(name: string, taken: boolean): string | undefined {
  if (!name) return undefined;
  if (!namePattern.test(name) || name.endsWith("-")) return "Lower case letters, digits and hyphens; a letter first; at most 40.";
  return taken ? "You have a box of this name already." : undefined;
}

interface Variable {
  name: string;
  value: string;
}

function Form({ template, org, onMade }: { template: Template; org: string; onMade: (box: string, name: string) => void }) {
  const { boxes } = useBoxes();
  const r = template.resources;
  const [name, setName] = useState("");
  const [cpu, setCPU] = useState("");
  const [memory, setMemory] = useState("");
  const [home, setHome] = useState("");
  const [after, setAfter] = useState("");
  const [action, setAction] = useState("");
  const [env, setEnv] = useState<Variable[]>([]);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [request] = useState(() => crypto.randomUUID?.() ?? String(Math.random()).slice(2));
  const taken = useMemo(() => [...(boxes?.values() ?? [])].some((b) => b.name === name), [boxes, name]);
  const problems = {
    name: nameProblem(name, taken),
    cpu: cpu && !(Number(cpu) > 0) ? "A number such as 2 or 0.5." : undefined,
    memory: memory && parseBytes(memory) === null ? "A size such as 2 GiB or 512 MiB." : undefined,
    home: home && parseBytes(home) === null ? "A size such as 4 GiB." : undefined,
    after: after && parseSpan(after) === null ? "A time such as 30 min or 2 h." : undefined,
    env: env.find((v) => v.name && !/^[A-Za-z_][A-Za-z0-9_]*$/.test(v.name)) ? "Names have letters, digits and underscores." : undefined,
  };
  const ready = !Object.values(problems).some(Boolean);
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (!ready || busy) return;
    setBusy(true);
    setError(undefined);
    try {
      const seconds = after ? parseSpan(after) : null;
      const operation = await api.boxes.createBox({
        name,
        template: template.name,
        org,
        requestId: request,
        resources: {
          cpuMillis: cpu ? BigInt(Math.round(Number(cpu) * 1000)) : 0n,
          memoryBytes: (memory && parseBytes(memory)) || 0n,
          homeBytes: (home && parseBytes(home)) || 0n,
        },
        env: Object.fromEntries(env.filter((v) => v.name).map((v) => [v.name, v.value])),
        ...(seconds || action ? { idle: { action, ...(seconds ? { after: { seconds: BigInt(seconds), nanos: 0 } } : {}) } } : {}),
      });
      onMade(operation.targetId, operation.targetName);
    } catch (err) {
      setError(err);
      setBusy(false);
    }
  };
  const idle = template.idle;
  return (
    <form className="create" onSubmit={(e) => void submit(e)} noValidate>
      <Field label="Name" value={name} onChange={(e) => setName(e.target.value)} placeholder="made up for you" hint="You can change it later." problem={problems.name} />
      <details className="more-fields">
        <summary>Size, sleep and variables</summary>
        <div className="fields">
          <Field label="Processors" inputMode="decimal" value={cpu} onChange={(e) => setCPU(e.target.value)} placeholder={r ? String(Number(r.cpuMillis) / 1000) : ""} problem={problems.cpu} />
          <Field label="Memory" value={memory} onChange={(e) => setMemory(e.target.value)} placeholder={r ? bytes(r.memoryBytes) : ""} problem={problems.memory} />
          <Field label="Space for files" value={home} onChange={(e) => setHome(e.target.value)} placeholder={r ? bytes(r.homeBytes) : ""} problem={problems.home} />
        </div>
        <div className="fields">
          <Field label="Unused for" value={after} onChange={(e) => setAfter(e.target.value)} placeholder={idle?.after ? span(durationMs(idle.after)) : "30 min"} problem={problems.after} />
          <SelectField label="then" value={action} onChange={(e) => setAction(e.target.value)}>
            <option value="">as the template says</option>
            <option value="pause">pause it (memory and files are kept)</option>
            <option value="stop">stop it (files are kept)</option>
            <option value="nothing">leave it running</option>
          </SelectField>
        </div>
        <fieldset className="env">
          <legend>Variables of its environment</legend>
          {env.map((v, i) => (
            <div className="env-row" key={i}>
              <input aria-label={`Name of variable ${i + 1}`} value={v.name} placeholder="NAME" spellCheck={false} autoComplete="off" onChange={(e) => setEnv(env.map((x, j) => (j === i ? { ...x, name: e.target.value } : x)))} />
              <input aria-label={`Value of variable ${i + 1}`} value={v.value} placeholder="value" spellCheck={false} autoComplete="off" onChange={(e) => setEnv(env.map((x, j) => (j === i ? { ...x, value: e.target.value } : x)))} />
              <IconButton icon="close" label={`Remove variable ${i + 1}`} onClick={() => setEnv(env.filter((_, j) => j !== i))} />
            </div>
          ))}
          {problems.env && (
            <p className="field-problem" role="alert">
              {problems.env}
            </p>
          )}
          <Button small icon="plus" onClick={() => setEnv([...env, { name: "", value: "" }])}>
            Add a variable
          </Button>
        </fieldset>
      </details>
      {error !== undefined && <Problem title="The box was not made" error={error} />}
      <div className="form-buttons">
        <Button type="submit" kind="primary" busy={busy} disabled={!ready}>
          Create box
        </Button>
        <Link to="/" className="button plain">
          Cancel
        </Link>
      </div>
    </form>
  );
}

function Progress({ box: id, name, since }: { box: string; name: string; since: number }) {
  const { boxes } = useBoxes();
  const box = boxes?.get(id);
  const failed = box?.state === State.FAILED;
  const live = box !== undefined && isLive(box);
  useTitle(live ? `${name} is ready` : `Making ${name}`);
  const asked = when(box?.createTime)?.getTime() ?? since;
  const running = box?.phases.findLast((p) => p.phase === "running");
  return (
    <div className="page narrow">
      <header className="page-head">
        <h1 aria-live="polite">{live ? `${name} is ready` : failed ? `${name} did not start` : `Making ${name}`}</h1>
      </header>
      <div className="card">
        {box ? <Steps box={box} since={asked} /> : <Loading>Asked for…</Loading>}
        {live && running?.time && <p className="step-sum">Ready after {span(when(running.time)!.getTime() - asked)}.</p>}
        {failed && (
          <Problem title={box.failure?.message || "The box did not start."}>
            {box.failure?.nextStep && <p>{box.failure.nextStep}</p>}
          </Problem>
        )}
      </div>
      <div className="form-buttons">
        <Link to={`/boxes/${id}`} className={`button ${live ? "primary" : "plain"}`}>
          <Icon name="external" />
          Open {name}
        </Link>
        <Link to="/" className="button plain">
          All boxes
        </Link>
      </div>
    </div>
  );
}
