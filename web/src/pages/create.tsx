import { type FormEvent, useMemo, useState } from "react";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { Template } from "../gen/carrel/v1/catalog_pb";
import { State } from "../gen/carrel/v1/common_pb";
import { api } from "../lib/api";
import { useBoxes } from "../lib/boxes";
import { sentence } from "../lib/errors";
import { bytes, cpus, parseSpan, span, when } from "../lib/format";
import { useLoad } from "../lib/load";
import { Link, useRouter } from "../lib/router";
import { useSession } from "../lib/session";
import { isLive } from "../lib/states";
import { useTitle } from "../lib/title";
import { Empty } from "../ui/bits";
import { Button, Loading } from "../ui/button";
import { Problem } from "../ui/error";
import { Field } from "../ui/field";
import { Icon } from "../ui/icon";
import { BoxFieldSet, fieldProblems, mapOf, nameProblem, sizesOf, useBoxFields } from "./fields";
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

function Form({ template, org, onMade }: { template: Template; org: string; onMade: (box: string, name: string) => void }) {
  const { boxes } = useBoxes();
  const [name, setName] = useState("");
  const [fields, change] = useBoxFields();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [request] = useState(() => crypto.randomUUID?.() ?? String(Math.random()).slice(2));
  const taken = useMemo(() => [...(boxes?.values() ?? [])].some((b) => b.name === name), [boxes, name]);
  const problems = { ...fieldProblems(fields), name: nameProblem(name, taken) };
  const ready = !Object.values(problems).some(Boolean);
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (!ready || busy) return;
    setBusy(true);
    setError(undefined);
    try {
      const seconds = fields.after ? parseSpan(fields.after) : null;
      const operation = await api.boxes.createBox({
        name,
        template: template.name,
        org,
        requestId: request,
        resources: sizesOf(fields),
        env: mapOf(fields.env),
        ...(seconds || fields.action ? { idle: { action: fields.action, ...(seconds ? { after: durationFromMs(seconds * 1000) } : {}) } } : {}),
      });
      onMade(operation.targetId, operation.targetName);
    } catch (err) {
      setError(err);
      setBusy(false);
    }
  };
  return (
    <form className="create" onSubmit={(e) => void submit(e)} noValidate>
      <Field label="Name" value={name} onChange={(e) => setName(e.target.value)} placeholder="made up for you" hint="You can change it later." problem={problems.name} />
      <details className="more-fields">
        <summary>Size, sleep and variables</summary>
        <BoxFieldSet fields={fields} change={change} problems={problems} size={template.resources} idle={template.idle} unset="as the template says" />
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
          <Problem title={sentence(box.failure?.message || "The box did not start.")}>
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
