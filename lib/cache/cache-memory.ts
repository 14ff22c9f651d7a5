// The device's side of a cache: the pages, the page table, and what moves between them. Memory is held as such and not
// as tensors, so that a `tidy` around createCache or plan leaves it alone.

import type { Device } from "../device";
import { dtypeBytes } from "../dtype";
import { failure, GqaError } from "../errors";
import type { Graph } from "../graph";
import { Memory } from "../memory";
import { addon, copyPages, DTYPE_CODE, type KvArgs, movePages, type Ref } from "../native";
import type { Tensor } from "../tensor";
import { type CacheLayout, outOfMemory } from "./config";
import type { TableDevice } from "./ledger";
import type { PageCopy } from "./sequence-pages";
import type { PageExtent } from "./transfer";

/** Where `memory` lies. */
export function placeOf(memory: Memory, offset: number = 0): Ref {
  return { id: memory.id, offset };
}

export class CacheMemory implements TableDevice {
  readonly #device: Device;
  readonly #layout: CacheLayout;
  /** [numLayers, numPages, 2, numKvHeads, pageSize, headDim] */
  readonly #pool: Memory;
  /** [rows, maxPages] int32 */
  #table: Memory;
  #rows: number;
  /** Graphs that read the table. Weak: a forgotten graph must stay collectable. */
  #graphs: WeakRef<Graph>[] = [];

  constructor(operation: string, device: Device, layout: CacheLayout, freeBytes: number) {
    this.#device = device;
    this.#layout = layout;
    this.#rows = layout.rows;
    let pool: Memory | undefined;
    try {
      pool = new Memory(operation, device, layout.poolBytes);
      this.#table = new Memory(operation, device, layout.rows * layout.maxPages * 4);
      this.#pool = pool;
    } catch (error) {
      pool?.release();
      const full = error instanceof GqaError && error.code === "OUT_OF_MEMORY";
      throw full ? outOfMemory(operation, layout, freeBytes) : error;
    }
  }

  /** Bytes held. */
  get bytes(): number {
    return this.#pool.bytes + this.#table.bytes;
  }

  grow(operation: string, rows: number): void {
    this.#device.notCapturing(operation);
    for (const graph of this.#graphs) {
      const live = graph.deref();
      if (live?.isExpendable) live.dispose();
    }
    this.#pruneGraphs();
    if (this.#graphs.length > 0) {
      throw failure(
        "BUSY",
        operation,
        `all ${this.#rows} rows of the page table are taken, and it cannot move while a captured graph reads it`,
        "createCache({ maxSequences }) sets all rows aside at once; or close a sequence, or dispose the graph",
      );
    }
    const table = new Memory(operation, this.#device, rows * this.#layout.maxPages * 4);
    addon.copy(table.id, 0, this.#table.id, 0, this.#table.bytes);
    this.#table.release();
    this.#table = table;
    this.#rows = rows;
  }

  write(pairs: Int32Array, numPairs: number): void {
    this.#expectFork();
    const elements = this.#rows * this.#layout.maxPages;
    addon.scatter(this.#table.id, 0, elements, pairs, numPairs);
  }

  copyRow(from: number, to: number, count: number): void {
    this.#expectFork();
    if (count === 0) return;
    const rowBytes = this.#layout.maxPages * 4;
    addon.copy(this.#table.id, to * rowBytes, this.#table.id, from * rowBytes, count * 4);
  }

  /** Copies whole pages of every layer. */
  copyPages(copies: readonly PageCopy[]): void {
    if (copies.length === 0) return;
    copyPages(this.#device.handle, {
      pool: placeOf(this.#pool),
      pageBytes: this.#layout.pageBytes,
      numLayers: this.#layout.numLayers,
      numPages: this.#layout.numPages,
      pairs: Int32Array.from(copies.flatMap(({ from, to }) => [from, to])),
    });
  }

  /** Copies whole pages of every layer between the pool and `hostPages` pages of host memory. */
  movePages(host: Memory, hostPages: number, toHost: boolean, runs: Int32Array): Promise<void> {
    const { pageBytes, numLayers, numPages } = this.#layout;
    return movePages(this.#device.handle, {
      pool: placeOf(this.#pool),
      host: placeOf(host),
      pageBytes,
      numLayers,
      numPages,
      hostPages,
      toHost,
      runs,
    });
  }

  /** The bits of pages that lie side by side. */
  readPages({ layer, page, offset, bytes }: PageExtent): Promise<ArrayBuffer> {
    const code = DTYPE_CODE[this.#layout.dtype];
    const elements = bytes / dtypeBytes(this.#layout.dtype);
    return addon.read(this.#pool.id, this.#offset(layer, page) + offset, code, code, elements);
  }

  /** Reads `data` before it returns. */
  writePages({ layer, page, offset, bytes }: PageExtent, data: Uint8Array): void {
    const code = DTYPE_CODE[this.#layout.dtype];
    const elements = bytes / dtypeBytes(this.#layout.dtype);
    const at = this.#offset(layer, page) + offset;
    addon.upload(this.#pool.id, at, code, data, code, elements);
  }

  #offset(layer: number, page: number): number {
    return (layer * this.#layout.numPages + page) * this.#layout.pageBytes;
  }

  /** One layer's pages, reached through the table. tableRow: [batchSize] int32. */
  kvArgs(layer: number, tableRow: Ref): KvArgs {
    const { numPages, pageSize, maxPages, numKvHeads, headDim } = this.#layout;
    return {
      k: { ...placeOf(this.#pool, this.#offset(layer, 0)), stride: headDim },
      v: null,
      stridePage: 2 * numKvHeads * pageSize * headDim,
      totalKv: 0,
      pageSize,
      numPages,
      maxPages,
      tableRows: this.#rows,
      pageTable: placeOf(this.#table),
      tableRow,
    };
  }

  /** The table must not move while the graph lives. */
  pin(graph: Graph): void {
    this.#pruneGraphs();
    this.#graphs.push(new WeakRef(graph));
  }

  #pruneGraphs(): void {
    this.#graphs = this.#graphs.filter((graph) => graph.deref()?.disposed === false);
  }

  /** Plans have refused by themselves what a fork finds here: a dead device, and a capture, which must not have it. */
  #expectFork(): void {
    this.#device.live("sequence.fork");
    this.#device.notCapturing("sequence.fork");
  }

  dispose(): void {
    this.#pool.release();
    this.#table.release();
  }
}

/** Where a row of float32 begins. */
export function rowOf(
  operation: string,
  tensor: Tensor,
  row: number,
): { id: number; offset: number } {
  const { id, offset } = tensor.ref(operation, "sinkLogits");
  return { id, offset: offset + row * tensor.rowStride * 4 };
}
