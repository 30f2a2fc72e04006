import type { Box } from "../gen/carrel/v1/boxes_pb";
import type { Operation } from "../gen/carrel/v1/common_pb";
import { toast, toastError } from "../ui/toast";
import { api } from "./api";
import { type Verb, verbs } from "./states";

/** Asks for a change of a box; the same request sent twice counts once. */
export function ask(verb: Verb, box: Pick<Box, "id">): Promise<Operation> {
  const request = { id: box.id, requestId: crypto.randomUUID?.() ?? String(Math.random()).slice(2) };
  switch (verb) {
    case "start":
      return api.boxes.startBox(request);
    case "resume":
      return api.boxes.resumeBox(request);
    case "pause":
      return api.boxes.pauseBox(request);
    case "stop":
      return api.boxes.stopBox(request);
    case "restart":
      return api.boxes.restartBox(request);
    case "delete":
      return api.boxes.deleteBox(request);
  }
}

/** The same with a message for its user; true: it was taken. */
export async function askAndTell(verb: Verb, box: Pick<Box, "id" | "name">): Promise<boolean> {
  try {
    await ask(verb, box);
    toast(`${verbs[verb].asked} ${box.name}`);
    return true;
  } catch (err) {
    toastError(err);
    return false;
  }
}
