import { EventEmitter } from "node:events";
import { checkFloats, checkInt, checkInternal, checkOptions, INT32_MAX, INTERNAL } from "../check";
import type { Device } from "../device";
import { failure, invalid } from "../errors";
import { tensorArgument } from "../ops/arguments";
import { RopeTable, ropeArgument } from "../rope";
import { checkSignal } from "../signal";
import { Tensor } from "../tensor";
import { CacheMemory } from "./cache-memory";
import { type CacheLayout, cacheLayout, checkConfig, type KvCacheConfig } from "./config";
import type { CacheEvents, Notify } from "./events";
import { HostMemory } from "./host-memory";
import { drawPages } from "./inspect";
import { Ledger, type Request, type Shortage } from "./ledger";
import { type MoveOptions, offloadSequence, restoreSequence } from "./offload";
import { checkOpening, checkText, expectShort, type OpenOptions } from "./open-options";
import type { CacheParts } from "./parts";
import { checkRequests, checkSequence, outOfPages } from "./requests";
import type { SavedSource } from "./saved-places";
import type { Sequence } from "./sequence";
import { type CacheStats, cacheStats } from "./stats";
import { Step } from "./step";
import type { Text, TokenIds } from "./text";
import {
  checkModel,
  checkSaving,
  type LoadOptions,
  loadSequence,
  type SaveOptions,
  type SaveToFile,
  type SaveToStream,
  saveSequence,
} from "./transfer";

export { bytesPerToken, type CacheLayout, type KvCacheConfig } from "./config";
export type { CacheEvents } from "./events";
export type { MoveOptions } from "./offload";
export type { OpenOptions } from "./open-options";
export type { SavedSource } from "./saved-places";
export type { Sequence } from "./sequence";
export type { CacheStats } from "./stats";
export type { Step } from "./step";
export type { CommitOptions, TokenIds } from "./text";
export type { LoadOptions, SaveOptions, SaveToFile, SaveToStream } from "./transfer";

/**
 * Keys and values of many sequences, in pages that it owns. Made by `device.createCache`. docs/cache.md draws the life
 * of a page and of a step.
 */
export class KvCache extends EventEmitter<CacheEvents> implements Disposable {
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
    super();
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
    const host = new HostMemory(device, layout, this.#memory);
    this.#owned.push(host);
    this.#ledger = new Ledger(layout, this.#memory, this.#notify);
    this.#parts = {
      device,
      layout,
      ledger: this.#ledger,
      memory: this.#memory,
      host,
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

  /**
   * A new sequence: empty, or with `tokens` what the cache has of them, as `match` tells. Its tokens from `length` on
   * are to be planned. Throws BUSY where `maxSequences` are open; INVALID_ARGUMENT for tokens of more than 1024 pages,
   * for which there is `openAsync`.
   */
  open(options?: OpenOptions): Sequence {
    const operation = "cache.open";
    this.#live(operation);
    const { prefixLen, text, priority } = checkOpening(operation, this.layout, options);
    expectShort(operation, text);
    this.#live(operation);
    return this.#ledger.open(operation, prefixLen, text, priority);
  }

  /** As `open`, for tokens of any length: the event loop runs on while they are hashed. */
  async openAsync(options?: OpenOptions): Promise<Sequence> {
    const operation = "cache.openAsync";
    this.#live(operation);
    const { prefixLen, text, priority } = checkOpening(operation, this.layout, options);
    if (text !== null) await this.#hashAhead(text);
    this.#live(operation);
    return this.#ledger.open(operation, prefixLen, text, priority);
  }

  /**
   * Tokens that `open({ tokens, salt })` would find: full pages, and less than all tokens. Changes nothing, and counts
   * neither as hit nor as miss. Throws INVALID_ARGUMENT for tokens of more than 1024 pages.
   */
  match(tokens: TokenIds, salt?: string): number {
    const operation = "cache.match";
    this.#live(operation);
    const text = checkText(operation, this.layout, tokens, salt);
    expectShort(operation, text);
    return this.#ledger.match(text) * this.layout.pageSize;
  }

  /** As `match`, for tokens of any length. */
  async matchAsync(tokens: TokenIds, salt?: string): Promise<number> {
    const operation = "cache.matchAsync";
    this.#live(operation);
    const text = checkText(operation, this.layout, tokens, salt);
    await this.#hashAhead(text);
    this.#live(operation);
    return this.#ledger.match(text) * this.layout.pageSize;
  }

  /**
   * Frees cached pages now instead of when a plan needs them: `count` of them, or all. Low priorities go first, then
   * what was let go longest ago, the end of a text before its beginning. Pinned pages stay.
   *
   * @returns how many.
   */
  evict(count?: number): number {
    const operation = "cache.evict";
    this.#live(operation);
    return this.#ledger.evict(
      count === undefined ? INT32_MAX : checkInt(operation, "count", count),
    );
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

  /**
   * Moves the sequence's pages to host memory and gives them back. Pages that others hold, or that are pinned, stay for
   * them; full pages of told tokens stay cached until they are evicted. The sequence is BUSY meanwhile, then
   * `offloaded`: it keeps its tokens and its place, and waits for `restore` or `close`. Throws OUT_OF_MEMORY beyond
   * `hostBytes`, BUSY, ABORTED, DISPOSED, INVALID_ARGUMENT; then everything is as it was.
   *
   * @returns how many pages were copied.
   */
  async offload(sequence: Sequence, options?: MoveOptions): Promise<number> {
    const operation = "cache.offload";
    const given = this.#movable(operation, sequence);
    const pages = await offloadSequence(operation, this.#parts, given, options);
    this.#notify("offload", { sequence: given, pages });
    return pages;
  }

  /**
   * Brings an offloaded sequence back: it goes on where it was. Full pages of its text that the cache still has are
   * shared again, the others copied. Throws OUT_OF_PAGES, BUSY, ABORTED, DISPOSED, INVALID_ARGUMENT; then it is still
   * offloaded and no page has changed hands.
   *
   * @returns how many pages were copied.
   */
  async restore(sequence: Sequence, options?: MoveOptions): Promise<number> {
    const operation = "cache.restore";
    const given = this.#movable(operation, sequence);
    const pages = await restoreSequence(operation, this.#parts, given, options);
    this.#notify("restore", { sequence: given, pages });
    return pages;
  }

  /**
   * The sequence as bytes: keys, values and told tokens, for `load` of this or another cache of the same model, on any
   * device. In a Buffer, or where `file` or `stream` says. BUSY meanwhile; the event loop runs. Throws BUSY, DISPOSED,
   * ABORTED, OUT_OF_MEMORY of the host; INVALID_ARGUMENT also where the file or stream fails.
   *
   * @returns the bytes; with `file` or `stream`, how many they are.
   */
  save(sequence: Sequence, options: SaveToFile | SaveToStream): Promise<number>;
  save(sequence: Sequence, options?: SaveOptions): Promise<Buffer>;
  async save(sequence: Sequence, options?: SaveOptions): Promise<Buffer | number> {
    const operation = "cache.save";
    const given = this.#movable(operation, sequence);
    const { model, signal, destination } = checkSaving(operation, options);
    return saveSequence(operation, this.#parts, given, model, destination, signal);
  }

  /**
   * A sequence that goes on where the saved one stood. Nobody sees anything of it before all is checked. `source` is a
   * Buffer, the path or file: URL of a file, or a Readable, which is read to its end. Throws CORRUPT_DATA, saying why,
   * for bytes that are damaged, or saved by a cache of another shape, RoPE or `model`; OUT_OF_PAGES; BUSY where
   * `maxSequences` are open; ABORTED; DISPOSED; INVALID_ARGUMENT also where the file or stream fails.
   */
  async load(source: SavedSource, options?: LoadOptions): Promise<Sequence> {
    const operation = "cache.load";
    this.#live(operation);
    const known = ["model", "salt", "priority", "signal"] as const;
    const given = checkOptions(operation, options, known);
    const model = checkModel(operation, given.model);
    const signal = checkSignal(operation, given.signal);
    const { salt = "" } = given;
    const { priority } = checkOpening(operation, this.layout, { salt, priority: given.priority });
    return loadSequence(operation, this.#parts, source, { model, salt, priority, signal });
  }

  stats(): CacheStats {
    this.#live("cache.stats");
    return cacheStats(this.#parts);
  }

  /** A map of the pages and a list of the sequences, for a person to read. Its form may change. */
  inspect(): string {
    this.#live("cache.inspect");
    return drawPages(this.#ledger);
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

  /** On the next tick: a listener must neither find a verb half done nor break it off by throwing. */
  readonly #notify: Notify = (name, event) => {
    if (this.listenerCount(name) === 0) return;
    process.nextTick(() => (this as EventEmitter).emit(name, event));
  };

  #movable(operation: string, sequence: unknown): Sequence {
    this.#live(operation);
    this.device.notCapturing(operation);
    return checkSequence(operation, sequence);
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

  /** Without a window the first page that is not there ends the search, so nothing behind it need be hashed. */
  #hashAhead(text: Text): Promise<void> {
    const { index } = this.#ledger.pool;
    const windowed = this.layout.window > 0;
    return text.hashAhead((key) => windowed || index.find(key) !== undefined);
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
