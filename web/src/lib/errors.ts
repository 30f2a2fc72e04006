import { Code, ConnectError } from "@connectrpc/connect";

/** What went wrong, in words for a person: what happened and, where the server knows, what to do. */
export function message(err: unknown): string {
  if (err instanceof ConnectError) {
    // A request that reached nobody has no message of the server's.
    if (err.cause instanceof TypeError || /failed to fetch|networkerror|load failed/i.test(err.rawMessage)) return unreachable;
    if (err.rawMessage) return sentence(err.rawMessage);
  }
  if (err instanceof TypeError && /fetch|network|load failed/i.test(err.message)) return unreachable;
  if (err instanceof Error && err.message) return sentence(err.message);
  return "Something went wrong that nobody expected. Please try again.";
}

const unreachable = "Carrel cannot be reached at the moment. Boxes go on; this page tries again by itself.";

/** With a capital letter at its beginning and an end. Commands in backquotes stay as they are. */
export function sentence(text: string): string {
  const t = text.trim();
  if (!t) return "";
  const first = /^[a-z]/.test(t) ? t[0]!.toUpperCase() + t.slice(1) : t;
  return /[.!?…:`]$/.test(first) ? first : `${first}.`;
}

/** The server says that nobody is signed in. */
export function isSignedOut(err: unknown): boolean {
  return err instanceof ConnectError && err.code === Code.Unauthenticated;
}

/** What was asked for is not there, or not for this user: the API does not tell them apart. */
export function isNotFound(err: unknown): boolean {
  return err instanceof ConnectError && err.code === Code.NotFound;
}

/** It may work if it is tried again as it is. */
export function isPassing(err: unknown): boolean {
  if (!(err instanceof ConnectError)) return err instanceof TypeError;
  return err.code === Code.Unavailable || err.code === Code.DeadlineExceeded || err.code === Code.Unknown || err.code === Code.Internal;
}

/** The request was given up on purpose. */
export function isAborted(err: unknown): boolean {
  return (err instanceof ConnectError && err.code === Code.Canceled) || (err instanceof DOMException && err.name === "AbortError");
}
