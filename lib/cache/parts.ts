// A cache as its verbs see it.

import type { Device } from "../device";
import type { RopeTable } from "../rope";
import type { Tensor } from "../tensor";
import type { CacheMemory } from "./cache-memory";
import type { CacheLayout } from "./config";
import type { HostMemory } from "./host-memory";
import type { Ledger } from "./ledger";

export interface CacheParts {
  readonly device: Device;
  readonly layout: CacheLayout;
  readonly ledger: Ledger;
  readonly memory: CacheMemory;
  readonly host: HostMemory;
  readonly rope: RopeTable | null;
  /** [1 or numLayers, numQHeads] float32 */
  readonly sinkLogits: Tensor | null;
  /** Throws DISPOSED. */
  live(operation: string): void;
}
