import { checkFloats, checkInt, checkInternal, checkOptions, INTERNAL } from "../check";
import type { Device } from "../device";
import { failure, invalid } from "../errors";
import { tensorArgument } from "../ops/arguments";
import { RopeTable, ropeArgument } from "../rope";
import { Tensor } from "../tensor";
import { CacheMemory } from "./cache-memory";
import { type CacheLayout, cacheLayout, checkConfig, type KvCacheConfig } from "./config";
import { Ledger, type Request, type Shortage } from "./ledger";
import { checkRequests, outOfPages } from "./requests";
import type { Sequence } from "./sequence";
import { type CacheParts, Step } from "./step";

export { bytesPerToken, type CacheLayout, type KvCacheConfig } from "./config";
export type { Sequence } from "./sequence";
export type { Step } from "./step";

export interface OpenOptions {
  /** The first n positions see each other both ways (prefix-LM); they must be planned in one step. Default 0. */
  prefixLen?: number;
}

export interface CacheStats {
  /** Without the null page. `shared`: with more than one owner. */
  pages: { total: number; used: number; free: number; shared: number };
  /** The most pages ever used at once. */
  highWater: number;
  /** `held` on the device, page table included; `used` of it by pages in use. */
  bytes: { held: number; used: number };
  /** Committed tokens of all open sequences; a shared one counts in each. */
  tokens: number;
  /** Open ones. */
  sequences: number;
}

/**
 * Keys and values of many sequences, in pages that it owns. Made by `device.createCache`. docs/cache.md draws the life
 * of a page and of a step.
 */
export class KvCache implements Disposable {
  readonly device: Device;
  /** The configuration with every default and size filled in. */
  readonly layout: CacheLayout;
  readonly #ledger: Ledger;
  readonly #memory: CacheMemory;
  readonly #rope: RopeTable | null;
  readonly #owned: { dispose(): void }[] = [];
  readonly #sinkLogits: Tensor | null;
  readonly #parts: CacheParts;
  /** Weak: a forgotten step gives its buffers back when it is collected. */
  readonly #steps: Set<WeakRef<Step>> = new Set();
  readonly #collected: FinalizationRegistry<WeakRef<Step>> = new FinalizationRegistry((step) =>
    this.#steps.delete(step),
  );
  #disposed = false;

  private constructor(key: symbol, device: Device, config: KvCacheConfig) {
    checkInternal(key, "KvCache", "device.createCache(config)");
    const operation = "Device.createCache";
    device.notCapturing(operation);
    const given = checkConfig(operation, config);
    const { free, cached } = device.memory();
    const layout = Object.freeze(cacheLayout(operation, given, free + cached));
    this.device = device;
    this.layout = layout;
    try {
      this.#rope = this.#ropeTable(operation, given.rope);
      this.#sinkLogits = ownedSinkLogits(operation, device, layout, given.sinkLogits);
      if (this.#sinkLogits !== null) this.#owned.push(this.#sinkLogits);
      this.#memory = new CacheMemory(operation, device, layout, free + cached);
      this.#owned.push(this.#memory);
    } catch (error) {
      for (const owned of this.#owned) owned.dispose();
      throw error;
    }
    this.#ledger = new Ledger(layout, this.#memory);
    this.#parts = {
      device,
      layout,
      ledger: this.#ledger,
      memory: this.#memory,
      rope: this.#rope,
      sinkLogits: this.#sinkLogits,
      live: (where) => this.#live(where),
    };
  }

  /** @internal Behind `device.createCache`. */
  static make(device: Device, config: KvCacheConfig): KvCache {
    return new KvCache(INTERNAL, device, config);
  }

  get disposed(): boolean {
    return this.#disposed || this.device.disposed;
  }

  /** A new, empty sequence. Throws BUSY where `maxSequences` are open. */
  open(options?: OpenOptions): Sequence {
    const operation = "cache.open";
    this.#live(operation);
    const { prefixLen = 0 } = checkOptions(operation, options, ["prefixLen"]);
    return this.#ledger.open(checkInt(operation, "prefixLen", prefixLen));
  }

  /**
   * Reserves the pages of `tokens` more for each sequence: all of them, or it throws and nothing has changed.
   * Throws OUT_OF_PAGES; BUSY for a sequence in an open step, and inside `device.capture`; INVALID_ARGUMENT for a
   * sequence named twice, of another cache, or beyond `maxSeqLen`; DISPOSED.
   */
  plan(requests: readonly (readonly [Sequence, number])[]): Step {
    const operation = "cache.plan";
    const step = this.#plan(operation, requests);
    if (step instanceof Step) return step;
    throw outOfPages(operation, this.layout, step);
  }

  /** As `plan`, but null where pages are short. */
  tryPlan(requests: readonly (readonly [Sequence, number])[]): Step | null {
    const step = this.#plan("cache.tryPlan", requests);
    return step instanceof Step ? step : null;
  }

  stats(): CacheStats {
    this.#live("cache.stats");
    const { total, used, free, shared, highWater } = this.#ledger.pool;
    const { numLayers, pageBytes } = this.layout;
    return {
      pages: { total, used, free, shared },
      highWater,
      bytes: { held: this.#memory.bytes, used: used * numLayers * pageBytes },
      tokens: this.#ledger.tokens,
      sequences: this.#ledger.sequences.size,
    };
  }

  /** Ends the cache: its steps and sequences are dead at once, its memory goes behind the queue. Idempotent. */
  dispose(): void {
    if (this.#disposed) return;
    for (const step of this.#steps) step.deref()?.dispose();
    this.#steps.clear();
    this.#disposed = true;
    this.#ledger.closeAll();
    for (const owned of this.#owned) owned.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #plan(operation: string, given: unknown): Step | Shortage {
    this.#live(operation);
    this.device.notCapturing(operation);
    const requests: Request[] = checkRequests(operation, given);
    const step = Step.plan(operation, this.#parts, requests);
    if (step instanceof Step) {
      const weak = new WeakRef(step);
      this.#steps.add(weak);
      this.#collected.register(step, weak);
    }
    return step;
  }

  /** The caller's table, or the cache's own from a configuration. */
  #ropeTable(operation: string, given: KvCacheConfig["rope"]): RopeTable | null {
    if (given === undefined) return null;
    if (RopeTable.isRopeTable(given)) {
      return ropeArgument(operation, "rope", given, this.device, this.layout.headDim);
    }
    const table = this.device.rope(given);
    this.#owned.push(table);
    return ropeArgument(operation, "rope", table, this.device, this.layout.headDim);
  }

  #live(operation: string): void {
    this.device.live(operation);
    if (!this.#disposed) return;
    throw failure("DISPOSED", operation, "the cache has been disposed", "create a new one");
  }
}

/** A copy of the sink logits that the cache keeps, [1 or numLayers, numQHeads] float32. */
function ownedSinkLogits(
  operation: string,
  device: Device,
  layout: CacheLayout,
  given: KvCacheConfig["sinkLogits"],
): Tensor | null {
  if (given === undefined) return null;
  const { numLayers } = layout;
  const heads = layout.numQHeads!;
  let copy: Tensor;
  if (Tensor.isTensor(given)) {
    const shape = given.shape.length === 1 ? [heads] : [numLayers, heads];
    const like = { device, dtype: "float32" } as const;
    const flat = tensorArgument(operation, "sinkLogits", given, shape, like).clone();
    copy = flat.reshape([flat.size / heads, heads]);
    flat.dispose();
  } else {
    const values = checkFloats(operation, "sinkLogits", given);
    if (values.length !== heads && values.length !== numLayers * heads) {
      throw invalid(
        operation,
        `sinkLogits expected ${heads} values, or ${numLayers * heads} for all layers, got ${values.length}`,
      );
    }
    copy = device.tensor(values, [values.length / heads, heads]);
  }
  device.untrack(copy); // a running tidy() leaves the cache's own memory alone
  return copy;
}
