// Operations that move or merge rows and pages.

import type { DType } from "../dtype";
import { addon, begin, count, DTYPE_CODE, num, ref, rows } from "./addon";
import type { Ref, RowsRef } from "./types";

export function repeatKv(
  device: number,
  a: {
    x: RowsRef;
    out: Ref;
    dtype: DType;
    rows: number;
    numKvHeads: number;
    headDim: number;
    groupSize: number;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.numKvHeads);
  num(a.headDim);
  num(a.groupSize);
  addon.repeatKv(count());
}

export function sliceWindow(
  device: number,
  a: {
    x: RowsRef;
    out: Ref;
    dtype: DType;
    kvLen: number;
    window: number;
    sinkTokens: number;
    outLen: number;
    rowElements: number;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.kvLen);
  num(a.window);
  num(a.sinkTokens);
  num(a.outLen);
  num(a.rowElements);
  addon.sliceWindow(count());
}

export function mergeStates(
  device: number,
  a: {
    o: readonly Ref[];
    lse: readonly Ref[];
    out: Ref;
    outLse: Ref | null;
    dtype: DType;
    rows: number;
    numHeads: number;
    headDim: number;
  },
): void {
  begin(device);
  num(a.o.length);
  for (const part of a.o) ref(part);
  for (const part of a.lse) ref(part);
  ref(a.out);
  ref(a.outLse);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.numHeads);
  num(a.headDim);
  addon.mergeStates(count());
}

/** pairs: [numPairs, 2] of (source page, destination page), read before it returns. */
export function copyPages(
  device: number,
  a: { pool: Ref; pageBytes: number; numLayers: number; numPages: number; pairs: Int32Array },
): void {
  begin(device);
  ref(a.pool);
  num(a.pageBytes);
  num(a.numLayers);
  num(a.numPages);
  num(a.pairs.length / 2);
  addon.copyPages(count(), a.pairs);
}

/** Pages of all layers, to or from the whole of a host buffer. `runs` is read before it returns. */
export function movePages(
  device: number,
  a: {
    pool: Ref;
    host: Ref;
    pageBytes: number;
    numLayers: number;
    numPages: number;
    hostPages: number;
    toHost: boolean;
    runs: Int32Array;
  },
): Promise<void> {
  begin(device);
  ref(a.pool);
  ref(a.host);
  num(a.pageBytes);
  num(a.numLayers);
  num(a.numPages);
  num(a.hostPages);
  num(a.toHost ? 1 : 0);
  num(a.runs.length / 3);
  return addon.movePages(count(), a.runs);
}
