import { memo, type ReactNode, useMemo } from "react";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { Box } from "../gen/carrel/v1/boxes_pb";
import { absolute, when } from "../lib/format";
import { useSince } from "../lib/now";
import { stateText } from "../lib/states";
import { Icon, type IconName } from "./icon";

/** The state of a box in a word and a colour. */
export function StateBadge({ box }: { box: Pick<Box, "state"> }) {
  const { label, tone, moving } = stateText(box.state);
  return (
    <span className={`badge ${tone}`} data-state={label}>
      <span className={`dot ${moving ? "moving" : ""}`} aria-hidden="true" />
      {label}
    </span>
  );
}

/** When, counted from now; the exact time is its title. */
export function Ago({ time }: { time: Timestamp | Date | undefined }) {
  const ms = (time instanceof Date ? time : when(time))?.getTime();
  return ms === undefined ? <span>never</span> : <AgoTime ms={ms} />;
}

const AgoTime = memo(function AgoTime({ ms }: { ms: number }) {
  const at = useMemo(() => new Date(ms), [ms]);
  // It is drawn anew when its words change, not with each second.
  const words = useSince(at);
  return useMemo(
    () => (
      <time dateTime={at.toISOString()} title={absolute(at)}>
        {words}
      </time>
    ),
    [at, words],
  );
});

/** What is shown where there is nothing yet: why, and what to do. */
export function Empty({ icon, title, children }: { icon: IconName; title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <span className="empty-icon">
        <Icon name={icon} size={28} />
      </span>
      <h2>{title}</h2>
      {children}
    </div>
  );
}

/** How much of something is used. With `over` more than there is may be promised, and a full bar is no warning. */
export function Meter({ label, used, of, text, over }: { label: string; used: number; of: number; text: string; over?: boolean }) {
  const share = of > 0 ? Math.min(1, used / of) : 0;
  return (
    <div className="meter">
      <div className="meter-text">
        <span>{label}</span>
        <span>{text}</span>
      </div>
      <div className="meter-bar" role="meter" aria-label={label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(share * 100)} aria-valuetext={text}>
        <span className={share > 0.9 && !over ? "full" : ""} style={{ width: `${share * 100}%` }} />
      </div>
    </div>
  );
}

export function Kbd({ children }: { children: ReactNode }) {
  return <kbd>{children}</kbd>;
}

/** Says to viewers why there is nothing to press. */
export function LookOnly() {
  return (
    <span className="badge off" title="You are a viewer of this organisation. Its owners and admins can make you a member.">
      You may look, not change
    </span>
  );
}
