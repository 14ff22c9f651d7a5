// Which pages are free, and how many owners each of the others has. Numbers only: the bytes are the cache's tensor.
//
//   free    [ 9 | 8 | 7 | 4 |  .  .  . ]     a stack: the page given back last is handed out first
//                         ^ top
//   owners  [ - | 1 | 3 | 1 | 0 | 2 | 1 | 0 | 0 | 0 ]
//             ^ page 0, the null page, is never handed out
//
// A freed page may be handed out at once: its last reader was enqueued before its next writer, on one compute stream.

/** Stands in table entries whose page was given back: valid memory that no query sees. */
export const NULL_PAGE = 0;

export class PagePool {
  /** Pages that can be handed out: all but the null page. */
  readonly total: number;
  #free: Int32Array;
  #top: number;
  #owners: Uint32Array;
  #shared = 0;
  #highWater = 0;

  /** numPages counts the null page. */
  constructor(numPages: number) {
    this.total = numPages - 1;
    // Descending, so that a fresh pool hands out 1, 2, 3 ...
    this.#free = Int32Array.from({ length: this.total }, (_, i) => this.total - i);
    this.#top = this.total;
    this.#owners = new Uint32Array(numPages);
  }

  get free(): number {
    return this.#top;
  }

  get used(): number {
    return this.total - this.#top;
  }

  /** Pages with more than one owner. */
  get shared(): number {
    return this.#shared;
  }

  /** The most pages ever used at once. */
  get highWater(): number {
    return this.#highWater;
  }

  owners(page: number): number {
    return this.#owners[page]!;
  }

  /** A page with one owner. The caller has checked `free`. */
  allocate(): number {
    if (this.#top === 0) throw new RangeError("PagePool.allocate: no free page");
    const page = this.#free[--this.#top]!;
    this.#owners[page] = 1;
    if (this.used > this.#highWater) this.#highWater = this.used;
    return page;
  }

  /** One more owner of a page in use. */
  retain(page: number): void {
    if (this.#owners[page] === 0) throw new RangeError(`PagePool.retain: page ${page} is free`);
    if (++this.#owners[page]! === 2) this.#shared++;
  }

  /** One owner less; the last one frees the page. */
  release(page: number): void {
    const before = this.#owners[page]!;
    if (before === 0) throw new RangeError(`PagePool.release: page ${page} is free`);
    this.#owners[page] = before - 1;
    if (before === 2) this.#shared--;
    if (before === 1) this.#free[this.#top++] = page;
  }
}
