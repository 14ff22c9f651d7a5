// The typed seam: the only file that touches the addon. Each operation writes its arguments, in the order written
// here, into one block of doubles that the addon reads in the same order (csrc/binding/ops.cc): a call costs one
// crossing and no allocation, and the addon checks the count, every handle and every extent before it enqueues.

import type { DType } from "./dtype";
import { loadAddon } from "./load";

/** Device memory, owned by the addon. `id` is what operations pass; the object's finalizer is the safety net. */
export interface MemoryHandle {
  readonly id: number;
}

/** A place in device memory: a live handle's id and a byte offset. id 0: no tensor. */
export interface Ref {
  readonly id: number;
  readonly offset: number;
}

/** A ref and the elements from one row to the next. */
export interface RowsRef extends Ref {
  readonly stride: number;
}

/** BatchView of cuda/params.h. */
export interface BatchArgs {
  batchSize: number;
  totalQ: number;
  maxQLen: number;
  maxKvLen: number;
  uniformQLen: number;
  uniformKvLen: number;
  cuSeqlensQ: Ref | null;
  cuSeqlensK: Ref | null;
  kvLens: Ref | null;
}

/** KvView of cuda/params.h. `v` is null for pages. */
export interface KvArgs {
  k: RowsRef;
  v: RowsRef | null;
  stridePage: number;
  totalKv: number;
  pageSize: number;
  numPages: number;
  maxPages: number;
  tableRows: number;
  pageTable: Ref | null;
  tableRow: Ref | null;
}

export interface AttentionArgs {
  q: RowsRef;
  o: Ref;
  lse: Ref | null;
  sinkLogits: Ref | null;
  prefixLens: Ref | null;
  kv: KvArgs;
  batch: BatchArgs;
  dtype: DType;
  numQHeads: number;
  numKvHeads: number;
  headDim: number;
  smScale: number;
  softCap: number;
  causal: boolean;
  window: number;
  sinkTokens: number;
  prefixLen: number;
  fixedSplit: number;
}

/** RopeParams of cuda/params.h. */
export interface RopeArgs {
  invFreq: Ref;
  longInvFreq: Ref | null;
  base: number;
  dynamicFactor: number;
  attentionFactor: number;
  longAttentionFactor: number;
  half: number;
  originalMax: number;
}

export interface RopeRowsArgs {
  rope: RopeArgs;
  positions: Ref | null;
  seqLen: number;
  batch: BatchArgs;
  maxKvLen: number;
  rows: number;
  cosSin: Ref;
}

export interface RopeApplyArgs {
  x: RowsRef;
  out: Ref;
  cosSin: Ref;
  dtype: DType;
  rows: number;
  numHeads: number;
  headDim: number;
  half: number;
  interleaved: boolean;
}

export interface AppendKvArgs {
  q: RowsRef | null;
  qOut: Ref | null;
  k: RowsRef;
  v: RowsRef;
  cosSin: Ref | null;
  kv: KvArgs;
  batch: BatchArgs;
  dtype: DType;
  numQHeads: number;
  numKvHeads: number;
  headDim: number;
  half: number;
  interleaved: boolean;
}

export interface DeviceInfo {
  kind: "cpu" | "cuda";
  index: number;
  name: string;
  arch: string;
  parallelism: number;
  linear: string;
  driverVersion: number;
  runtimeVersion: number;
  sharedMemoryBytes: number;
}

/** Bytes. */
export interface MemoryInfo {
  total: number;
  free: number;
  allocated: number;
  cached: number;
}

export interface CudaProbe {
  compiled: boolean;
  usable: boolean;
  deviceCount: number;
  driverVersion: number;
  runtimeVersion: number;
  error: number;
  reason: string;
  builtArchs: string;
}

/** What the addon exports. `device` is a small integer; every function throws an Error with a `code`. */
export interface Addon {
  readonly args: Float64Array;
  probeCuda(): CudaProbe;
  openDevice(kind: "cpu" | "cuda", index: number): number;
  /** Releases everything the device owns once its queue is empty; ids of its memory are dead at once. */
  closeDevice(device: number): void;
  deviceInfo(device: number): DeviceInfo;
  memoryInfo(device: number): MemoryInfo;
  trim(device: number): void;

  allocate(device: number, bytes: number): MemoryHandle;
  free(id: number): void;
  /** Live buffers of this environment: for leak tests. */
  liveBuffers(): number;

  /** src: a typed array or DataView's bytes; `from` and `to` are dtype codes; copies before it returns. */
  upload(
    id: number,
    offset: number,
    to: number,
    src: ArrayBufferView,
    from: number,
    elements: number,
  ): void;
  copy(dst: number, dstOffset: number, src: number, srcOffset: number, bytes: number): void;
  fill(id: number, offset: number, value: number, bytes: number): void;
  convert(
    dst: number,
    dstOffset: number,
    to: number,
    src: number,
    srcOffset: number,
    from: number,
    elements: number,
  ): void;
  /** Writes pairs (index, value) into an int32 buffer of `elements` words at `offset`. */
  scatter(id: number, offset: number, elements: number, pairs: Int32Array, numPairs: number): void;
  read(
    id: number,
    offset: number,
    from: number,
    to: number,
    elements: number,
  ): Promise<ArrayBuffer>;
  synchronize(device: number): Promise<void>;
  /** Loads a byte range of a file straight into device memory on a native thread (never through the event loop). */
  loadFile(
    id: number,
    offset: number,
    to: number,
    path: string,
    position: number,
    from: number,
    elements: number,
  ): Promise<void>;

  beginCapture(device: number): void;
  endCapture(device: number): { readonly id: number };
  abortCapture(device: number): void;
  replay(graph: number): void;
  freeGraph(graph: number): void;

  // Each reads `count` doubles of `args`.
  attention(count: number): void;
  explainAttention(count: number): string;
  ropeRows(count: number): void;
  ropeApply(count: number): void;
  appendKv(count: number): void;
  repeatKv(count: number): void;
  sliceWindow(count: number): void;
  mergeStates(count: number): void;
  copyPages(count: number, pairs: Int32Array): void;
  embedding(count: number): void;
  linear(count: number): void;
  rmsNorm(count: number): void;
  add(count: number): void;
  siluMul(count: number): void;
  topK(count: number): void;
  sample(count: number): void;
  gatherRows(count: number): void;
}

export const DTYPE_CODE: Record<DType, number> = { float32: 0, float16: 1, bfloat16: 2, int32: 3 };

export const addon: Addon = loadAddon();
const args = addon.args;
let n = 0;

function num(value: number): void {
  args[n++] = value;
}
function ref(value: Ref | null): void {
  args[n++] = value === null ? 0 : value.id;
  args[n++] = value === null ? 0 : value.offset;
}
function rows(value: RowsRef | null): void {
  ref(value);
  args[n++] = value === null ? 0 : value.stride;
}
function begin(device: number): void {
  n = 0;
  num(device);
}

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
  return n;
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
  addon.ropeRows(n);
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
  addon.ropeApply(n);
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
  addon.appendKv(n);
}

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
  addon.repeatKv(n);
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
  addon.sliceWindow(n);
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
  addon.mergeStates(n);
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
  addon.copyPages(n, a.pairs);
}

export function embedding(
  device: number,
  a: {
    table: Ref;
    ids: Ref;
    out: Ref;
    dtype: DType;
    rows: number;
    vocabSize: number;
    width: number;
  },
): void {
  begin(device);
  ref(a.table);
  ref(a.ids);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.vocabSize);
  num(a.width);
  addon.embedding(n);
}

export function linear(
  device: number,
  a: {
    x: RowsRef;
    weight: Ref;
    bias: Ref | null;
    residual: Ref | null;
    out: Ref;
    dtype: DType;
    outDtype: DType;
    rows: number;
    inFeatures: number;
    outFeatures: number;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.weight);
  ref(a.bias);
  ref(a.residual);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(DTYPE_CODE[a.outDtype]);
  num(a.rows);
  num(a.inFeatures);
  num(a.outFeatures);
  addon.linear(n);
}

export function rmsNorm(
  device: number,
  a: {
    x: RowsRef;
    weight: Ref;
    out: Ref;
    dtype: DType;
    rows: number;
    numGroups: number;
    width: number;
    eps: number;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.weight);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.numGroups);
  num(a.width);
  num(a.eps);
  addon.rmsNorm(n);
}

export function add(
  device: number,
  a: { a: Ref; b: Ref; out: Ref; dtype: DType; elements: number },
): void {
  begin(device);
  ref(a.a);
  ref(a.b);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.elements);
  addon.add(n);
}

export function siluMul(
  device: number,
  a: { gate: RowsRef; up: RowsRef; out: Ref; dtype: DType; rows: number; width: number },
): void {
  begin(device);
  rows(a.gate);
  rows(a.up);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.width);
  addon.siluMul(n);
}

export function topK(
  device: number,
  a: {
    logits: Ref;
    ids: Ref;
    logProbs: Ref;
    dtype: DType;
    rows: number;
    vocabSize: number;
    k: number;
  },
): void {
  begin(device);
  ref(a.logits);
  ref(a.ids);
  ref(a.logProbs);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.vocabSize);
  num(a.k);
  addon.topK(n);
}

export function sample(
  device: number,
  a: {
    logits: Ref;
    ids: Ref;
    logProbs: Ref | null;
    temperature: Ref;
    topK: Ref;
    topP: Ref;
    seed: Ref;
    counter: Ref;
    dtype: DType;
    rows: number;
    vocabSize: number;
  },
): void {
  begin(device);
  ref(a.logits);
  ref(a.ids);
  ref(a.logProbs);
  ref(a.temperature);
  ref(a.topK);
  ref(a.topP);
  ref(a.seed);
  ref(a.counter);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.vocabSize);
  addon.sample(n);
}

export function gatherRows(
  device: number,
  a: {
    x: RowsRef;
    index: Ref;
    out: Ref;
    dtype: DType;
    numRows: number;
    outRows: number;
    width: number;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.index);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.numRows);
  num(a.outRows);
  num(a.width);
  addon.gatherRows(n);
}
