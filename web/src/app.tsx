import { Suspense, lazy, useEffect, useMemo, useRef, useState } from "react";
import { BoxesProvider, useBoxes } from "./lib/boxes";
import { Link, match, useRouter } from "./lib/router";
import { SessionProvider, useSession } from "./lib/session";
import { type Theme, setTheme, useTheme } from "./lib/theme";
import { BoxesPage } from "./pages/boxes";
import { type Command, useCommands } from "./palette/commands";
import { useKeys } from "./palette/keys";
import { Palette, ShortcutHelp } from "./palette/palette";
import { IconButton, Loading } from "./ui/button";
import { ErrorBoundary, Problem } from "./ui/error";
import { Empty } from "./ui/bits";
import { Icon } from "./ui/icon";
import { Menu, type MenuItem } from "./ui/menu";
import { Toasts } from "./ui/toast";

const CreatePage = lazy(() => import("./pages/create"));
const BoxPage = lazy(() => import("./pages/box"));
const NodesPage = lazy(() => import("./pages/nodes"));
const AccountPage = lazy(() => import("./pages/account"));

export function App() {
  return (
    <>
      <SessionProvider fallback={(error, retry) => <Waiting error={error} retry={retry} />}>
        <Shell />
      </SessionProvider>
      <Toasts />
    </>
  );
}

function Waiting({ error, retry }: { error: unknown; retry: () => void }) {
  return <div className="waiting">{error ? <Problem title="Carrel is not ready for you" error={error} retry={retry} /> : <Loading>Opening Carrel…</Loading>}</div>;
}

function Shell() {
  const session = useSession();
  const router = useRouter();
  const [open, setOpen] = useState<"palette" | "help" | null>(null);
  const main = useRef<HTMLElement>(null);
  const page = pageOf(router.path);
  useKeys();
  useGlobalCommands(setOpen);
  // A new page is told to those who hear it, and is where their keyboard goes on.
  const before = useRef(page.key);
  useEffect(() => {
    if (before.current !== page.key) main.current?.focus({ preventScroll: true });
    before.current = page.key;
  }, [page.key]);
  return (
    <BoxesProvider org={session.org.id}>
      <a className="skip" href="#main">
        Skip to the page
      </a>
      <TopBar openPalette={() => setOpen("palette")} openHelp={() => setOpen("help")} />
      <LinkState />
      <main id="main" tabIndex={-1} ref={main} className={page.full ? "main full" : "main"}>
        <ErrorBoundary what="This page" resetKey={router.path}>
          <Suspense fallback={<Loading />}>{page.element}</Suspense>
        </ErrorBoundary>
      </main>
      <BoxCommands />
      {open === "palette" && <Palette onClose={() => setOpen(null)} />}
      {open === "help" && <ShortcutHelp onClose={() => setOpen(null)} />}
    </BoxesProvider>
  );
}

function pageOf(path: string) {
  if (path === "/") return { key: "boxes", element: <BoxesPage /> };
  if (path === "/new") return { key: "new", element: <CreatePage /> };
  if (path === "/nodes") return { key: "nodes", element: <NodesPage /> };
  if (path === "/account") return { key: "account", element: <AccountPage /> };
  const box = match("/boxes/:id/*", path);
  if (box) return { key: `box-${box.id}`, full: true, element: <BoxPage key={box.id} id={box.id!} tab={box["*"] || undefined} /> };
  return {
    key: "none",
    element: (
      <Empty icon="search" title="There is no such page">
        <p>The address may be mistyped, or what was here is gone.</p>
        <Link to="/" className="button primary">
          Go to your boxes
        </Link>
      </Empty>
    ),
  };
}

function TopBar({ openPalette, openHelp }: { openPalette: () => void; openHelp: () => void }) {
  const { path } = useRouter();
  const session = useSession();
  const nav = [
    { to: "/", label: "Boxes", here: path === "/" || path.startsWith("/boxes/") || path === "/new" },
    ...(session.user.operator ? [{ to: "/nodes", label: "Machines", here: path === "/nodes" }] : []),
  ];
  return (
    <header className="topbar">
      <Link to="/" className="brand" aria-label="Carrel: your boxes">
        <img src="/favicon.svg" alt="" width="26" height="26" />
        <span>Carrel</span>
      </Link>
      <nav aria-label="Pages">
        {nav.map((n) => (
          <Link key={n.to} to={n.to} aria-current={n.here ? "page" : undefined}>
            {n.label}
          </Link>
        ))}
      </nav>
      <span className="grow" />
      <button type="button" className="find" onClick={openPalette}>
        <Icon name="search" size={16} />
        <span>Find and do</span>
        <kbd>{/mac|iphone|ipad/i.test(navigator.platform) ? "⌘K" : "Ctrl K"}</kbd>
      </button>
      <IconButton icon="help" label="Keyboard shortcuts" className="wide-only" onClick={openHelp} />
      <UserMenu />
    </header>
  );
}

function UserMenu() {
  const session = useSession();
  const theme = useTheme();
  const { go } = useRouter();
  const signOut = useRef<HTMLFormElement>(null);
  const themes: [Theme, string][] = [
    ["system", "Colours of this device"],
    ["light", "Light"],
    ["dark", "Dark"],
  ];
  const items: MenuItem[] = [
    { label: "Account", hint: "Tokens and SSH keys", icon: "user", act: () => go("/account") },
    ...(session.orgs.length > 1 ? session.orgs.map((o): MenuItem => ({ label: o.name, checked: o.id === session.org.id, act: () => (session.setOrg(o.id), go("/")) })) : []),
    ...themes.map(([value, label]): MenuItem => ({ label, checked: theme === value, act: () => setTheme(value) })),
    { label: "Sign out", icon: "external", act: () => signOut.current?.requestSubmit() },
  ];
  return (
    <>
      <Menu label={`Signed in as ${session.user.name}`} className="avatar" items={items}>
        <span aria-hidden="true">{session.user.name.slice(0, 1).toUpperCase()}</span>
      </Menu>
      <form ref={signOut} method="post" action="/signout" hidden />
    </>
  );
}

/** Says when what is shown may be old. */
function LinkState() {
  const { link, boxes } = useBoxes();
  return (
    <div role="status" aria-live="polite" className="link-state">
      {link === "lost" && boxes && <p>The connection is lost. What you see may be old; Carrel reconnects by itself, and boxes go on meanwhile.</p>}
    </div>
  );
}

function useGlobalCommands(setOpen: (open: "palette" | "help" | null) => void): void {
  const { go } = useRouter();
  const { user } = useSession();
  const commands = useMemo<Command[]>(
    () => [
      { id: "boxes", title: "Your boxes", group: "Go to", icon: "box", keys: "G B", run: () => go("/") },
      { id: "new", title: "New box", group: "Go to", words: "create make template", icon: "plus", keys: "G N", run: () => go("/new") },
      ...(user.operator ? [{ id: "nodes", title: "Machines", group: "Go to", words: "nodes operator capacity", icon: "node", keys: "G M", run: () => go("/nodes") } as const] : []),
      { id: "account", title: "Account", group: "Go to", words: "tokens ssh keys", icon: "user", keys: "G A", run: () => go("/account") },
      { id: "palette", title: "Find and do", group: "Everywhere", icon: "search", keys: "Mod+K", run: () => setOpen("palette") },
      { id: "help", title: "Keyboard shortcuts", group: "Everywhere", icon: "help", keys: "?", run: () => setOpen("help") },
      { id: "light", title: "Light colours", group: "Appearance", words: "theme", icon: "sun", run: () => setTheme("light") },
      { id: "dark", title: "Dark colours", group: "Appearance", words: "theme", icon: "moon", run: () => setTheme("dark") },
      { id: "system", title: "Colours of this device", group: "Appearance", words: "theme system", icon: "sun", run: () => setTheme("system") },
    ],
    [go, user.operator, setOpen],
  );
  useCommands(commands);
}

/** Every box can be gone to from everywhere. */
function BoxCommands() {
  const { boxes } = useBoxes();
  const { go } = useRouter();
  const commands = useMemo<Command[]>(() => [...(boxes?.values() ?? [])].map((b) => ({ id: `box-${b.id}`, title: b.name, words: `${b.template} box open`, group: "Boxes", icon: "box" as const, run: () => go(`/boxes/${b.id}`) })), [boxes, go]);
  useCommands(commands);
  return null;
}

