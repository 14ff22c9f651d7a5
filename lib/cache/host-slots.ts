// Which pages of host memory are free. Numbers only, as in page-pool.ts; but a page on the host has one owner and no
// key, and books are kept for those alone that were ever used: a budget may be far larger than what is used of it.
//
//   slots   0 … fresh - 1: taken, or on the stack `free`      fresh … total - 1: never taken

export class HostSlots {
  readonly total: number;
  #fresh = 0;
  readonly #free: number[] = [];

  constructor(total: number) {
    this.total = total;
  }

  get free(): number {
    return this.total - this.used;
  }

  get used(): number {
    return this.#fresh - this.#free.length;
  }

  /** So many slots, side by side where they can be. The caller has checked `free`. */
  take(count: number): Int32Array {
    if (count > this.free) throw new RangeError("HostSlots.take: no free slot");
    return Int32Array.from({ length: count }, () => this.#free.pop() ?? this.#fresh++);
  }

  /** The last first, so that they are taken again in the order that they had. */
  give(slots: Int32Array): void {
    for (let i = slots.length - 1; i >= 0; i--) this.#free.push(slots[i]!);
  }
}
