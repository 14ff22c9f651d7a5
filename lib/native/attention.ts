// Attention, the cache's append, and rotation.

import { addon, begin, count, DTYPE_CODE, num, ref, rows } from "./addon";
import type {
  AppendKvArgs,
  AttentionArgs,
  BatchArgs,
  KvArgs,
  RopeApplyArgs,
  RopeRowsArgs,
} from "./types";

function batch(a: BatchArgs): void {
  num(a.batchSize);
  num(a.totalQ);
  num(a.maxQLen);
  num(a.maxKvLen);
  num(a.uniformQLen);
  num(a.uniformKvLen);
  ref(a.cuSeqlensQ);
  ref(a.cuSeqlensK);
  ref(a.kvLens);
}

function kv(a: KvArgs): void {
  rows(a.k);
  rows(a.v);
  num(a.stridePage);
  num(a.totalKv);
  num(a.pageSize);
  num(a.numPages);
  num(a.maxPages);
  num(a.tableRows);
  ref(a.pageTable);
  ref(a.tableRow);
}

function attentionArgs(device: number, a: AttentionArgs): number {
  begin(device);
  rows(a.q);
  ref(a.o);
  ref(a.lse);
  ref(a.sinkLogits);
  ref(a.prefixLens);
  kv(a.kv);
  batch(a.batch);
  num(DTYPE_CODE[a.dtype]);
  num(a.numQHeads);
  num(a.numKvHeads);
  num(a.headDim);
  num(a.smScale);
  num(a.softCap);
  num(a.causal ? 1 : 0);
  num(a.window);
  num(a.sinkTokens);
  num(a.prefixLen);
  num(a.fixedSplit);
  return count();
}

export function attention(device: number, a: AttentionArgs): void {
  addon.attention(attentionArgs(device, a));
}

/** The name of the kernel that `attention` would run. */
export function explainAttention(device: number, a: AttentionArgs): string {
  return addon.explainAttention(attentionArgs(device, a));
}

export function ropeRows(device: number, a: RopeRowsArgs): void {
  begin(device);
  ref(a.rope.invFreq);
  ref(a.rope.longInvFreq);
  num(a.rope.base);
  num(a.rope.dynamicFactor);
  num(a.rope.attentionFactor);
  num(a.rope.longAttentionFactor);
  num(a.rope.half);
  num(a.rope.originalMax);
  ref(a.positions);
  num(a.seqLen);
  batch(a.batch);
  num(a.maxKvLen);
  num(a.rows);
  ref(a.cosSin);
  addon.ropeRows(count());
}

export function ropeApply(device: number, a: RopeApplyArgs): void {
  begin(device);
  rows(a.x);
  ref(a.out);
  ref(a.cosSin);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.numHeads);
  num(a.headDim);
  num(a.half);
  num(a.interleaved ? 1 : 0);
  addon.ropeApply(count());
}

export function appendKv(device: number, a: AppendKvArgs): void {
  begin(device);
  rows(a.q);
  ref(a.qOut);
  rows(a.k);
  rows(a.v);
  ref(a.cosSin);
  kv(a.kv);
  batch(a.batch);
  num(DTYPE_CODE[a.dtype]);
  num(a.numQHeads);
  num(a.numKvHeads);
  num(a.headDim);
  num(a.half);
  num(a.interleaved ? 1 : 0);
  addon.appendKv(count());
}
