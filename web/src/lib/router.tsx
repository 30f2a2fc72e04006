import { type AnchorHTMLAttributes, type ReactNode, createContext, useCallback, useContext, useEffect, useMemo, useState } from "react";

interface Router {
  path: string;
  query: URLSearchParams;
  /** Goes to a path with an optional query. `replace` leaves no entry in the history. */
  go: (to: string, options?: { replace?: boolean }) => void;
}

const RouterContext = createContext<Router | null>(null);

export function RouterProvider({ children }: { children: ReactNode }) {
  const [at, setAt] = useState(() => location.pathname + location.search);
  useEffect(() => {
    const moved = () => setAt(location.pathname + location.search);
    addEventListener("popstate", moved);
    return () => removeEventListener("popstate", moved);
  }, []);
  const go = useCallback((to: string, options?: { replace?: boolean }) => {
    if (to === location.pathname + location.search) return;
    history[options?.replace ? "replaceState" : "pushState"](null, "", to);
    setAt(location.pathname + location.search);
    if (!options?.replace) scrollTo(0, 0);
  }, []);
  const router = useMemo(() => {
    const url = new URL(at, location.origin);
    return { path: url.pathname, query: url.searchParams, go };
  }, [at, go]);
  return <RouterContext value={router}>{children}</RouterContext>;
}

export function useRouter(): Router {
  const router = useContext(RouterContext);
  if (!router) throw new Error("useRouter outside RouterProvider");
  return router;
}

/** The values of a pattern such as "/boxes/:id" in a path; null: it does not fit. A pattern that ends with "/*" takes what is below as well. */
export function match(pattern: string, path: string): Record<string, string> | null {
  const open = pattern.endsWith("/*");
  const want = (open ? pattern.slice(0, -2) : pattern).split("/").filter(Boolean);
  const have = path.split("/").filter(Boolean);
  if (have.length < want.length || (!open && have.length > want.length)) return null;
  const values: Record<string, string> = {};
  for (const [i, part] of want.entries()) {
    const text = have[i]!;
    if (part.startsWith(":")) {
      try {
        values[part.slice(1)] = decodeURIComponent(text);
      } catch {
        return null;
      }
    } else if (part !== text) return null;
  }
  if (open) values["*"] = have.slice(want.length).join("/");
  return values;
}

/** A link within the UI: a plain click stays on the page, everything else (a new tab, say) is the browser's. */
export function Link({ to, onClick, ...rest }: { to: string } & Omit<AnchorHTMLAttributes<HTMLAnchorElement>, "href">) {
  const { go } = useRouter();
  return (
    <a
      href={to}
      onClick={(e) => {
        onClick?.(e);
        if (e.defaultPrevented || e.button !== 0 || e.metaKey || e.ctrlKey || e.shiftKey || e.altKey) return;
        e.preventDefault();
        go(to);
      }}
      {...rest}
    />
  );
}
