// Which pages hold the tokens of one sequence.
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

import { firstPositionFrom } from "../window";
import type { Shortage } from "./ledger";
import type { PagePool } from "./page-pool";
import { NULL_PAGE } from "./page-pool";
import type { PageTable } from "./page-table";
import { type Extent, firstPageHeld, type Retention } from "./retention";
import type { Text } from "./text";

/** Of all open sequences together: kept as they change, so that nobody has to visit them to know. */
export interface Tally {
  /** Committed ones; a shared one counts in each. */
  tokens: number;
  /** Sequences whose pages lie on the host. */
  offloaded: number;
}

/** A page to copy before the step writes into it. */
export interface PageCopy {
  readonly from: number;
  readonly to: number;
}

/** Pages to copy between the device and the host: pages[i] to or from slots[i]. */
export interface PageMoves {
  readonly pages: Int32Array;
  readonly slots: Int32Array;
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
  readonly #tally: Tally;
  #length = 0;
  #count = 0; // entries in use
  #sinkPages: number; // entries that sinks keep
  #firstLive: number; // entries [sinkPages, firstLive) are the null page
  #reserved = 0;
  #countBefore = 0;
  #copiedFrom = NULL_PAGE; // the shared page replaced at reserve, still owned until commit
  #named = 0; // full pages that were given their key
  readonly #pins: Set<number> = new Set();
  #away: Int32Array | null = null; // slots of the host, one for each page held, in order

  constructor(
    pool: PagePool,
    table: PageTable,
    keep: Retention,
    tally: Tally,
    row: number,
    text: Text | null,
    priority: number,
  ) {
    this.#pool = pool;
    this.#table = table;
    this.#keep = keep;
    this.#tally = tally;
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

  /** Page ids without the null page. */
  get live(): Int32Array {
    return this.entries.filter((page) => page !== NULL_PAGE);
  }

  get offloaded(): boolean {
    return this.#away !== null;
  }

  /** Slots of the host, one for each page; none where it is not offloaded. */
  get slots(): Int32Array {
    return this.#away ?? new Int32Array(0);
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
    this.#resize(this.#length + this.#reserved);
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
    this.#resize(length);
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
    this.#resize(count * pageSize);
  }

  /** Pages of a sequence of `length` tokens that has given back those from the sinks to firstLive. */
  pagesHeld({ length, firstLive }: Extent): number {
    const count = Math.ceil(length / this.#keep.pageSize);
    return Math.min(count, this.#sinkPages) + Math.max(0, count - firstLive);
  }

  /** Takes fresh pages for all that a saved sequence held. This one is empty; the caller has checked pagesHeld. */
  takeFor({ length, firstLive }: Extent): void {
    this.#firstLive = firstLive;
    const count = Math.ceil(length / this.#keep.pageSize);
    for (; this.#count < count; this.#count++) {
      const page = this.#holds(this.#count) ? this.#pool.allocate() : NULL_PAGE;
      this.#table.set(this.row, this.#count, page);
    }
    this.#resize(length);
  }

  /** The bytes lie in `slots`, one for each live page: gives the pages back, and keeps the length. */
  leave(slots: Int32Array): void {
    this.#releaseEntries(0);
    this.#named = 0;
    this.#sendAway(slots);
  }

  /**
   * Takes pages for all that left: those that are found by their key again, and fresh ones for the others, which are to
   * be copied. Or it says how many are short, and nothing has changed.
   */
  comeBack(): PageMoves | Shortage {
    const pool = this.#pool;
    const entries = this.#findAgain();
    const found = entries.filter((page) => page > NULL_PAGE);
    const needed = entries.filter((page) => page < NULL_PAGE).length;
    const idle = found.filter((page) => pool.owners(page) + pool.pins(page) === 0).length;
    const evictable = pool.cached - idle;
    if (needed > pool.free + evictable) return { needed, free: pool.free, evictable };
    for (const page of found) pool.retain(page); // first, so that no other evicts them
    const moves = { pages: new Int32Array(needed), slots: new Int32Array(needed) };
    let [slot, moved] = [0, 0];
    for (let page of entries) {
      if (page < NULL_PAGE) {
        page = pool.allocate();
        moves.pages[moved] = page;
        moves.slots[moved++] = this.#away![slot]!;
      }
      if (page !== NULL_PAGE) slot++;
      this.#table.set(this.row, this.#count++, page);
    }
    return moves;
  }

  /** The bytes are in their pages again; the slots are free. */
  arrive(): Int32Array {
    const { slots } = this;
    this.#sendAway(null);
    this.#nameFullPages();
    return slots;
  }

  /** Undoes comeBack. */
  stayAway(): void {
    this.#releaseEntries(0);
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
    other.#resize(this.#length);
    other.#count = this.#count;
    other.#firstLive = this.#firstLive;
    other.#named = this.#named;
  }

  /** Gives back every page and the row. The slots are the caller's to give back. */
  release(): void {
    this.#releaseEntries(0);
    this.#sendAway(null);
    this.#resize(0);
    this.#table.giveRow(this.row);
  }

  #resize(length: number): void {
    this.#tally.tokens += length - this.#length;
    this.#length = length;
  }

  #sendAway(slots: Int32Array | null): void {
    this.#tally.offloaded += Number(slots !== null) - Number(this.offloaded);
    this.#away = slots;
  }

  /** Whether entry `index` is a page and not the null page. */
  #holds(index: number): boolean {
    return index < this.#sinkPages || index >= this.#firstLive;
  }

  /** For each entry the page that has its key, the null page where none was held, -1 where one is missing. */
  #findAgain(): Int32Array {
    const { pageSize } = this.#keep;
    const told = this.text === null ? 0 : Math.min(this.#length, this.text.length);
    return Int32Array.from({ length: Math.ceil(this.#length / pageSize) }, (_, i) => {
      if (!this.#holds(i)) return NULL_PAGE;
      const full = (i + 1) * pageSize <= told;
      return (full ? this.#pool.index.find(this.text!.key(i)) : undefined) ?? -1;
    });
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
    if (this.text === null || this.#away !== null) return;
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
