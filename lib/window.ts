// The window in tokens, as Mask::row of cuda/mask.h has it: what the host needs of that arithmetic.

/**
 * The first key that the query at `position` sees in its window, sinks apart; 0 where the window
 * has no limit.
 */
export function firstInWindow(position: number, window: number): number {
  return window > 0 ? Math.max(0, position - window + 1) : 0;
}

/**
 * The first position whose window does not reach left of `key`: firstInWindow turned round, for
 * window > 0.
 */
export function firstPositionFrom(key: number, window: number): number {
  return key + window - 1;
}
