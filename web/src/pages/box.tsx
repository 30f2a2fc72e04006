import { Suspense, lazy, useEffect, useMemo, useRef, useState } from "react";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { State } from "../gen/carrel/v1/common_pb";
import { BoxContext, type BoxContextValue, type Tab, tabs } from "../box/context";
import { askAndTell } from "../lib/actions";
import { api, boxPath, boxSocket } from "../lib/api";
import { useBoxes } from "../lib/boxes";
import { isNotFound, sentence } from "../lib/errors";
import { useLoad } from "../lib/load";
import { Link, useRouter } from "../lib/router";
import { useSession } from "../lib/session";
import { isLive, verbs, verbsOf } from "../lib/states";
import { signedOut } from "../lib/signin";
import { useTitle } from "../lib/title";
import { BoxStream } from "../stream";
import { type Command, useCommands } from "../palette/commands";
import { Ago, Empty, LookOnly, StateBadge } from "../ui/bits";
import { Loading } from "../ui/button";
import { ErrorBoundary, Problem } from "../ui/error";
import { Icon, type IconName } from "../ui/icon";
import { Steps } from "./steps";
import { Change, Sure, VerbButton, VerbMenu } from "./verbs";

const loaders = import.meta.glob<{ default: () => React.ReactNode }>("../box/*/index.tsx");
const parts = Object.fromEntries(tabs.flatMap((tab) => (loaders[`../box/${tab}/index.tsx`] ? [[tab, lazy(loaders[`../box/${tab}/index.tsx`]!)]] : [])));
const present = tabs.filter((tab) => parts[tab]);

const names: Record<Tab, { label: string; icon: IconName }> = {
  notebook: { label: "Notebook", icon: "notebook" },
  files: { label: "Files", icon: "files" },
  editor: { label: "Editor", icon: "edit" },
  terminal: { label: "Terminal", icon: "terminal" },
  ports: { label: "Ports", icon: "ports" },
  activity: { label: "Activity", icon: "activity" },
  events: { label: "Events", icon: "events" },
  logs: { label: "Logs", icon: "logs" },
};
/** The editor is opened from a file, and has no tab of its own. */
const shownTabs = present.filter((t) => t !== "editor");

export default function BoxPage({ id, tab }: { id: string; tab: string | undefined }) {
  const { boxes } = useBoxes();
  const watched = boxes?.get(id);
  // A box of another organisation, or by its name, is not among the watched ones.
  const asked = useLoad((signal) => (watched ? Promise.resolve(undefined) : api.boxes.getBox({ id }, { signal })), [id, !watched && boxes !== undefined], watched ? undefined : 5000);
  const [last, setLast] = useState<Box>();
  useEffect(() => {
    if (watched) setLast(watched);
  }, [watched]);
  const box = watched ?? (asked.data?.state !== State.DELETED ? asked.data : undefined);
  if (box) return <BoxFrame box={box} tab={tab} />;
  if (last && boxes) {
    return (
      <Empty icon="box" title={`${last.name} is deleted`}>
        <Link to="/" className="button primary">
          Go to your boxes
        </Link>
      </Empty>
    );
  }
  if (asked.data?.state === State.DELETED || isNotFound(asked.error)) {
    return (
      <Empty icon="search" title="There is no such box">
        <p>It may be deleted, or it is not yours to see.</p>
        <Link to="/" className="button primary">
          Go to your boxes
        </Link>
      </Empty>
    );
  }
  if (asked.error) return <Problem title="The box cannot be shown" error={asked.error} retry={asked.reload} />;
  return <Loading>Opening the box…</Loading>;
}

function BoxFrame({ box, tab }: { box: Box; tab: string | undefined }) {
  const { go, query } = useRouter();
  const session = useSession();
  const [stream] = useState(() => new BoxStream(box.id, { onSignedOut: signedOut }));
  const live = isLive(box);
  const current = present.find((t) => t === tab) ?? shownTabs[0]!;
  useTitle(`${box.name} – ${names[current].label}`);
  useEffect(() => stream.setLive(live), [stream, live]);
  useEffect(() => () => stream.close(), [stream]);
  const value = useMemo<BoxContextValue>(
    () => ({
      box,
      live,
      mayChange: session.mayChange,
      api,
      stream,
      path: (rest, q) => boxPath(box.id, rest, q),
      socket: (rest, q) => boxSocket(box.id, rest, q),
      open: (to, q) => go(`/boxes/${box.id}/${to}${q ? `?${new URLSearchParams(q)}` : ""}`),
      query,
    }),
    [box, live, session.mayChange, stream, go, query],
  );
  const Part = parts[current]!;
  // Where not all tabs have room, the current one is seen.
  const nav = useRef<HTMLElement>(null);
  useEffect(() => {
    const tab = nav.current?.querySelector<HTMLElement>("[aria-current]");
    if (tab) nav.current!.scrollLeft = tab.offsetLeft - (nav.current!.clientWidth - tab.offsetWidth) / 2;
  }, [current]);
  return (
    <BoxContext value={value}>
      <div className="box-page">
        <BoxHead box={box} />
        <BoxCommands box={box} mayChange={session.mayChange} />
        <nav ref={nav} className="tabs" aria-label="Parts of the box">
          {shownTabs.map((t) => (
            <Link key={t} to={`/boxes/${box.id}/${t}`} aria-current={t === current || (t === "files" && current === "editor") ? "page" : undefined}>
              <Icon name={names[t].icon} size={16} />
              <span>{names[t].label}</span>
            </Link>
          ))}
        </nav>
        <section className="box-part" aria-label={names[current].label}>
          <ErrorBoundary what={names[current].label} resetKey={current}>
            <Suspense fallback={<Loading />}>
              <Part />
            </Suspense>
          </ErrorBoundary>
        </section>
      </div>
    </BoxContext>
  );
}

function BoxHead({ box }: { box: Box }) {
  const { mayChange } = useSession();
  const { go } = useRouter();
  const moving = box.state === State.PROVISIONING || box.state === State.RESUMING;
  return (
    <header className="box-head">
      <div className="box-head-row">
        <Link to="/" className="back" aria-label="Back to your boxes">
          <Icon name="chevron" />
        </Link>
        <h1>{box.name}</h1>
        <span aria-live="polite">
          <StateBadge box={box} />
        </span>
        <p className="durable">
          {moving && !box.durableTime ? null : box.durableTime ? (
            <>
              Last kept safe <Ago time={box.durableTime} />
            </>
          ) : (
            "Not kept safe yet: pause or stop it to do so"
          )}
        </p>
        {!mayChange && <LookOnly />}
        {mayChange && (
          <div className="box-head-verbs">
            <VerbButton box={box} small />
            <VerbMenu box={box} onDeleted={() => go("/")} />
          </div>
        )}
      </div>
      {box.failure?.message && (
        <Problem title={sentence(box.failure.message)}>
          {box.failure.nextStep && <p>{box.failure.nextStep}</p>}
          {box.failure.transient && (
            <p>
              Next try: {box.failure.retryTime ? <Ago time={box.failure.retryTime} /> : "soon"}.
            </p>
          )}
        </Problem>
      )}
      {box.notice && <p className="notice">{box.notice}</p>}
      {moving && box.phases.length > 0 && <Steps box={box} />}
    </header>
  );
}

function BoxCommands({ box, mayChange }: { box: Box; mayChange: boolean }) {
  const { go } = useRouter();
  const [sure, setSure] = useState(false);
  const [changing, setChanging] = useState(false);
  const possible = mayChange ? verbsOf(box).join() : "";
  const { id, name } = box;
  const commands = useMemo<Command[]>(
    () => [
      ...shownTabs.map((t, i): Command => ({ id: `tab-${t}`, title: names[t].label, group: "This box", icon: names[t].icon, keys: String(i + 1), run: () => go(`/boxes/${id}/${t}`) })),
      ...(possible ? (possible.split(",") as (keyof typeof verbs)[]) : []).map(
        (verb): Command => ({ id: `verb-${verb}`, title: `${verbs[verb].label} ${name}`, words: verbs[verb].effect, group: "This box", run: () => (verb === "delete" ? setSure(true) : void askAndTell(verb, { id, name })) }),
      ),
      ...(possible ? [{ id: "change", title: `Change ${name}`, words: "rename size memory processors idle sleep variables", group: "This box", icon: "edit", run: () => setChanging(true) } satisfies Command] : []),
    ],
    [id, name, possible, go],
  );
  useCommands(commands);
  if (sure) return <Sure verb="delete" box={box} onClose={() => setSure(false)} onDone={() => go("/")} />;
  return changing ? (
    <Suspense>
      <Change box={box} onClose={() => setChanging(false)} />
    </Suspense>
  ) : null;
}
