// What a cache tells of itself in numbers.

import type { CacheParts } from "./parts";

export interface CacheStats {
  /**
   * Without the null page; total = used + cached + free. `cached`: held by nobody, found by `open({ tokens })`, handed
   * out when none is free. Of the used ones, `shared` have more than one owner and `pinned` are kept by `pin`.
   */
  pages: {
    total: number;
    used: number;
    cached: number;
    free: number;
    shared: number;
    pinned: number;
  };
  /** The most pages ever used at once. */
  highWater: number;
  /** Full pages of opened prompts that were there, and that were not. */
  hits: number;
  misses: number;
  /** Cached pages that were freed. */
  evictions: number;
  /**
   * `held` on the device, page table included; `used` and `cached` of it by such pages. The same of the host, `total`
   * being what hostBytes allows, in whole pages.
   */
  bytes: {
    held: number;
    used: number;
    cached: number;
    host: { total: number; held: number; used: number };
  };
  /** Committed tokens of all open sequences; a shared one counts in each. */
  tokens: number;
  /** Open ones, and how many of them are offloaded. */
  sequences: number;
  offloaded: number;
}

export function cacheStats({ layout, ledger, memory, host }: CacheParts): CacheStats {
  const { total, used, cached, free, shared, pinned, highWater, evictions } = ledger.pool;
  const { tokens, offloaded } = ledger.tally;
  const bytesPerPage = layout.numLayers * layout.pageBytes;
  return {
    pages: { total, used, cached, free, shared, pinned },
    highWater,
    hits: ledger.hits,
    misses: ledger.misses,
    evictions,
    bytes: {
      held: memory.bytes,
      used: used * bytesPerPage,
      cached: cached * bytesPerPage,
      host: {
        total: ledger.host.total * bytesPerPage,
        held: host.bytes,
        used: ledger.host.used * bytesPerPage,
      },
    },
    tokens,
    sequences: ledger.sequences.size,
    offloaded,
  };
}
