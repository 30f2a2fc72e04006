import { type FormEvent, useMemo, useState } from "react";
import type { Prebuild, Template } from "../gen/carrel/v1/catalog_pb";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { State } from "../gen/carrel/v1/common_pb";
import type { Node } from "../gen/carrel/v1/platform_pb";
import { api } from "../lib/api";
import { isNotFound } from "../lib/errors";
import { bytes, cpus, durationMs, span } from "../lib/format";
import { useLoad } from "../lib/load";
import { Link } from "../lib/router";
import { useSession } from "../lib/session";
import { isLive } from "../lib/states";
import { useTitle } from "../lib/title";
import { Ago, Empty, Meter, StateBadge } from "../ui/bits";
import { Button, Loading } from "../ui/button";
import { Problem } from "../ui/error";
import { toast, toastError } from "../ui/toast";

/** Every box that the operator may see, of all organisations. */
async function allBoxes(signal: AbortSignal): Promise<Box[]> {
  const orgs = (await api.orgs.listOrgs({}, { signal })).orgs;
  const lists = await Promise.all(
    orgs.map(async (org) => {
      const boxes: Box[] = [];
      let pageToken = "";
      do {
        const page = await api.boxes.listBoxes({ org: org.id, pageSize: 500, pageToken }, { signal });
        boxes.push(...page.boxes);
        pageToken = page.nextPageToken;
      } while (pageToken);
      return boxes;
    }),
  );
  return lists.flat();
}

export default function NodesPage() {
  useTitle("Machines");
  const { user } = useSession();
  const nodes = useLoad((signal) => api.nodes.listNodes({}, { signal }), [], 4000);
  const boxes = useLoad(allBoxes, [], 4000);
  const failed = useMemo(() => boxes.data?.filter((b) => b.state === State.FAILED) ?? [], [boxes.data]);
  if (!user.operator || isNotFound(nodes.error)) return <Empty icon="search" title="There is no such page" />;
  const list = nodes.data?.nodes.filter((n) => n.state !== "removed") ?? [];
  return (
    <div className="page">
      <header className="page-head">
        <h1>Machines</h1>
      </header>
      {nodes.error !== undefined && <Problem title="The machines cannot be shown" error={nodes.error} retry={nodes.reload} />}
      {nodes.loading && !nodes.data && <Loading>Looking for machines…</Loading>}
      {nodes.data && list.length === 0 && (
        <Empty icon="node" title="No machine yet">
          <p>Boxes run on machines that joined. On one computer, `make up` makes it the first.</p>
        </Empty>
      )}
      {boxes.error !== undefined && <Problem title="What runs where cannot be shown" error={boxes.error} retry={boxes.reload} />}
      {failed.length > 0 && (
        <section className="card" aria-labelledby="failed">
          <h2 id="failed">
            {failed.length} failed {failed.length === 1 ? "box" : "boxes"}
          </h2>
          <ul className="plain-list">
            {failed.map((b) => (
              <li key={b.id}>
                <Link to={`/boxes/${b.id}`}>{b.name}</Link>
                <p>
                  {b.failure?.message || "No reason is known."} {b.failure?.nextStep}
                </p>
              </li>
            ))}
          </ul>
        </section>
      )}
      {list.map((n) => (
        <NodeCard key={n.id} node={n} boxes={boxes.data?.filter((b) => b.nodeId === n.id && b.state !== State.DELETED) ?? []} />
      ))}
      <Prepared />
    </div>
  );
}

function NodeCard({ node, boxes }: { node: Node; boxes: Box[] }) {
  const { capacity: all, used } = node;
  return (
    <section className="card node" aria-labelledby={`node-${node.id}`}>
      <header className="node-head">
        <h2 id={`node-${node.id}`}>{node.name}</h2>
        <span className={`badge ${node.state === "online" ? "good" : "bad"}`}>
          <span className="dot" aria-hidden="true" />
          {node.state === "online" ? "Online" : "Offline"}
        </span>
        {!node.schedulable && <span className="badge off">Takes no new boxes</span>}
        <span className="soft">
          seen <Ago time={node.lastSeenTime} />
        </span>
      </header>
      <div className="meters">
        <Meter label="Processors" used={Number(used?.cpuMillis ?? 0)} of={Number(all?.cpuMillis ?? 0)} text={`${cpus(used?.cpuMillis ?? 0)} promised, ${cpus(all?.cpuMillis ?? 0)} there`} over />
        <Meter label="Memory" used={Number(used?.memoryBytes ?? 0)} of={Number(all?.memoryBytes ?? 0)} text={`${bytes(used?.memoryBytes ?? 0)} of ${bytes(all?.memoryBytes ?? 0)} promised`} />
        <Meter label="Disk" used={Number(node.diskUsedBytes)} of={Number(node.diskBytes)} text={`${bytes(node.diskUsedBytes)} of ${bytes(node.diskBytes)} used`} />
      </div>
      {boxes.length > 0 ? (
        <div className="scroll-x" tabIndex={0} role="group" aria-label={`Boxes on ${node.name}`}>
          <table>
            <thead>
              <tr>
                <th scope="col">Box</th>
                <th scope="col">State</th>
                <th scope="col">Size</th>
                <th scope="col">Since</th>
              </tr>
            </thead>
            <tbody>
              {boxes
                .toSorted((a, b) => Number(isLive(b)) - Number(isLive(a)) || a.name.localeCompare(b.name))
                .map((b) => (
                  <tr key={b.id}>
                    <td>
                      <Link to={`/boxes/${b.id}`}>{b.name}</Link>
                    </td>
                    <td>
                      <StateBadge box={b} />
                    </td>
                    <td>
                      {cpus(b.resources?.cpuMillis ?? 0)}, {bytes(b.resources?.memoryBytes ?? 0)}
                    </td>
                    <td>
                      <Ago time={b.stateTime} />
                    </td>
                  </tr>
                ))}
            </tbody>
          </table>
        </div>
      ) : (
        <p className="soft">Nothing runs here.</p>
      )}
      {node.limitations.length > 0 && (
        <details>
          <summary>What this machine cannot do ({node.limitations.length})</summary>
          <ul>
            {node.limitations.map((l) => (
              <li key={l}>{l}</li>
            ))}
          </ul>
        </details>
      )}
      {node.quarantinedRuns.length > 0 && <Problem title={`${node.quarantinedRuns.length} runs were found that nobody knows`}>They are left alone until somebody decides: {node.quarantinedRuns.join(", ")}</Problem>}
      <p className="soft small">
        Carrel {node.version}, runtime {node.runtimeVersion}, kernel {node.kernel}
      </p>
    </section>
  );
}

/** What is prepared of templates, so that new boxes begin as clones or are there at once. */
function Prepared() {
  const templates = useLoad((signal) => api.templates.listTemplates({ pageSize: 500 }, { signal }), [], 4000);
  const prebuilds = useLoad((signal) => api.templates.listPrebuilds({}, { signal }), [], 4000);
  const list = templates.data?.templates.filter((t) => t.prebuild) ?? [];
  const error = templates.error ?? prebuilds.error;
  if (error === undefined && list.length === 0) return null;
  return (
    <section className="card" aria-labelledby="prepared">
      <h2 id="prepared">Prepared templates</h2>
      {error !== undefined && <Problem title="What is prepared cannot be shown" error={error} retry={prebuilds.reload} />}
      <ul className="items">
        {list.map((t) => (
          <PreparedTemplate key={t.id} template={t} prebuilds={prebuilds.data?.prebuilds.filter((p) => p.orgId === t.orgId && p.template.split("@")[0] === t.name) ?? []} changed={templates.reload} />
        ))}
      </ul>
    </section>
  );
}

const prebuildStates: Record<string, { label: string; tone: string }> = {
  building: { label: "Being made", tone: "busy" },
  ready: { label: "Ready", tone: "good" },
  replacing: { label: "Ready, being made anew", tone: "good" },
  failed: { label: "Failed", tone: "bad" },
};

function PreparedTemplate({ template: t, prebuilds, changed }: { template: Template; prebuilds: Prebuild[]; changed: () => void }) {
  const [size, setSize] = useState(String(t.poolSize));
  const [busy, setBusy] = useState(false);
  const good = /^\d+$/.test(size.trim()) && Number(size) <= 100;
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (!good) return;
    setBusy(true);
    try {
      const now = await api.templates.updateTemplatePool({ name: t.name, org: t.orgId, size: Number(size) });
      toast(now.poolSize === 0 ? `No box of ${t.name} waits any more` : `${now.poolSize} prepared ${now.poolSize === 1 ? "box" : "boxes"} of ${t.name} will wait to be taken`);
      changed();
    } catch (err) {
      toastError(err);
    } finally {
      setBusy(false);
    }
  };
  return (
    <li className="item prepared">
      <div>
        <strong>{t.name}</strong>
        {prebuilds.length === 0 && <p className="soft small">Nothing is prepared yet.</p>}
        {prebuilds.map((p) => (
          <p key={`${p.nodeId} ${p.template} ${p.state}`} className="soft small">
            <span className={`badge ${prebuildStates[p.state]?.tone ?? "off"}`}>{prebuildStates[p.state]?.label ?? p.state}</span> {p.template} on {p.nodeName}
            {p.sizeBytes > 0n && `, ${bytes(p.sizeBytes)}`}
            {p.readyTime && (
              <>
                ; made in {span(durationMs(p.buildTime))}, <Ago time={p.readyTime} />
              </>
            )}
            {p.failure?.message && `: ${p.failure.message}`}
          </p>
        ))}
      </div>
      <form className="pool" onSubmit={(e) => void submit(e)}>
        <label className="small">
          Waiting boxes <span className="soft">({t.poolReady} ready)</span>
          <input inputMode="numeric" value={size} aria-invalid={good ? undefined : true} title="From 0 to 100. Each takes the memory of a box that runs." onChange={(e) => setSize(e.target.value)} />
        </label>
        <Button type="submit" small busy={busy} disabled={!good || Number(size) === t.poolSize}>
          Keep ready
        </Button>
      </form>
    </li>
  );
}
