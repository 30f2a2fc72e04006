import type { ReactNode } from "react";
import { restText, stateText } from "../lib/states";
import { VerbButton } from "../pages/verbs";
import { Empty } from "../ui/bits";
import type { IconName } from "../ui/icon";
import { useBox } from "./context";

/** Stands in place of a part that needs the box to run: what it is doing, and how to have it run. */
export function Rest({ icon, children }: { icon: IconName; children?: ReactNode }) {
  const { box, mayChange } = useBox();
  return (
    <Empty icon={icon} title={restText(box)}>
      {!stateText(box.state).moving && children}
      {mayChange && <VerbButton box={box} />}
    </Empty>
  );
}
