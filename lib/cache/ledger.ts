// The cache's books: which sequences are open, which pages they hold, and reservations of more. Pure: what must happen
// on the device is asked for through TableDevice, so that all of this is tested without one.

import { checkInt, INT32_MAX, INTERNAL } from "../check";
import { failure, invalid } from "../errors";
import { firstInWindow } from "../window";
import type { Notify } from "./events";
import { busy, expectIdle, expectOpen, expectPlannable, expectResident } from "./guards";
import { HostSlots } from "./host-slots";
import { PagePool } from "./page-pool";
import { PageTable } from "./page-table";
import { checkLateTold } from "./requests";
import { type Extent, firstPageHeld, type Retention } from "./retention";
import { Sequence } from "./sequence";
import { type PageCopy, SequencePages, type Tally } from "./sequence-pages";
import type { Text } from "./text";

/** The device's copy of the page table. A method that throws has changed nothing. */
export interface TableDevice {
  /** Makes room for `rows` rows, keeping the contents. `operation` is whose sequence needs one, for errors. */
  grow(operation: string, rows: number): void;
  /** Writes numPairs words, pairs [numPairs, 2] of (index, page id); reads `pairs` before it returns. */
  write(pairs: Int32Array, numPairs: number): void;
  /** Copies the first `count` entries of one row to another. */
  copyRow(from: number, to: number, count: number): void;
}

export interface LedgerConfig extends Retention {
  /** Pages of the pool, the null page included. */
  readonly numPages: number;
  /** Entries of one table row. */
  readonly maxPages: number;
  /** Tokens that one sequence may hold. */
  readonly maxSeqLen: number;
  /** Table rows to begin with, and at most. */
  readonly rows: number;
  readonly maxSequences: number;
  /** Pages that may lie on the host. */
  readonly hostPages: number;
}

export interface Request {
  readonly sequence: Sequence;
  readonly tokens: number;
}

/** Reserved pages of one step: either committed or undone, once. */
export interface Reservation {
  /** Shared last pages that the device copies before the step writes. */
  readonly copies: readonly PageCopy[];
  /** `told`: for each request the tokens, or null. */
  commit(told?: readonly (Int32Array | null)[]): void;
  undo(): void;
}

/** What a step has reserved. Apart from the step, so that it can be undone for one that was forgotten. */
export interface Plan {
  reservation: Reservation | null;
}

export function undo(plan: Plan): void {
  plan.reservation?.undo();
  plan.reservation = null;
}

/** A reservation that does not fit. Nothing was changed. */
export interface Shortage {
  readonly needed: number;
  readonly free: number;
  /** Cached pages, which would have been evicted. */
  readonly evictable: number;
}

export class Ledger {
  readonly pool: PagePool;
  readonly table: PageTable;
  readonly host: HostSlots;
  readonly config: LedgerConfig;
  readonly sequences: Set<Sequence> = new Set();
  readonly tally: Tally = { tokens: 0, offloaded: 0 };
  readonly #device: TableDevice;
  #pairs = new Int32Array(64);
  #nextId = 0;
  #hits = 0;
  #misses = 0;
  readonly #notify: Notify;

  constructor(config: LedgerConfig, device: TableDevice, notify: Notify = () => {}) {
    this.#notify = notify;
    this.config = config;
    this.pool = new PagePool(config.numPages);
    this.table = new PageTable(config.rows, config.maxPages);
    this.host = new HostSlots(config.hostPages);
    this.#device = device;
  }

  /** A sequence that begins with what the cache has of `text`. Without one it is never shared by its tokens. */
  open(
    operation: string,
    prefixLen: number,
    text: Text | null = null,
    priority: number = 0,
  ): Sequence {
    const sequence = this.#add(operation, prefixLen, text, priority);
    if (text === null || text.length === 0) return sequence;
    const pages = this.match(text);
    sequence.pages.adopt(pages);
    const missing = text.matchablePages - pages;
    this.#hits += pages;
    this.#misses += missing;
    if (pages > 0) this.#notify("hit", { sequence, pages, tokens: sequence.length });
    if (missing > 0) this.#notify("miss", { sequence, pages: missing });
    return sequence;
  }

  /**
   * The longest run of full pages of `text` after which the cache has every page that later tokens see, and at least
   * one token is left to compute.
   */
  match(text: Text): number {
    const { index } = this.pool;
    const sinkPages = Math.ceil(this.config.sinkTokens / this.config.pageSize);
    let best = 0;
    let lead = 0; // pages found from the beginning on, up to the first that is missing
    let run = 0; // pages found in a row, up to here
    for (let count = 1; count <= text.matchablePages; count++) {
      const found = index.find(text.key(count - 1)) !== undefined;
      run = found ? run + 1 : 0;
      if (run === count) lead = count;
      if (lead < count && (this.config.window === 0 || lead < sinkPages)) break;
      const first = firstPageHeld(this.config, count * this.config.pageSize);
      if (lead === count || run >= count - first) best = count;
    }
    return best;
  }

  /** Frees up to `count` cached pages; how many. */
  evict(count: number): number {
    const { evictions } = this.pool;
    const done = this.pool.evict(count);
    this.noteEvictions(evictions);
    return done;
  }

  tell(sequence: Sequence, start: unknown, tokens: unknown): void {
    const operation = "sequence.tell";
    expectOpen(operation, this.sequences, sequence);
    const told = checkLateTold(operation, sequence, start, tokens);
    expectOpen(operation, this.sequences, sequence); // a getter in tokens may have closed it
    sequence.pages.tell(told);
  }

  pin(sequence: Sequence): void {
    expectResident("sequence.pin", this.sequences, sequence);
    sequence.pages.pin();
  }

  /** Pages of told prompts that were there, and those that were not. */
  get hits(): number {
    return this.#hits;
  }

  get misses(): number {
    return this.#misses;
  }

  fork(parent: Sequence): Sequence {
    const operation = "sequence.fork";
    expectIdle(operation, this.sequences, parent);
    const { prefixLen, pages } = parent;
    const child = this.#add(operation, prefixLen, pages.text?.clone() ?? null, pages.priority);
    try {
      this.sendChanges();
      this.#device.copyRow(parent.pages.row, child.pages.row, parent.pages.entries.length);
    } catch (error) {
      this.abandon(child);
      throw error;
    }
    parent.pages.shareWith(child.pages);
    return child;
  }

  truncate(sequence: Sequence, length: number): void {
    const operation = "sequence.truncate";
    expectIdle(operation, this.sequences, sequence);
    const { pages, prefixLen } = sequence;
    checkInt(operation, "length", length, 0, pages.length);
    if (length > 0 && length < Math.min(prefixLen, pages.length)) {
      throw invalid(
        operation,
        `length ${length} lies inside prefixLen ${prefixLen}, whose tokens have seen each other`,
        "truncate to 0 or to prefixLen and more",
      );
    }
    if (!pages.canTruncate(length)) {
      const sinks = pages.sinkCapacity > 0 ? `, or at most ${pages.sinkCapacity} (the sinks)` : "";
      throw invalid(
        operation,
        `length ${length} needs keys that were given back as they left the window; ` +
          `the smallest legal length is ${pages.minLength}${sinks || ", or 0"}`,
        "createCache({ rollbackTokens }) keeps more",
      );
    }
    pages.truncate(length);
  }

  close(sequence: Sequence): void {
    if (sequence.isClosed) return;
    if (sequence.inStep) throw busy("sequence.close", sequence);
    this.#end(sequence);
    this.#notify("close", { sequence });
  }

  /** Makes a sequence BUSY without a step; `inStep = false` ends it. */
  hold(operation: string, sequence: Sequence): void {
    expectIdle(operation, this.sequences, sequence);
    sequence.inStep = true;
  }

  /** Whether some sequence of this cache can have come to this, with so many tokens told. */
  couldHold({ length, prefixLen, firstLive }: Extent, told: number): boolean {
    const { pageSize, sinkTokens, window } = this.config;
    const sinkPages = Math.ceil(sinkTokens / pageSize);
    const numbers = [length, prefixLen, firstLive, told];
    if (numbers.some((n) => !Number.isInteger(n) || n < 0 || n > INT32_MAX)) return false;
    if (told > (prefixLen > 0 ? 0 : length)) return false;
    if (length > 0 && length < prefixLen) return false;
    if (firstLive === sinkPages) return true;
    const seen = Math.floor(firstInWindow(length, window) / pageSize);
    return length > sinkPages * pageSize && firstLive > sinkPages && firstLive <= seen;
  }

  /** A sequence with fresh pages, and BUSY, for what was saved. */
  load(operation: string, saved: Extent, text: Text | null, priority: number): Sequence | Shortage {
    const sequence = this.#add(operation, saved.prefixLen, text, priority);
    const needed = sequence.pages.pagesHeld(saved);
    const { free, cached, evictions } = this.pool;
    if (needed > free + cached) {
      this.#end(sequence);
      return { needed, free, evictable: cached };
    }
    sequence.pages.takeFor(saved);
    sequence.inStep = true;
    this.noteEvictions(evictions);
    return sequence;
  }

  /** Ends a sequence that nobody has seen. */
  abandon(sequence: Sequence): void {
    if (!sequence.isClosed) this.#end(sequence);
  }

  /** Every sequence is dead at once; their pages go with the cache. */
  closeAll(): void {
    const closed = [...this.sequences];
    for (const sequence of closed) sequence.isClosed = true;
    this.sequences.clear();
    for (const sequence of closed) this.#notify("close", { sequence });
  }

  /** All the pages that the requests need, or the reason why not and nothing changed. */
  reserve(operation: string, requests: readonly Request[]): Reservation | Shortage {
    expectPlannable(operation, this.sequences, this.config, requests);
    let needed = 0;
    for (const { sequence, tokens } of requests) needed += sequence.pages.pagesNeeded(tokens);
    const { free, cached, evictions } = this.pool;
    if (needed > free + cached) return { needed, free, evictable: cached };

    const copies: PageCopy[] = [];
    for (const { sequence, tokens } of requests) {
      const copy = sequence.pages.reserve(tokens);
      if (copy !== null) copies.push(copy);
      sequence.inStep = true;
    }
    this.noteEvictions(evictions);
    return {
      copies,
      commit(told = []) {
        for (const [b, { sequence }] of requests.entries()) {
          sequence.pages.commit(told[b]);
          sequence.inStep = false;
        }
      },
      undo() {
        for (const { sequence } of requests.toReversed()) {
          sequence.pages.undo();
          sequence.inStep = false;
        }
      },
    };
  }

  /** Brings the device's table up to the host's, word by word. */
  sendChanges(): void {
    const { changeCount } = this.table;
    if (changeCount === 0) return;
    if (this.#pairs.length < 2 * changeCount) this.#pairs = new Int32Array(4 * changeCount);
    this.table.writeChanges(this.#pairs);
    this.#device.write(this.#pairs, changeCount);
    this.table.clearChanges();
  }

  /** Tells of the evictions since there were `before` of them. */
  noteEvictions(before: number): void {
    const pages = this.pool.evictions - before;
    if (pages > 0) this.#notify("evict", { pages });
  }

  #add(operation: string, prefixLen: number, text: Text | null, priority: number): Sequence {
    if (!this.table.hasFreeRow) this.#grow(operation);
    const row = this.table.takeRow();
    const { pool, table, config, tally } = this;
    const pages = new SequencePages(pool, table, config, tally, row, text, priority);
    const sequence = new Sequence(INTERNAL, this, this.#nextId++, prefixLen, pages);
    this.sequences.add(sequence);
    return sequence;
  }

  #end(sequence: Sequence): void {
    this.host.give(sequence.pages.slots);
    sequence.pages.release();
    sequence.isClosed = true;
    this.sequences.delete(sequence);
  }

  #grow(operation: string): void {
    const { maxSequences } = this.config;
    if (this.table.rows >= maxSequences) {
      throw failure(
        "BUSY",
        operation,
        `all ${maxSequences} sequences of maxSequences are open`,
        "close one, or createCache({ maxSequences }) with more",
      );
    }
    const rows = Math.min(2 * this.table.rows, maxSequences);
    this.#device.grow(operation, rows);
    this.table.grow(rows);
  }
}
