import { useMemo } from "react";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { State } from "../gen/carrel/v1/common_pb";
import type { Node } from "../gen/carrel/v1/platform_pb";
import { api } from "../lib/api";
import { isNotFound } from "../lib/errors";
import { bytes, cpus } from "../lib/format";
import { useLoad } from "../lib/load";
import { Link } from "../lib/router";
import { useSession } from "../lib/session";
import { isLive } from "../lib/states";
import { useTitle } from "../lib/title";
import { Ago, Empty, Meter, StateBadge } from "../ui/bits";
import { Loading } from "../ui/button";
import { Problem } from "../ui/error";

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
