import type { ButtonHTMLAttributes, ReactNode } from "react";
import { Icon, type IconName } from "./icon";

interface ButtonProps extends ButtonHTMLAttributes<HTMLButtonElement> {
  kind?: "primary" | "danger" | "plain" | "quiet";
  small?: boolean;
  icon?: IconName;
  /** Something is under way: it cannot be pressed again. */
  busy?: boolean;
}

export function Button({ kind = "plain", small, icon, busy, className = "", children, disabled, ...rest }: ButtonProps) {
  return (
    <button type="button" className={`button ${kind} ${small ? "small" : ""} ${className}`} disabled={disabled || busy} aria-busy={busy || undefined} {...rest}>
      {busy ? <Spinner /> : icon && <Icon name={icon} />}
      {children}
    </button>
  );
}

/** A button that is an icon alone; `label` is its name for everybody. */
export function IconButton({ icon, label, className = "", ...rest }: { icon: IconName; label: string } & ButtonHTMLAttributes<HTMLButtonElement>) {
  return (
    <button type="button" className={`icon-button ${className}`} aria-label={label} title={label} {...rest}>
      <Icon name={icon} />
    </button>
  );
}

export function Spinner() {
  return <span className="spinner" aria-hidden="true" />;
}

/** Stands where something is being loaded. */
export function Loading({ children = "Loading…" }: { children?: ReactNode }) {
  return (
    <div className="loading" role="status">
      <Spinner /> <span>{children}</span>
    </div>
  );
}
