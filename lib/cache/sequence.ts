// The handle of one sequence, which a program holds.

import { checkInternal } from "../check";
import type { Ledger } from "./ledger";
import type { SequencePages } from "./sequence-pages";
import type { TokenIds } from "./text";

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
    return this.isClosed ? 0 : this.pages.length;
  }

  get closed(): boolean {
    return this.isClosed;
  }

  /** Between `cache.offload` and `cache.restore`: its pages lie on the host, and it cannot be planned. */
  get offloaded(): boolean {
    return !this.isClosed && this.pages.offloaded;
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
   * (`maxSequences`); INVALID_ARGUMENT where it is offloaded.
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

  /** Gives the pages back, on the device or the host. Idempotent. Throws BUSY as long as others are at work on it. */
  close(): void {
    this.#ledger.close(this);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
