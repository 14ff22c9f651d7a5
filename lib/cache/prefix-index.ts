// Pages that can be found by what they hold, and the order in which those that nobody holds are given up.
//
//   find    key ──▶ page          a page has one key or none, a key one page
//   idle    one ring for each priority:      ┌─▶ first ⇄ 7 ⇄ 3 ⇄ 9 ◀─┐
//                                            └──────────────────────┘
//           evicted from the front of the lowest priority, added at the back
//
// Leaves go first without anyone asking for a leaf: a sequence gives its pages back from the last to the first, and
// whoever holds a page holds those before it too, so a page stands behind all that continue it. Its priority is the
// highest that it was ever held with, which is no lower than theirs.

/** Priorities are 0 … PRIORITIES - 1. */
export const PRIORITIES = 8;

export class PrefixIndex {
  readonly #numPages: number;
  readonly #pageOf: Map<string, number> = new Map();
  readonly #keyOf: (string | undefined)[];
  readonly #priority: Uint8Array;
  /** Rings, linked by page; entry numPages + p is where the ring of priority p begins and ends. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  #idle = 0;

  constructor(numPages: number) {
    this.#numPages = numPages;
    this.#keyOf = Array<string | undefined>(numPages).fill(undefined);
    this.#priority = new Uint8Array(numPages);
    this.#next = Int32Array.from({ length: numPages + PRIORITIES }, (_, i) => i);
    this.#previous = this.#next.slice();
  }

  /** Pages with a key that nobody holds. */
  get idle(): number {
    return this.#idle;
  }

  find(key: string): number | undefined {
    return this.#pageOf.get(key);
  }

  has(page: number): boolean {
    return this.#keyOf[page] !== undefined;
  }

  /** Gives `page`, which is held and has no key, a key that no page has. */
  add(page: number, key: string): void {
    this.#pageOf.set(key, page);
    this.#keyOf[page] = key;
    this.#priority[page] = 0;
  }

  /** Takes the key away, if there is one. The page is not idle. */
  remove(page: number): void {
    const key = this.#keyOf[page];
    if (key === undefined) return;
    this.#pageOf.delete(key);
    this.#keyOf[page] = undefined;
  }

  /** The page is not idle. */
  raisePriority(page: number, priority: number): void {
    if (this.#priority[page]! < priority) this.#priority[page] = priority;
  }

  /** The page's last holder let go. */
  shelve(page: number): void {
    const ring = this.#numPages + this.#priority[page]!;
    const last = this.#previous[ring]!;
    this.#link(last, page);
    this.#link(page, ring);
    this.#idle++;
  }

  /** Somebody holds the page again. */
  unshelve(page: number): void {
    this.#link(this.#previous[page]!, this.#next[page]!);
    this.#idle--;
  }

  /** Evicts the page that can best be spared. The caller has checked `idle`. */
  evict(): number {
    let ring = this.#numPages;
    while (this.#next[ring] === ring) ring++;
    const page = this.#next[ring]!;
    this.unshelve(page);
    this.remove(page);
    return page;
  }

  #link(before: number, after: number): void {
    this.#next[before] = after;
    this.#previous[after] = before;
  }
}
