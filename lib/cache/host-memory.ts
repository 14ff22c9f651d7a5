// The host's side of a cache: pages that were offloaded, in chunks that are laid out as the pool is.
//
//   slot      0 … n - 1          n … 2n - 1
//   chunk   [numLayers, n, page] [numLayers, n, page] …       made as slots are first used, kept until dispose
//
// Pages that lie side by side in both move as one row for each layer, and all rows of a chunk as one batch.

import type { Device } from "../device";
import { Memory } from "../memory";
import type { CacheMemory } from "./cache-memory";
import type { CacheLayout } from "./config";
import type { PageMoves } from "./sequence-pages";

interface Chunk {
  readonly memory: Memory;
  readonly pages: number;
  /** Its memory is there: a move to it has succeeded. */
  made: boolean;
}

/** Moves under way at a time: two that copy, and two that wait for their turn and not for the event loop. */
const AHEAD = 4;

export class HostMemory {
  /** @internal Of one chunk, and so of one move: a signal is asked in between. Smaller ones make tests of it small. */
  static chunkBytes: number = 64 << 20;

  readonly #device: Device;
  readonly #memory: CacheMemory;
  readonly #pages: number;
  readonly #bytesPerPage: number;
  readonly #pagesPerChunk: number;
  readonly #chunks: Chunk[] = [];

  constructor(device: Device, layout: CacheLayout, memory: CacheMemory) {
    this.#device = device;
    this.#memory = memory;
    this.#pages = layout.hostPages;
    this.#bytesPerPage = layout.numLayers * layout.pageBytes;
    this.#pagesPerChunk = Math.max(1, Math.floor(HostMemory.chunkBytes / this.#bytesPerPage));
  }

  /** Bytes held. */
  get bytes(): number {
    let pages = 0;
    for (const chunk of this.#chunks) if (chunk?.made) pages += chunk.pages;
    return pages * this.#bytesPerPage;
  }

  /**
   * Copies pages to their slots, or back. `proceed` is asked before each part and throws to stop; whatever happens, all
   * pages are at rest when this settles.
   */
  async move(
    operation: string,
    moves: PageMoves,
    toHost: boolean,
    proceed: () => void,
  ): Promise<void> {
    const underWay: Promise<void>[] = [];
    try {
      for (const [index, runs] of this.#parts(moves)) {
        proceed();
        const chunk = this.#chunk(operation, index);
        const moved = this.#memory.movePages(chunk.memory, chunk.pages, toHost, runs);
        underWay.push(moved.then(() => void (chunk.made = true)));
        if (underWay.length === AHEAD) await underWay.shift();
      }
      for (const moved of underWay) await moved;
    } finally {
      await Promise.allSettled(underWay);
    }
  }

  dispose(): void {
    for (const chunk of this.#chunks) chunk?.memory.release();
  }

  /** For each chunk that the slots lie in, runs [count, 3] of (page, place in the chunk, pages). */
  #parts({ pages, slots }: PageMoves): Map<number, Int32Array> {
    const runs = new Map<number, number[]>();
    for (let i = 0, count = 0; i < pages.length; i += count) {
      const index = Math.floor(slots[i]! / this.#pagesPerChunk);
      const end = (index + 1) * this.#pagesPerChunk;
      count = 1;
      while (pages[i + count] === pages[i]! + count && slots[i + count] === slots[i]! + count) {
        if (slots[i + count] === end) break;
        count++;
      }
      if (!runs.has(index)) runs.set(index, []);
      runs.get(index)!.push(pages[i]!, slots[i]! - index * this.#pagesPerChunk, count);
    }
    return new Map(Array.from(runs, ([index, words]) => [index, Int32Array.from(words)]));
  }

  #chunk(operation: string, index: number): Chunk {
    const known = this.#chunks[index];
    if (known !== undefined) return known;
    const pages = Math.min(this.#pagesPerChunk, this.#pages - index * this.#pagesPerChunk);
    const bytes = pages * this.#bytesPerPage;
    const memory = new Memory(operation, this.#device, bytes, "host");
    const chunk = { memory, pages, made: false };
    this.#chunks[index] = chunk;
    return chunk;
  }
}
