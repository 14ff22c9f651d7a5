// What a cache is made of: the user's configuration, checked, with its defaults and sizes.

import {
  checkInt,
  checkNumber,
  checkOneOf,
  checkOptions,
  checkPositive,
  checkSoftCap,
  checkWindow,
  INT32_MAX,
  mapItems,
  show,
} from "../check";
import { type DType, dtypeBytes } from "../dtype";
import { failure, invalid } from "../errors";
import { checkGroup, checkHeadDim } from "../ops/arguments";
import type { RopeConfig, RopeTable } from "../rope";
import type { Tensor, TensorData } from "../tensor";
import type { LedgerConfig } from "./ledger";

/** What belongs to a model for good, and how much memory its keys and values get. */
export interface KvCacheConfig {
  numLayers: number;
  numKvHeads: number;
  /** A multiple of 8, at most 256. */
  headDim: number;
  /** A multiple of numKvHeads. Default: what each `attend` brings. Needed with sinkLogits. */
  numQHeads?: number;
  /** Of q, k, v and o. Default bfloat16. */
  dtype?: DType;
  /** Tokens in a page: a power of two in [8, 256]. Default 16. */
  pageSize?: number;
  /** Rotates q and k at their positions as they are appended. Default: they come rotated, or need none. */
  rope?: RopeTable | RopeConfig;
  /** Default 1 / sqrt(headDim). */
  smScale?: number;
  /** softCap * tanh(logit / softCap), in [1e-30, 1e30]; 0, the default, is off. */
  softCap?: number;
  /** [numQHeads], or [numLayers, numQHeads], float32: learned logits that join each head's denominator. */
  sinkLogits?: Tensor | TensorData;
  /**
   * How many keys a query sees, its own position included, for all layers or [numLayers]; 0, the default, is no limit.
   * Pages are given back as they leave the widest one; where one layer has no limit, none are.
   */
  window?: number | readonly number[];
  /** The first n positions stay visible, and held, whatever the window. Default 0. */
  sinkTokens?: number;
  /** Tokens left of the window that are held all the same: how far truncate can always go back. Default 0. */
  rollbackTokens?: number;
  /** Room for this many tokens of all sequences together, in whole pages. One of this, maxBytes and memoryFraction. */
  maxTokens?: number;
  /** Room for keys and values in bytes. */
  maxBytes?: number;
  /** Room as a part of the device's free memory, in (0, 1]. */
  memoryFraction?: number;
  /** Bytes of host memory for offloaded sequences: pinned on CUDA, taken when needed, kept until dispose. Default 0. */
  hostBytes?: number;
  /**
   * Open sequences at most. Where given, page table rows for all of them are set aside at once; else rows are added
   * as sequences are opened, up to 4096, which captured graphs forbid while they live.
   */
  maxSequences?: number;
  /**
   * Tokens of one sequence at most, which is the width of the page table. Default: room for all of the cache's tokens,
   * and with a window, which holds sequences longer than the cache, at least 131072.
   */
  maxSeqLen?: number;
  /** Tokens per split: makes a sequence's bits independent of the rest of its batch. 0, the default, is off. */
  fixedSplits?: number;
}

const KNOWN: readonly (keyof KvCacheConfig)[] = [
  "numLayers",
  "numKvHeads",
  "headDim",
  "numQHeads",
  "dtype",
  "pageSize",
  "rope",
  "smScale",
  "softCap",
  "sinkLogits",
  "window",
  "sinkTokens",
  "rollbackTokens",
  "maxTokens",
  "maxBytes",
  "memoryFraction",
  "hostBytes",
  "maxSequences",
  "maxSeqLen",
  "fixedSplits",
];

const CACHE_DTYPES: readonly DType[] = ["float32", "float16", "bfloat16"];
const PAGE_SIZES: readonly number[] = [8, 16, 32, 64, 128, 256];
const FIRST_ROWS = 16;
const MOST_ROWS = 4096;
const WINDOWED_SEQ_LEN = 131_072;

/** A configuration with every default and size filled in. */
export interface CacheLayout extends LedgerConfig {
  readonly numLayers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Of every attend, or null: whatever it brings. */
  readonly numQHeads: number | null;
  readonly dtype: DType;
  readonly smScale: number;
  readonly softCap: number;
  /** [numLayers] */
  readonly windows: readonly number[];
  readonly fixedSplits: number;
  /** One page of one layer. */
  readonly pageBytes: number;
  /** Keys and values of all layers and pages. */
  readonly poolBytes: number;
  /** Table entries that a row has even where the pool is smaller. */
  readonly leastMaxPages: number;
}

/** Bytes that one token's keys and values take in all layers. */
export function bytesPerToken(
  config: Pick<KvCacheConfig, "numLayers" | "numKvHeads" | "headDim" | "dtype">,
): number {
  const { numLayers, numKvHeads, headDim, dtype } = checkShapeOfModel("bytesPerToken", config);
  return numLayers * 2 * numKvHeads * headDim * dtypeBytes(dtype);
}

/** The user's object, with no unknown field in it. */
export function checkConfig(operation: string, config: unknown): Partial<KvCacheConfig> {
  if (config === undefined)
    throw invalid(operation, "config expected { numLayers, numKvHeads, … }");
  // A copy: a getter of the user's is asked once.
  return { ...checkOptions(operation, config as KvCacheConfig, KNOWN, "config") };
}

/** Checks the fields of a configuration. `availableBytes` is what the device has free. */
export function cacheLayout(
  operation: string,
  given: Partial<KvCacheConfig>,
  availableBytes: number,
): CacheLayout {
  const { numLayers, numKvHeads, headDim, dtype } = checkShapeOfModel(operation, given);
  checkHeadDim(operation, headDim);
  const numQHeads = checkQHeads(operation, given, numKvHeads);
  const pageSize = given.pageSize ?? 16;
  if (!PAGE_SIZES.includes(pageSize)) {
    throw invalid(
      operation,
      `pageSize expected one of ${PAGE_SIZES.join(", ")}, got ${show(pageSize)}`,
    );
  }
  const windows = checkWindows(operation, given.window, numLayers);
  const widest = windows.includes(0) ? 0 : Math.max(...windows);

  const pageBytes = 2 * numKvHeads * pageSize * headDim * dtypeBytes(dtype);
  const numPages =
    1 + choosePages(operation, given, pageSize, numLayers * pageBytes, availableBytes);
  const roomTokens = (numPages - 1) * pageSize;
  // A window lets a sequence outgrow the pool; without one no sequence can.
  const leastSeqLen = given.maxSeqLen ?? (widest > 0 ? WINDOWED_SEQ_LEN : 0);
  const maxSeqLen =
    given.maxSeqLen === undefined
      ? Math.min(INT32_MAX, Math.max(roomTokens, leastSeqLen))
      : checkInt(operation, "maxSeqLen", given.maxSeqLen, 1);
  const maxPages = Math.ceil(maxSeqLen / pageSize);
  // Table entries are found by an int32 index.
  const mostRows = Math.max(1, Math.floor(INT32_MAX / maxPages));
  const maxSequences =
    given.maxSequences === undefined
      ? Math.min(MOST_ROWS, mostRows)
      : checkInt(operation, "maxSequences", given.maxSequences, 1, mostRows);

  const layout: CacheLayout = {
    numLayers,
    numKvHeads,
    headDim,
    numQHeads,
    dtype,
    smScale:
      given.smScale === undefined
        ? 1 / Math.sqrt(headDim)
        : checkPositive(operation, "smScale", given.smScale),
    softCap: checkSoftCap(operation, given.softCap),
    windows: Object.freeze(windows),
    window: widest,
    sinkTokens: checkInt(operation, "sinkTokens", given.sinkTokens ?? 0),
    rollbackTokens: checkInt(operation, "rollbackTokens", given.rollbackTokens ?? 0),
    fixedSplits: checkInt(operation, "fixedSplits", given.fixedSplits ?? 0),
    pageSize,
    numPages,
    maxPages,
    maxSeqLen,
    hostPages: hostPages(operation, given.hostBytes, numLayers * pageBytes),
    rows: given.maxSequences === undefined ? Math.min(FIRST_ROWS, maxSequences) : maxSequences,
    maxSequences,
    pageBytes,
    poolBytes: numLayers * numPages * pageBytes,
    leastMaxPages: Math.ceil(leastSeqLen / pageSize),
  };
  checkFits(operation, layout, availableBytes);
  return layout;
}

/** OUT_OF_MEMORY for a cache that does not fit, with the largest that would. */
export function outOfMemory(operation: string, layout: CacheLayout, freeBytes: number): Error {
  const { numLayers, pageBytes, pageSize, numPages, rows, leastMaxPages } = layout;
  const perPage = numLayers * pageBytes + rows * 4;
  const pages = Math.floor((freeBytes - rows * leastMaxPages * 4) / perPage) - 1;
  return failure(
    "OUT_OF_MEMORY",
    operation,
    `${layout.poolBytes + tableBytes(layout)} bytes needed for ${(numPages - 1) * pageSize} tokens, ` +
      `${freeBytes} free`,
    pages < 1 ? "no maxTokens fits" : `the largest maxTokens that fits is ${pages * pageSize}`,
  );
}

export function tableBytes(layout: CacheLayout): number {
  return layout.rows * layout.maxPages * 4;
}

function checkFits(operation: string, layout: CacheLayout, freeBytes: number): void {
  if (layout.poolBytes + tableBytes(layout) > freeBytes) {
    throw outOfMemory(operation, layout, freeBytes);
  }
}

function checkShapeOfModel(
  operation: string,
  config: Partial<KvCacheConfig>,
): { numLayers: number; numKvHeads: number; headDim: number; dtype: DType } {
  if (typeof config !== "object" || config === null) {
    throw invalid(operation, `config expected { numLayers, numKvHeads, … }, got ${show(config)}`);
  }
  return {
    numLayers: checkInt(operation, "numLayers", config.numLayers, 1, 65_536),
    numKvHeads: checkInt(operation, "numKvHeads", config.numKvHeads, 1, 65_536),
    headDim: checkInt(operation, "headDim", config.headDim, 1, 65_536),
    dtype: checkOneOf(operation, "dtype", config.dtype ?? "bfloat16", CACHE_DTYPES),
  };
}

function checkQHeads(
  operation: string,
  given: Partial<KvCacheConfig>,
  numKvHeads: number,
): number | null {
  if (given.numQHeads === undefined) {
    if (given.sinkLogits === undefined) return null;
    throw invalid(operation, "sinkLogits needs numQHeads", "pass numQHeads too");
  }
  const numQHeads = checkInt(operation, "numQHeads", given.numQHeads, 1, 65_536);
  checkGroup(operation, numQHeads, numKvHeads);
  return numQHeads;
}

function checkWindows(
  operation: string,
  window: KvCacheConfig["window"],
  numLayers: number,
): number[] {
  if (!Array.isArray(window)) {
    return Array<number>(numLayers).fill(checkWindow(operation, "window", window));
  }
  if (window.length !== numLayers) {
    throw invalid(
      operation,
      `window expected a number or ${numLayers} of them, one per layer, got ${window.length}`,
    );
  }
  return mapItems(window, (value, i) => checkWindow(operation, `window[${i}]`, value));
}

function hostPages(operation: string, bytes: number = 0, bytesPerPage: number): number {
  const given = checkInt(operation, "hostBytes", bytes, 0, Number.MAX_SAFE_INTEGER);
  return Math.min(Math.floor(given / bytesPerPage), INT32_MAX);
}

/** Pages of tokens, without the null page. */
function choosePages(
  operation: string,
  given: Partial<KvCacheConfig>,
  pageSize: number,
  bytesPerPage: number,
  availableBytes: number,
): number {
  const { maxTokens, maxBytes, memoryFraction } = given;
  const sizes = [maxTokens, maxBytes, memoryFraction].filter((size) => size !== undefined);
  if (sizes.length !== 1) {
    throw invalid(
      operation,
      `expected one of maxTokens, maxBytes and memoryFraction, got ${sizes.length} of them`,
    );
  }
  if (maxTokens !== undefined) {
    return Math.ceil(checkInt(operation, "maxTokens", maxTokens, 1) / pageSize);
  }
  const bytes =
    maxBytes !== undefined
      ? checkInt(operation, "maxBytes", maxBytes, 1, Number.MAX_SAFE_INTEGER)
      : checkNumber(operation, "memoryFraction", memoryFraction, 0, 1) * availableBytes;
  const pages = Math.min(Math.floor(bytes / bytesPerPage), INT32_MAX) - 1;
  if (pages >= 1) return pages;
  const name = maxBytes !== undefined ? "maxBytes" : "memoryFraction";
  throw invalid(
    operation,
    `${name} gives ${Math.floor(bytes)} bytes, and the smallest cache, two pages of ${pageSize} tokens, ` +
      `takes ${2 * bytesPerPage}`,
  );
}
