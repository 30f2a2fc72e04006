// Signing in and out are pages of the gateway: an API token is typed there and never comes near a script.

let leaving = false;

/** Goes to the sign-in page and, after it, back to here. */
export function signedOut(): void {
  if (leaving) return;
  leaving = true;
  location.assign(`/signin?${new URLSearchParams({ next: location.pathname + location.search })}`);
}
