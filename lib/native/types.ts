// What crosses the seam: the addon's functions, and the arguments of operations with several parts.

import type { DType } from "../dtype";

/**
 * Device memory, owned by the addon. `id` is what operations pass; the object's finalizer is the
 * safety net.
 */
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

/**
 * What the addon exports. `device` is a small integer; every function throws an Error with a
 * `code`.
 */
export interface Addon {
  readonly args: Float64Array;
  probeCuda(): CudaProbe;
  openDevice(kind: "cpu" | "cuda", index: number): number;
  /**
   * Releases everything the device owns once its queue is empty; ids of its memory are dead at
   * once.
   */
  closeDevice(device: number): void;
  deviceInfo(device: number): DeviceInfo;
  memoryInfo(device: number): MemoryInfo;
  trim(device: number): void;

  allocate(device: number, bytes: number): MemoryHandle;
  /** Host memory for `movePages` alone: pinned where the device is none of the host's. Made by the first move to it. */
  allocateHost(device: number, bytes: number): MemoryHandle;
  free(id: number): void;
  /** Live buffers of this environment: for leak tests. */
  liveBuffers(): number;

  /**
   * src: a typed array or DataView's bytes; `from` and `to` are dtype codes; copies before it
   * returns.
   */
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
  /**
   * Loads a byte range of a file straight into device memory on a native thread (never through the
   * event loop).
   */
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
  /** runs: [numRuns, 3] of (page, page on the host, count), read before it returns. */
  movePages(count: number, runs: Int32Array): Promise<void>;
  embedding(count: number): void;
  linear(count: number): void;
  rmsNorm(count: number): void;
  add(count: number): void;
  siluMul(count: number): void;
  topK(count: number): void;
  sample(count: number): void;
  gatherRows(count: number): void;
}
