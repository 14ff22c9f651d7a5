// Lays dense K and V out as pages behind a table, with poison wherever nothing may be read.

import { Random } from "./random";

export interface PagedLayout {
  /** [numPages, 2, numKvHeads, pageSize, headDim] */
  pages: Float32Array;
  numPages: number;
  /** [batch, maxPages] */
  pageTable: Int32Array;
  maxPages: number;
  kvLens: Int32Array;
}

/** An id that would be far outside any allocation. */
export const GARBAGE_ID = 2_147_480_000;

export interface LayoutOptions {
  /** Seed of the page order; absent: ascending. */
  seed?: number;
  /** What unused slots and pages of nobody hold. */
  poison?: number;
  /** Which pages of sequence b are wholly unseen: they become poison, and their ids garbage. */
  dead?: (b: number, page: number) => boolean;
  deadId?: number;
  extraPages?: number;
}

export function layPages(
  kv: { k: Float32Array; v: Float32Array; numKvHeads: number; headDim: number },
  kvLens: readonly number[],
  pageSize: number,
  options: LayoutOptions = {},
): PagedLayout {
  const { seed, poison = NaN, dead = () => false, deadId = GARBAGE_ID, extraPages = 3 } = options;
  const { k, v, numKvHeads, headDim } = kv;
  const pagesOf = kvLens.map((n) => Math.ceil(n / pageSize));
  const numPages = pagesOf.reduce((sum, n) => sum + n, 0) + extraPages;
  const maxPages = Math.max(...pagesOf, 1) + 2;
  const order =
    seed === undefined
      ? Array.from({ length: numPages }, (_, i) => i)
      : new Random(seed).permutation(numPages);
  const pages = new Float32Array(numPages * 2 * numKvHeads * pageSize * headDim).fill(poison);
  const pageTable = new Int32Array(kvLens.length * maxPages).fill(deadId);
  let next = 0;
  let row = 0;
  for (const [b, kvLen] of kvLens.entries()) {
    for (let first = 0; first < kvLen; first += pageSize) {
      const index = first / pageSize;
      const page = order[next++]!;
      if (dead(b, index)) continue;
      pageTable[b * maxPages + index] = page;
      for (let t = first; t < Math.min(kvLen, first + pageSize); t++) {
        for (let h = 0; h < numKvHeads; h++) {
          const from = ((row + t) * numKvHeads + h) * headDim;
          const to = ((page * 2 * numKvHeads + h) * pageSize + (t - first)) * headDim;
          pages.set(k.subarray(from, from + headDim), to);
          const toV = to + numKvHeads * pageSize * headDim;
          pages.set(v.subarray(from, from + headDim), toV);
        }
      }
    }
    row += kvLen;
  }
  return { pages, numPages, pageTable, maxPages, kvLens: Int32Array.from(kvLens) };
}
