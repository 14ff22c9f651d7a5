// One sequence: which pages hold its tokens, and the handle that a program holds.
//
//   pageSize 4, window 6, sinkTokens 2, length 19:
//
//   tokens   |0 1 2 3|4 5 6 7|8 9 . .|. . . .|. . 18 |
//             ^^^ sinks                 ^ 14: the first key that token 19 sees in its window
//   entries  [   3   |   0   |   0   |   7   |   5   |  dead ...            table row, maxPages wide
//                |       |       |       |       |
//   pool      page 3     +-------+    page 7  page 5    <- last page, part full: copied before writing if shared
//             (sinks)        |
//                        null page 0: those pages went back to the pool at commit
//
// Entry i always stands for tokens [i * pageSize, (i + 1) * pageSize). Entries only grow, except at truncate, where a
// shared last page is copied (at plan, undone by rollback) and where the null page replaces what left the window.

import { checkInternal } from "../check";
import { firstInWindow, firstPositionFrom } from "../window";
import type { Ledger } from "./ledger";
import type { PagePool } from "./page-pool";
import { NULL_PAGE } from "./page-pool";
import type { PageTable } from "./page-table";
import type { Text, TokenIds } from "./text";

/** What decides which pages a sequence keeps. Tokens. */
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

/** A page to copy before the step writes into it. */
export interface PageCopy {
  readonly from: number;
  readonly to: number;
}

/**
 * The pages of one sequence, as numbers. Between `reserve` and `commit` or `undo` the reserved pages are in the table
 * but `length` is the old one.
 */
export class SequencePages {
  readonly row: number;
  /** The tokens, as far as they were told; null: they do not say what the pages hold. */
  readonly text: Text | null;
  readonly priority: number;
  #pool: PagePool;
  #table: PageTable;
  #keep: Retention;
  #length = 0;
  #count = 0; // entries in use
  #sinkPages: number; // entries that sinks keep
  #firstLive: number; // entries [sinkPages, firstLive) are the null page
  #reserved = 0;
  #countBefore = 0;
  #copiedFrom = NULL_PAGE; // the shared page replaced at reserve, still owned until commit
  #named = 0; // full pages that were given their key
  readonly #pins: Set<number> = new Set();

  constructor(
    pool: PagePool,
    table: PageTable,
    keep: Retention,
    row: number,
    text: Text | null,
    priority: number,
  ) {
    this.#pool = pool;
    this.#table = table;
    this.#keep = keep;
    this.row = row;
    this.text = text;
    this.priority = priority;
    this.#sinkPages = Math.ceil(keep.sinkTokens / keep.pageSize);
    this.#firstLive = this.#sinkPages;
  }

  /** Committed tokens. */
  get length(): number {
    return this.#length;
  }

  /** Tokens reserved beyond `length`. */
  get reserved(): number {
    return this.#reserved;
  }

  /** The first page behind the sinks that is not the null page. */
  get firstLive(): number {
    return this.#firstLive;
  }

  /** Page ids, the null page included. */
  get entries(): Int32Array {
    return this.#table.row(this.row, this.#count);
  }

  /** Pages that `reserve(tokens)` will take from the pool. */
  pagesNeeded(tokens: number): number {
    const last = Math.ceil((this.#length + tokens) / this.#keep.pageSize);
    return last - this.#count + (this.#writesSharedPage() ? 1 : 0);
  }

  /** Takes the pages of `tokens` more. The caller has checked pagesNeeded against the pool. */
  reserve(tokens: number): PageCopy | null {
    const { pageSize } = this.#keep;
    let copy: PageCopy | null = null;
    this.#countBefore = this.#count;
    if (this.#length % pageSize > 0 && !this.#writesSharedPage()) {
      // Truncated into a full page: it will not hold what its key says.
      this.#pool.index.remove(this.#table.get(this.row, this.#count - 1));
    }
    if (this.#writesSharedPage()) {
      const index = this.#count - 1;
      copy = { from: this.#table.get(this.row, index), to: this.#pool.allocate() };
      this.#table.set(this.row, index, copy.to);
      this.#copiedFrom = copy.from;
    }
    this.#reserved = tokens;
    const last = Math.ceil((this.#length + tokens) / pageSize);
    while (this.#count < last) this.#table.set(this.row, this.#count++, this.#pool.allocate());
    return copy;
  }

  /**
   * The reserved tokens are written: counts them, names the pages that they fill, and gives back what no later query
   * will see. `told` are those tokens, where the caller knows them.
   */
  commit(told: Int32Array | null = null): void {
    const known = this.text === null ? -1 : this.text.length - this.#length;
    // Behind a token that was never told no page can be named.
    if (told !== null && known >= 0) this.text?.append(told.subarray(known));
    this.#length += this.#reserved;
    this.#reserved = 0;
    if (this.#copiedFrom !== NULL_PAGE) this.#pool.release(this.#copiedFrom);
    this.#copiedFrom = NULL_PAGE;
    this.#nameFullPages();
    this.#releaseLeftOfWindow();
  }

  /** Tells tokens that were committed untold, from the first of them on. */
  tell(tokens: Int32Array): void {
    this.text?.append(tokens);
    this.#nameFullPages();
  }

  /** Everything as before `reserve`. */
  undo(): void {
    this.#releaseEntries(this.#countBefore);
    if (this.#copiedFrom !== NULL_PAGE) {
      const index = this.#count - 1;
      this.#pool.release(this.#table.get(this.row, index));
      this.#table.set(this.row, index, this.#copiedFrom);
      this.#copiedFrom = NULL_PAGE;
    }
    this.#reserved = 0;
  }

  /**
   * The smallest length that truncate takes, other than the sink pages': everything that the next token would see is
   * still held.
   */
  get minLength(): number {
    if (this.#firstLive === this.#sinkPages) return 0;
    return firstPositionFrom(this.#firstLive * this.#keep.pageSize, this.#keep.window);
  }

  /** Tokens in the sinks' own pages, which are always held: truncating to this or less is always right. */
  get sinkCapacity(): number {
    return this.#sinkPages * this.#keep.pageSize;
  }

  canTruncate(length: number): boolean {
    return length <= this.sinkCapacity || length >= this.minLength;
  }

  /** The caller has checked canTruncate. */
  truncate(length: number): void {
    this.#releaseEntries(Math.ceil(length / this.#keep.pageSize));
    this.#length = length;
    this.text?.truncate(length);
    this.#named = Math.min(this.#named, Math.floor(length / this.#keep.pageSize));
    if (this.#count <= this.#sinkPages) this.#firstLive = this.#sinkPages;
  }

  /** Makes this sequence, which is empty, hold the first `count` pages of its text, all of them in the index. */
  adopt(count: number): void {
    const { pageSize } = this.#keep;
    const { index } = this.#pool;
    this.#firstLive = Math.max(this.#sinkPages, firstPageHeld(this.#keep, count * pageSize));
    for (let i = 0; i < count; i++) {
      const seen = i < this.#sinkPages || i >= this.#firstLive;
      const page = seen ? index.find(this.text!.key(i))! : NULL_PAGE;
      if (page !== NULL_PAGE) {
        this.#pool.retain(page);
        index.raisePriority(page, this.priority);
      }
      this.#table.set(this.row, i, page);
    }
    this.#count = this.#named = count;
    this.#length = count * pageSize;
  }

  /** Pages of a sequence of `length` tokens that has given back those from the sinks to firstLive. */
  pagesHeld({ length, firstLive }: Extent): number {
    const count = Math.ceil(length / this.#keep.pageSize);
    return Math.min(count, this.#sinkPages) + Math.max(0, count - firstLive);
  }

  /** Takes fresh pages for all that a saved sequence held. This one is empty; the caller has checked pagesHeld. */
  restore({ length, firstLive }: Extent): void {
    this.#firstLive = firstLive;
    const count = Math.ceil(length / this.#keep.pageSize);
    for (; this.#count < count; this.#count++) {
      const held = this.#count < this.#sinkPages || this.#count >= firstLive;
      this.#table.set(this.row, this.#count, held ? this.#pool.allocate() : NULL_PAGE);
    }
    this.#length = length;
  }

  get pinned(): boolean {
    return this.#pins.size > 0;
  }

  /** Pins what a match would find of the pages held: where two hold the same, the one with the key. */
  pin(): void {
    for (let i = 0; i < this.#named; i++) {
      const own = this.#table.get(this.row, i);
      if (own === NULL_PAGE) continue;
      this.#pool.name(own, this.text!.key(i), this.priority);
      const page = this.#pool.index.find(this.text!.key(i))!;
      if (this.#pins.has(page)) continue;
      this.#pool.pin(page);
      this.#pins.add(page);
    }
  }

  /** Also after `release`. */
  unpin(): void {
    // As pages are given back: the last first, so that it is the first to be evicted.
    for (const page of [...this.#pins].reverse()) this.#pool.unpin(page);
    this.#pins.clear();
  }

  /** Makes `other`, which is empty, share every page. */
  shareWith(other: SequencePages): void {
    for (const page of this.entries) if (page !== NULL_PAGE) this.#pool.retain(page);
    this.#table.copyRow(this.row, other.row, this.#count);
    other.#length = this.#length;
    other.#count = this.#count;
    other.#firstLive = this.#firstLive;
    other.#named = this.#named;
  }

  /** Gives back every page and the row. */
  release(): void {
    this.#releaseEntries(0);
    this.#length = 0;
    this.#table.giveRow(this.row);
  }

  #writesSharedPage(): boolean {
    if (this.#length % this.#keep.pageSize === 0) return false;
    const page = this.#table.get(this.row, this.#count - 1);
    return this.#pool.owners(page) + this.#pool.pins(page) > 1;
  }

  #releaseEntries(count: number): void {
    while (this.#count > count) {
      const page = this.#table.get(this.row, --this.#count);
      if (page !== NULL_PAGE) this.#pool.release(page);
    }
  }

  #nameFullPages(): void {
    if (this.text === null) return;
    const { pageSize } = this.#keep;
    const full = Math.floor(Math.min(this.#length, this.text.length) / pageSize);
    for (; this.#named < full; this.#named++) {
      const page = this.#table.get(this.row, this.#named);
      if (page === NULL_PAGE) continue; // left the window before its tokens were told
      this.#pool.name(page, this.text.key(this.#named), this.priority);
    }
  }

  #releaseLeftOfWindow(): void {
    const firstPage = firstPageHeld(this.#keep, this.#length);
    while (this.#firstLive < firstPage) {
      this.#pool.release(this.#table.get(this.row, this.#firstLive));
      this.#table.set(this.row, this.#firstLive++, NULL_PAGE);
    }
  }
}

/** A conversation, or a branch of one, in a KvCache. Made by `cache.open()` and `fork()`. */
export class Sequence implements Disposable {
  /** Unique in its cache; error messages name it. */
  readonly id: number;
  /** The first n positions see each other both ways; 0: off. */
  readonly prefixLen: number;
  /** @internal */
  readonly pages: SequencePages;
  /** @internal Planned tokens that are neither committed nor rolled back. */
  inStep = false;
  /** @internal */
  isClosed = false;
  readonly #ledger: Ledger;

  /** @internal */
  constructor(key: symbol, ledger: Ledger, id: number, prefixLen: number, pages: SequencePages) {
    checkInternal(key, "Sequence", "cache.open()");
    this.#ledger = ledger;
    this.id = id;
    this.prefixLen = prefixLen;
    this.pages = pages;
  }

  /** Committed tokens; the next one gets this position. 0 once closed. */
  get length(): number {
    return this.pages.length;
  }

  get closed(): boolean {
    return this.isClosed;
  }

  /** Tokens whose ids are known, from the beginning on: more than `length` where `open` told a prompt to come. */
  get told(): number {
    return this.pages.text?.length ?? 0;
  }

  /**
   * Tells the ids of committed tokens that `commit` did not know, as where they were sampled on the device: pages that
   * they fill are found by `cache.open({ tokens })` from now on. Also inside an open step. Throws DISPOSED, and
   * INVALID_ARGUMENT where `start` is not `told`, or `tokens` end behind `length`.
   */
  tell(start: number, tokens: TokenIds): void {
    this.#ledger.tell(this, start, tokens);
  }

  /** Between pin and unpin, closed or not. */
  get pinned(): boolean {
    return this.pages.pinned;
  }

  /**
   * Keeps the full pages that it holds now, as far as their tokens were told, from being evicted after `close`, until
   * `unpin`. Called again it adds those that were filled since. Throws DISPOSED.
   */
  pin(): void {
    this.#ledger.pin(this);
  }

  /** Ends `pin`, also after `close`. Idempotent. */
  unpin(): void {
    this.pages.unpin();
  }

  /**
   * A new sequence with the same tokens. It shares every page; the partly filled last one is copied by whichever
   * branch writes to it first. Throws BUSY inside an open step or where no row of the page table is free
   * (`maxSequences`).
   */
  fork(): Sequence {
    return this.#ledger.fork(this);
  }

  /**
   * Forgets the tokens from position `length` on. Throws INVALID_ARGUMENT, naming the smallest legal length, where
   * keys that the next token would see were given back as they left the window (`rollbackTokens` keeps more).
   */
  truncate(length: number): void {
    this.#ledger.truncate(this, length);
  }

  /** Gives the pages back. Idempotent. Throws BUSY inside an open step. */
  close(): void {
    this.#ledger.close(this);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
