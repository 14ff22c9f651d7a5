// Which pages a sequence keeps, by its length.

import { firstInWindow } from "../window";

/** What decides it. Tokens. */
export interface Retention {
  readonly pageSize: number;
  /** The widest window of any layer; 0: some layer sees everything, so no page is given back. */
  readonly window: number;
  readonly sinkTokens: number;
  readonly rollbackTokens: number;
}

/** A sequence as far as its pages go. */
export interface Extent {
  readonly length: number;
  readonly prefixLen: number;
  readonly firstLive: number;
}

/** The first page, sinks apart, that a sequence of `length` tokens holds: all later queries' windows begin there. */
export function firstPageHeld(keep: Retention, length: number): number {
  const { pageSize, window, rollbackTokens } = keep;
  // The leftmost query that may still come stands at length - rollbackTokens.
  return Math.floor(firstInWindow(length - rollbackTokens, window) / pageSize);
}
