// Keys and values in pages: what a user passes, checked as far as the host can see it.

import { checkInts, checkOptions, hostCopy, INT32_MAX, mapItems, show } from "../check";
import type { Device } from "../device";
import type { DType } from "../dtype";
import { invalid } from "../errors";
import type { KvArgs } from "../native";
import { Tensor } from "../tensor";
import { expectAligned, expectContiguous, tensorArgument } from "./arguments";
import type { QueryRows } from "./sequences";
import { hostWords, type Ints, intWords, type Staging, type Words } from "./staging";

/** Keys and values in pages of one layer. */
export interface PagedKv {
  /**
   * [numPages, 2, numKvHeads, pageSize, headDim]: each page holds its keys, then its values.
   * pageSize: 2^n <= 1024.
   */
  pages: Tensor;
  /**
   * [tableRows, maxPages] int32: page ids in the order of their tokens; an Int32Array of batch *
   * maxPages, or one array for each row. Entries that no visible key needs may hold anything.
   */
  pageTable: Int32Array | readonly (readonly number[] | Int32Array)[] | Tensor;
  /** [batch] int32: tokens of each sequence, those of this call included. */
  kvLens: Ints;
  /** [batch] int32: the row of pageTable of each sequence. Default: row b is sequence b's. */
  tableRows?: Ints;
}

/** PagedKv, checked. */
export interface Pages {
  readonly tensor: Tensor;
  readonly numPages: number;
  readonly numKvHeads: number;
  readonly pageSize: number;
  readonly headDim: number;
  readonly table: Words;
  readonly maxPages: number;
  readonly tableRows: number;
  readonly kvLens: Words;
  readonly rowOf: Words | null;
  /** Tokens that a row of the table can hold. */
  readonly capacity: number;
}

/**
 * Rows of unequal length end in -1, which is never looked up; so do rows of a table without
 * entries.
 */
function packTable(
  operation: string,
  rows: readonly Int32Array[],
): { table: Words; width: number } {
  const width = rows.reduce((most, row) => Math.max(most, row.length), 1);
  const packed = hostCopy(operation, "pageTable", Int32Array, rows.length * width).fill(-1);
  for (const [i, row] of rows.entries()) packed.set(row, i * width);
  return { table: hostWords(packed), width };
}

function tableArgument(
  operation: string,
  value: unknown,
  device: Device,
  batchSize: number,
  hasRows: boolean,
): { table: Words; rows: number; width: number } {
  const anyId = { min: -INT32_MAX - 1 };
  if (Tensor.isTensor(value)) {
    const tensor = tensorArgument(operation, "pageTable", value, ["tableRows", "maxPages"], {
      device,
      dtype: "int32",
    });
    expectContiguous(operation, "pageTable", tensor);
    const [rows, width] = tensor.shape as [number, number];
    return { table: { length: tensor.size, host: null, tensor }, rows, width };
  }
  if (Array.isArray(value) && typeof value[0] !== "number") {
    const table = mapItems(value, (row, i) => checkInts(operation, `pageTable[${i}]`, row, anyId));
    return { ...packTable(operation, table), rows: table.length };
  }
  const flat = checkInts(operation, "pageTable", value, anyId);
  if (hasRows) {
    throw invalid(
      operation,
      "pageTable as one flat array does not say how many rows it has, and tableRows is given",
      "pass one array for each row, or an int32 tensor [tableRows, maxPages]",
    );
  }
  if (batchSize === 0 ? flat.length > 0 : flat.length % batchSize !== 0) {
    const expected = `a multiple of ${batchSize} ids, one row for each of kvLens`;
    throw invalid(operation, `pageTable expected ${expected}, got ${flat.length}`);
  }
  const rows: Int32Array[] = [];
  const width = flat.length / batchSize;
  for (let b = 0; b < batchSize; b++) rows.push(flat.subarray(b * width, (b + 1) * width));
  return { ...packTable(operation, rows), rows: batchSize };
}

export function pagedArgument(
  operation: string,
  value: unknown,
  device: Device,
  dtype: DType,
): Pages {
  if (typeof value !== "object" || value === null) {
    const what = `expected k and v, or { pages, pageTable, kvLens }, got ${show(value)}`;
    throw invalid(operation, what);
  }
  const known = ["pages", "pageTable", "kvLens", "tableRows"] as const;
  const given = checkOptions(operation, value as PagedKv, known, "paged");
  const shape = ["numPages", 2, "numKvHeads", "pageSize", "headDim"];
  const tensor = tensorArgument(operation, "pages", given.pages, shape, { device, dtype });
  expectAligned(operation, "pages", tensor);
  const [numPages, , numKvHeads, pageSize, headDim] = tensor.shape as number[] as [
    number,
    number,
    number,
    number,
    number,
  ];
  if (pageSize < 1 || pageSize > 1024 || (pageSize & (pageSize - 1)) !== 0) {
    const what = `pages expected a power of two from 1 to 1024 tokens per page, got ${pageSize}`;
    throw invalid(operation, what);
  }
  const kvLens = intWords(operation, "kvLens", given.kvLens, device);
  const batchSize = kvLens.length;
  const rowsGiven = given.tableRows !== undefined;
  const { table, rows, width } = tableArgument(
    operation,
    given.pageTable,
    device,
    batchSize,
    rowsGiven,
  );
  const limits = { length: batchSize, max: rows - 1 };
  const rowOf = rowsGiven
    ? intWords(operation, "tableRows", given.tableRows, device, limits)
    : null;
  if (rowOf === null && rows < batchSize) {
    throw invalid(
      operation,
      `pageTable expected ${batchSize} rows, one for each of kvLens, got ${rows}`,
    );
  }
  const capacity = Math.min(width * pageSize, INT32_MAX);
  if (kvLens.host !== null) {
    const b = kvLens.host.findIndex((length) => length > capacity);
    if (b >= 0) {
      const expected = `at most ${capacity}, ${width} pages of ${pageSize}`;
      const what = `kvLens[${b}] expected ${expected}, got ${kvLens.host[b]}`;
      throw invalid(operation, what, "widen pageTable");
    }
  }
  return {
    tensor,
    numPages,
    numKvHeads,
    pageSize,
    headDim,
    table,
    maxPages: width,
    tableRows: rows,
    kvLens,
    rowOf,
    capacity,
  };
}

/**
 * Checks the page ids behind the keys that are looked up, where the host knows table, lengths and
 * rows. Of sequence b that is [0, sinkTokens) and [firstKey(kvLen, qLen), kvLen).
 */
export function checkPageIds(
  operation: string,
  pages: Pages,
  q: QueryRows,
  sinkTokens: number,
  firstKey: (kvLen: number, qLen: number) => number,
): void {
  const { table, kvLens, rowOf, pageSize, numPages, maxPages } = pages;
  if (table.host === null || kvLens.host === null) return;
  if (rowOf !== null && rowOf.host === null) return;
  for (let b = 0; b < kvLens.length; b++) {
    const kvLen = kvLens.host[b]!;
    const qLen = q.length(b);
    if (qLen === null || qLen === 0) continue;
    const row = rowOf?.host?.[b] ?? b;
    const sinkPages = Math.ceil(Math.min(sinkTokens, kvLen) / pageSize);
    const bandPage = Math.floor(firstKey(kvLen, qLen) / pageSize);
    for (let i = 0; i * pageSize < kvLen; i++) {
      if (i >= sinkPages && i < bandPage) i = bandPage;
      const id = table.host[row * maxPages + i]!;
      if (id >= 0 && id < numPages) continue;
      const expected = `ids in [0, ${numPages}) for its ${kvLen} tokens`;
      const what = `pageTable of sequence ${b} expected ${expected}, got ${id} at entry ${i}`;
      throw invalid(operation, what);
    }
  }
}

/** The native arguments; call inside `staging.run`. */
export function pagedKvArgs(
  operation: string,
  pages: Pages,
  staging: Staging,
): { kv: () => KvArgs; kvLens: ReturnType<Staging["add"]>; longest: number } {
  const table = staging.add(pages.table);
  const rowOf = staging.add(pages.rowOf);
  const longest = pages.kvLens.host?.reduce((most, n) => Math.max(most, n), 0) ?? pages.capacity;
  return {
    kvLens: staging.add(pages.kvLens),
    longest,
    kv: () => ({
      k: pages.tensor.rows(operation, "pages"),
      v: null,
      stridePage: pages.tensor.rowStride,
      totalKv: 0,
      pageSize: pages.pageSize,
      numPages: pages.numPages,
      maxPages: pages.maxPages,
      tableRows: pages.tableRows,
      pageTable: table(),
      tableRow: rowOf(),
    }),
  };
}
