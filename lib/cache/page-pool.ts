// Which pages are free, and how many owners each of the others has. Numbers only: the bytes are the cache's tensor.
//
//   free    [ 9 | 8 | 7 | 4 |  .  .  . ]     a stack: the page given back last is handed out first
//                         ^ top
//   owners  [ - | 1 | 3 | 1 | 0 | 2 | 1 | 0 | 0 | 0 ]
//             ^ page 0, the null page, is never handed out
//
// A page is free, cached (nobody holds it, but the index still finds it by what it holds) or used: owned by sequences,
// or pinned. A freed page may be handed out at once: its last reader was enqueued before its next writer, on one
// compute stream.

import { PrefixIndex } from "./prefix-index";

/** Stands in table entries whose page was given back: valid memory that no query sees. */
export const NULL_PAGE = 0;

export class PagePool {
  /** Pages that can be handed out: all but the null page. */
  readonly total: number;
  readonly index: PrefixIndex;
  #free: Int32Array;
  #top: number;
  #owners: Uint32Array;
  #pins: Uint32Array;
  #shared = 0;
  #pinned = 0;
  #highWater = 0;
  #evictions = 0;

  /** numPages counts the null page. */
  constructor(numPages: number) {
    this.total = numPages - 1;
    this.index = new PrefixIndex(numPages);
    // Descending, so that a fresh pool hands out 1, 2, 3 ...
    this.#free = Int32Array.from({ length: this.total }, (_, i) => this.total - i);
    this.#top = this.total;
    this.#owners = new Uint32Array(numPages);
    this.#pins = new Uint32Array(numPages);
  }

  get free(): number {
    return this.#top;
  }

  /** Held by nobody and found by their key; handed out when no page is free. */
  get cached(): number {
    return this.index.idle;
  }

  get used(): number {
    return this.total - this.#top - this.index.idle;
  }

  /** Pages with more than one owner. */
  get shared(): number {
    return this.#shared;
  }

  get pinned(): number {
    return this.#pinned;
  }

  /** The most pages ever used at once. */
  get highWater(): number {
    return this.#highWater;
  }

  /** Pages evicted since the beginning. */
  get evictions(): number {
    return this.#evictions;
  }

  owners(page: number): number {
    return this.#owners[page]!;
  }

  pins(page: number): number {
    return this.#pins[page]!;
  }

  /** A page with one owner. The caller has checked `free` and `cached`. */
  allocate(): number {
    if (this.#top === 0 && this.evict(1) === 0) {
      throw new RangeError("PagePool.allocate: no free page");
    }
    const page = this.#free[--this.#top]!;
    this.#owners[page] = 1;
    this.#noteUse();
    return page;
  }

  /** One more owner of a page in use, or the first of a cached one. */
  retain(page: number): void {
    this.#takeUp("retain", page);
    if (++this.#owners[page]! === 2) this.#shared++;
  }

  /** One owner less. Where none is left, nor a pin, the page is cached if it has a key, else free. */
  release(page: number): void {
    const before = this.#owners[page]!;
    if (before === 0) throw new RangeError(`PagePool.release: page ${page} is free`);
    this.#owners[page] = before - 1;
    if (before === 2) this.#shared--;
    if (before === 1) this.#letGo(page);
  }

  /** Keeps a page from being written or evicted, whether it has owners or not. */
  pin(page: number): void {
    this.#takeUp("pin", page);
    if (++this.#pins[page]! === 1) this.#pinned++;
  }

  unpin(page: number): void {
    if (this.#pins[page] === 0) throw new RangeError(`PagePool.unpin: page ${page} is not pinned`);
    if (--this.#pins[page]! > 0) return;
    this.#pinned--;
    this.#letGo(page);
  }

  /**
   * Lets a full page in use be found by its key. Where another page has that key already it stays the one to be found,
   * unless nobody holds it: then one of the two is a page too many, and it is freed.
   */
  name(page: number, key: string, priority: number): void {
    const other = this.index.find(key);
    if (other !== undefined && other !== page) {
      if (this.#owners[other]! > 0 || this.#pins[other]! > 0) return;
      this.index.unshelve(other);
      this.index.remove(other);
      this.#free[this.#top++] = other;
    }
    if (other !== page) this.index.add(page, key);
    this.index.raisePriority(page, priority);
  }

  /** Frees up to `count` cached pages; how many. */
  evict(count: number): number {
    let done = 0;
    for (; done < count && this.index.idle > 0; done++) {
      this.#free[this.#top++] = this.index.evict();
    }
    this.#evictions += done;
    return done;
  }

  /** Takes a cached page off the shelf. */
  #takeUp(verb: string, page: number): void {
    if (this.#owners[page]! > 0 || this.#pins[page]! > 0) return;
    if (!this.index.has(page)) throw new RangeError(`PagePool.${verb}: page ${page} is free`);
    this.index.unshelve(page);
    this.#noteUse();
  }

  #letGo(page: number): void {
    if (this.#owners[page]! > 0 || this.#pins[page]! > 0) return;
    if (this.index.has(page)) this.index.shelve(page);
    else this.#free[this.#top++] = page;
  }

  #noteUse(): void {
    if (this.used > this.#highWater) this.#highWater = this.used;
  }
}
