import { type ReactNode, createContext, useCallback, useContext, useMemo, useState } from "react";
import type { Org, User, WhoAmIResponse } from "../gen/carrel/v1/platform_pb";
import { api } from "./api";
import { useLoad } from "./load";

export interface Session {
  user: User;
  orgs: Org[];
  /** The organisation that is looked at. */
  org: Org;
  /** owner, admin, member or viewer. */
  role: string;
  /** May change boxes; viewers may only look. */
  mayChange: boolean;
  setOrg: (id: string) => void;
}

const SessionContext = createContext<Session | null>(null);
const key = "carrel.org";

export function SessionProvider({ children, fallback }: { children: ReactNode; fallback: (error: unknown, retry: () => void) => ReactNode }) {
  const who = useLoad((signal) => api.users.whoAmI({}, { signal }), []);
  const [chosen, setChosen] = useState(kept);
  const setOrg = useCallback((id: string) => {
    setChosen(id);
    try {
      localStorage.setItem(key, id);
    } catch {
      // It lasts as long as the page, then.
    }
  }, []);
  const session = useMemo(() => (who.data ? sessionOf(who.data, chosen, setOrg) : null), [who.data, chosen, setOrg]);
  if (!session) return fallback(who.data && !session ? new Error("You belong to no organisation yet. Ask whoever runs this Carrel to add you to one.") : who.error, who.reload);
  return <SessionContext value={session}>{children}</SessionContext>;
}

function kept(): string {
  try {
    return localStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

/** Who is signed in, in the chosen organisation or in the first that they belong to; null: they belong to none. */
export function sessionOf(who: WhoAmIResponse, chosen: string, setOrg: (id: string) => void): Session | null {
  const mine = who.orgs.filter((o) => who.memberships.some((m) => m.orgId === o.id));
  const org = mine.find((o) => o.id === chosen) ?? mine[0];
  if (!who.user || !org) return null;
  const role = who.memberships.find((m) => m.orgId === org.id)?.role ?? "viewer";
  return { user: who.user, orgs: mine, org, role, mayChange: role !== "viewer", setOrg };
}

export function useSession(): Session {
  const session = useContext(SessionContext);
  if (!session) throw new Error("useSession outside SessionProvider");
  return session;
}
