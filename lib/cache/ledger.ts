// The cache's books: which sequences are open, which pages they hold, and reservations of more. Pure: what must happen
// on the device is asked for through TableDevice, so that all of this is tested without one.

import { checkInt, INTERNAL } from "../check";
import { failure, invalid } from "../errors";
import { PagePool } from "./page-pool";
import { PageTable } from "./page-table";
import { type PageCopy, type Retention, Sequence, SequencePages } from "./sequence";

/** The device's copy of the page table. A method that throws has changed nothing. */
export interface TableDevice {
  /** Makes room for `rows` rows, keeping the contents. */
  grow(rows: number): void;
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
}

export interface Request {
  readonly sequence: Sequence;
  readonly tokens: number;
}

/** Reserved pages of one step: either committed or undone, once. */
export interface Reservation {
  /** Shared last pages that the device copies before the step writes. */
  readonly copies: readonly PageCopy[];
  commit(): void;
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
}

export class Ledger {
  readonly pool: PagePool;
  readonly table: PageTable;
  readonly config: LedgerConfig;
  readonly sequences: Set<Sequence> = new Set();
  readonly #device: TableDevice;
  #pairs = new Int32Array(64);
  #nextId = 0;

  constructor(config: LedgerConfig, device: TableDevice) {
    this.config = config;
    this.pool = new PagePool(config.numPages);
    this.table = new PageTable(config.rows, config.maxPages);
    this.#device = device;
  }

  open(prefixLen: number): Sequence {
    return this.#add("cache.open", prefixLen);
  }

  fork(parent: Sequence): Sequence {
    this.#checkIdle("sequence.fork", parent);
    const child = this.#add("sequence.fork", parent.prefixLen);
    try {
      this.sendChanges();
      this.#device.copyRow(parent.pages.row, child.pages.row, parent.pages.entries.length);
    } catch (error) {
      this.close(child);
      throw error;
    }
    parent.pages.shareWith(child.pages);
    return child;
  }

  truncate(sequence: Sequence, length: number): void {
    const operation = "sequence.truncate";
    this.#checkIdle(operation, sequence);
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
    sequence.pages.release();
    sequence.isClosed = true;
    this.sequences.delete(sequence);
  }

  /** Every sequence is dead at once; their pages go with the cache. */
  closeAll(): void {
    for (const sequence of this.sequences) sequence.isClosed = true;
    this.sequences.clear();
  }

  /** All the pages that the requests need, or the reason why not and nothing changed. */
  reserve(operation: string, requests: readonly Request[]): Reservation | Shortage {
    this.#checkRequests(operation, requests);
    let needed = 0;
    for (const { sequence, tokens } of requests) needed += sequence.pages.pagesNeeded(tokens);
    if (needed > this.pool.free) return { needed, free: this.pool.free };

    const copies: PageCopy[] = [];
    for (const { sequence, tokens } of requests) {
      const copy = sequence.pages.reserve(tokens);
      if (copy !== null) copies.push(copy);
      sequence.inStep = true;
    }
    return {
      copies,
      commit() {
        for (const { sequence } of requests) {
          sequence.pages.commit();
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

  /** Tokens of all open sequences; shared ones count once for each. */
  get tokens(): number {
    let sum = 0;
    for (const sequence of this.sequences) sum += sequence.length;
    return sum;
  }

  #add(operation: string, prefixLen: number): Sequence {
    if (!this.table.hasFreeRow) this.#grow(operation);
    const pages = new SequencePages(this.pool, this.table, this.config, this.table.takeRow());
    const sequence = new Sequence(INTERNAL, this, this.#nextId++, prefixLen, pages);
    this.sequences.add(sequence);
    return sequence;
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
    this.#device.grow(rows);
    this.table.grow(rows);
  }

  #checkOpen(operation: string, sequence: Sequence): void {
    if (sequence.isClosed) {
      throw failure("DISPOSED", operation, `sequence ${sequence.id} is closed`, "open a new one");
    }
    if (!this.sequences.has(sequence)) {
      throw invalid(operation, `sequence ${sequence.id} belongs to another cache`);
    }
  }

  #checkIdle(operation: string, sequence: Sequence): void {
    this.#checkOpen(operation, sequence);
    if (sequence.inStep) throw busy(operation, sequence);
  }

  #checkRequests(operation: string, requests: readonly Request[]): void {
    const seen = new Set<Sequence>();
    for (const { sequence, tokens } of requests) {
      this.#checkIdle(operation, sequence);
      if (seen.has(sequence)) {
        throw invalid(
          operation,
          `sequence ${sequence.id} stands twice in one plan`,
          "plan its tokens as one entry",
        );
      }
      seen.add(sequence);
      const end = sequence.length + tokens;
      if (end > this.config.maxSeqLen) {
        throw invalid(
          operation,
          `sequence ${sequence.id} would hold ${end} tokens, more than maxSeqLen ${this.config.maxSeqLen}`,
          "createCache({ maxSeqLen }) with more",
        );
      }
      if (end < sequence.prefixLen) {
        throw invalid(
          operation,
          `sequence ${sequence.id} would hold ${end} of the ${sequence.prefixLen} tokens of its prefixLen, ` +
            "which see each other and so must be computed together",
          "plan at least prefixLen tokens first",
        );
      }
    }
  }
}

function busy(operation: string, sequence: Sequence): Error {
  return failure(
    "BUSY",
    operation,
    `sequence ${sequence.id} is in an open step`,
    "commit, roll back or dispose that step first",
  );
}
