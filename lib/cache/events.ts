// What a cache tells those who listen.

import type { Sequence } from "./sequence";

/** Pages are counted, not named. Every listener runs on the next tick, when the verb that caused it is done. */
export interface CacheEvents {
  /** A prompt was found in part: its first `tokens` need no computing. */
  hit: [event: { sequence: Sequence; pages: number; tokens: number }];
  /** Full pages of a prompt were not found. */
  miss: [event: { sequence: Sequence; pages: number }];
  /** Cached pages were freed, to make room or by `evict`. */
  evict: [event: { pages: number }];
  /** A sequence went to the host: so many pages were copied. */
  offload: [event: { sequence: Sequence; pages: number }];
  /** A sequence came back: so many pages were copied, those apart that the cache had kept. */
  restore: [event: { sequence: Sequence; pages: number }];
  /** A sequence was closed, by itself or with its cache. */
  close: [event: { sequence: Sequence }];
}

export type Notify = <K extends keyof CacheEvents>(name: K, event: CacheEvents[K][0]) => void;
