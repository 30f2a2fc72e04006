// How long to wait before the next try to connect.

const first = 300;
const most = 30_000;
const hiddenLeast = 15_000;

/**
 * Milliseconds before try number attempt (0 is the first after a break): doubling from 0.3 s to 30 s, of which a
 * random half is taken off so that a thousand pages do not come back at once. A page that nobody sees waits at least
 * 15 s. random is in [0, 1).
 */
export function delay(attempt: number, random: number, hidden: boolean): number {
  const whole = Math.min(most, first * 2 ** Math.min(attempt, 16));
  const wait = Math.round(whole * (1 - random / 2));
  return hidden ? Math.max(hiddenLeast, wait) : wait;
}
