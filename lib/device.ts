// Declarations name Disposable and Symbol.dispose: who compiles against them need not add its lib.
/// <reference lib="esnext.disposable" preserve="true" />

import { KvCache, type KvCacheConfig } from "./cache/kv-cache";
import {
  checkInternal,
  checkOneOf,
  checkOptions,
  checkShape,
  elementCount,
  INTERNAL,
  show,
} from "./check";
import { DTYPES, type DType, dtypeBytes } from "./dtype";
import { failure, invalid } from "./errors";
import { Graph } from "./graph";
import { dtypeOfData, hostValues, type TensorData } from "./host-values";
import { Memory } from "./memory";
import { addon, type DeviceInfo, DTYPE_CODE, type MemoryInfo } from "./native";
import { type RopeConfig, RopeTable } from "./rope";
import { Tensor } from "./tensor";

/** Where to compute: "auto" takes CUDA where it is usable and else the CPU; "cuda" is "cuda:0". */
export type DeviceName = "auto" | "cpu" | "cuda" | `cuda:${number}`;

function wanted(which: unknown): { kind: "auto" | "cpu" | "cuda"; index: number } {
  const fromEnvironment = which === undefined ? process.env.FLASH_GQA_DEVICE : undefined;
  const name = which ?? (fromEnvironment || "auto");
  const match = typeof name === "string" ? /^(auto|cpu|cuda)(?::(\d{1,3}))?$/.exec(name) : null;
  if (match === null || (match[2] !== undefined && match[1] !== "cuda")) {
    const source = fromEnvironment ? "FLASH_GQA_DEVICE" : "which";
    throw invalid(
      "Device.open",
      `${source} expected "auto", "cpu", "cuda" or "cuda:N", got ${show(name)}`,
    );
  }
  return { kind: match[1] as "auto" | "cpu" | "cuda", index: Number(match[2] ?? 0) };
}

const ISAS = ["portable", "avx2", "avx512"];

/** The addon takes what it does not know for no limit. */
function checkIsa(): void {
  const isa = process.env.FLASH_GQA_ISA;
  if (!isa || ISAS.includes(isa)) return;
  throw invalid(
    "Device.open",
    `FLASH_GQA_ISA expected one of ${ISAS.join(", ")}, got ${show(isa)}`,
  );
}

/**
 * A CPU or a GPU with one in-order queue. Operations enqueue and return; waiting happens in
 * `tensor.read()` and `device.synchronize()`, off the event loop.
 */
export class Device {
  /** "cpu" or "cuda". */
  readonly kind: "cpu" | "cuda";
  /** Why this one: "cpu: no NVIDIA driver found …". */
  readonly reason: string;
  /** @internal What the addon calls this device. */
  readonly handle: number;
  /** @internal The graph that is being captured. */
  recording: Graph | null = null;
  #disposed = false;
  // Tensors made inside running tidy() calls, innermost last.
  readonly #scopes: Array<Set<Tensor>> = [];

  private constructor(key: symbol, kind: "cpu" | "cuda", index: number, why: string) {
    checkInternal(key, "Device", "await Device.open()");
    this.handle = addon.openDevice(kind, index);
    this.kind = kind;
    this.reason = `${kind}: ${why}`;
  }

  /**
   * Opens a device. `which` defaults to the environment's FLASH_GQA_DEVICE, else "auto".
   * Rejects with INVALID_ARGUMENT, and with DEVICE where CUDA is asked for and cannot run.
   */
  static async open(which?: DeviceName): Promise<Device> {
    const { kind, index } = wanted(which);
    checkIsa();
    if (kind === "cpu") return new Device(INTERNAL, "cpu", 0, "asked for");
    const probe = addon.probeCuda();
    if (probe.usable) {
      const why = kind === "cuda" ? "asked for" : `usable, the first of ${probe.deviceCount}`;
      return new Device(INTERNAL, "cuda", index, why);
    }
    if (kind === "auto") return new Device(INTERNAL, "cpu", 0, probe.reason);
    throw failure(
      "DEVICE",
      "Device.open",
      `CUDA cannot be used here, ${probe.reason}`,
      'open "cpu", or "auto" to take what there is',
    );
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * Name, architecture, threads or multiprocessors, what computes `linear`, versions. Throws
   * DISPOSED.
   */
  info(): DeviceInfo {
    this.live("Device.info");
    return addon.deviceInfo(this.handle);
  }

  /**
   * Bytes: total and free of the device, allocated by live tensors, cached for reuse. Throws
   * DISPOSED.
   */
  memory(): MemoryInfo {
    this.live("Device.memory");
    return addon.memoryInfo(this.handle);
  }

  /**
   * A tensor of host values, which are copied before the call returns. dtype defaults to the
   * data's: float32 for Float32Array and number[], int32, float16; a Uint16Array needs "bfloat16"
   * or "float16". Throws INVALID_ARGUMENT, OUT_OF_MEMORY, DISPOSED, and BUSY inside `capture`.
   */
  tensor(data: TensorData, shape: readonly number[], options?: { dtype?: DType }): Tensor {
    const operation = "Device.tensor";
    this.live(operation);
    this.notCapturing(operation);
    const sizes = checkShape(operation, shape);
    const { dtype } = checkOptions(operation, options, ["dtype"]);
    const type =
      dtype === undefined
        ? dtypeOfData(operation, data)
        : checkOneOf(operation, "dtype", dtype, DTYPES);
    const values = hostValues(operation, data, type, elementCount(sizes));
    const tensor = this.allocate(operation, sizes, type);
    if (values.elements === 0) return tensor;
    const { id, offset } = tensor.ref(operation);
    const { view, from, elements } = values;
    try {
      addon.upload(id, offset, DTYPE_CODE[type], view, DTYPE_CODE[from], elements);
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  /**
   * A tensor with undefined contents; dtype defaults to float32. Throws INVALID_ARGUMENT,
   * OUT_OF_MEMORY, DISPOSED.
   */
  empty(shape: readonly number[], dtype: DType = "float32"): Tensor {
    const operation = "Device.empty";
    return this.allocate(operation, shape, checkOneOf(operation, "dtype", dtype, DTYPES));
  }

  /**
   * A tensor of zeros; dtype defaults to float32. Throws INVALID_ARGUMENT, OUT_OF_MEMORY, DISPOSED.
   */
  zeros(shape: readonly number[], dtype: DType = "float32"): Tensor {
    const operation = "Device.zeros";
    const type = checkOneOf(operation, "dtype", dtype, DTYPES);
    const tensor = this.allocate(operation, shape, type);
    if (tensor.size === 0) return tensor;
    const { id, offset } = tensor.ref(operation);
    addon.fill(id, offset, 0, tensor.byteLength);
    return tensor;
  }

  /**
   * The rotation frequencies of a model, for `rope`, `appendKv` and `createCache`. Throws
   * INVALID_ARGUMENT.
   */
  rope(config: RopeConfig): RopeTable {
    this.live("Device.rope");
    return RopeTable.make(this, config);
  }

  /** A paged KV cache on this device. Throws INVALID_ARGUMENT, OUT_OF_MEMORY, DISPOSED. */
  createCache(config: KvCacheConfig): KvCache {
    this.live("Device.createCache");
    return KvCache.make(this, config);
  }

  /**
   * Runs `fn` and disposes every tensor made inside it but those that it returns: a tensor, or an
   * array or plain object that holds some. `fn` is synchronous; where it throws, all are disposed.
   */
  tidy<T>(fn: () => T): T {
    const operation = "Device.tidy";
    this.live(operation);
    if (typeof fn !== "function")
      throw invalid(operation, `fn expected a function, got ${show(fn)}`);
    const scope = new Set<Tensor>();
    this.#scopes.push(scope);
    let result: T;
    try {
      result = fn();
      if (typeof result === "object" && result !== null && "then" in result) {
        throw invalid(
          operation,
          "fn returned a promise",
          "await outside, and tidy the parts between",
        );
      }
      for (const tensor of tensorsIn(result)) scope.delete(tensor);
    } finally {
      this.#scopes.pop();
      for (const tensor of scope) tensor.dispose();
    }
    for (const tensor of tensorsIn(result)) this.track(tensor);
    return result;
  }

  /**
   * Records the operations that `fn` enqueues, without running them, for `graph.replay()`. Inside,
   * host data cannot be uploaded, nothing can be read or waited for, and no step planned: that
   * throws BUSY. `fn` is synchronous; where it throws, the capture is dropped.
   */
  capture(fn: () => unknown): Graph {
    this.live("Device.capture");
    return Graph.capture(this, fn);
  }

  /**
   * Resolves when everything enqueued so far has run. Rejects with DEVICE or INVALID_ARGUMENT where
   * an operation failed on the device, with DISPOSED, and with BUSY inside `capture`.
   */
  async synchronize(): Promise<void> {
    const operation = "Device.synchronize";
    this.live(operation);
    this.notCapturing(operation);
    await addon.synchronize(this.handle);
  }

  /**
   * Ends the device: its tensors, graphs and caches are dead at once, their memory goes behind the
   * queue.
   */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    addon.closeDevice(this.handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  live(operation: string): void {
    if (!this.#disposed) return;
    throw failure("DISPOSED", operation, "the device has been disposed", "open a new one");
  }

  /** @internal Refuses what cannot be part of a graph. */
  notCapturing(operation: string): void {
    if (this.recording === null) return;
    throw failure(
      "BUSY",
      operation,
      "cannot run inside Device.capture",
      "move it before or after, and make host arrays tensors before the capture",
    );
  }

  /** @internal */
  track(tensor: Tensor): void {
    this.#scopes.at(-1)?.add(tensor);
  }

  /** @internal */
  untrack(tensor: Tensor): void {
    for (const scope of this.#scopes) scope.delete(tensor);
  }

  /** @internal `empty` for `operation`, which its errors name. */
  allocate(operation: string, shape: readonly number[], dtype: DType): Tensor {
    this.live(operation);
    const sizes = checkShape(operation, shape);
    const memory = new Memory(operation, this, elementCount(sizes) * dtypeBytes(dtype));
    return Tensor.view(this, memory, dtype, sizes, elementCount(sizes, 1), 0);
  }
}

/**
 * The tensors in what tidy's function returned: itself, or in arrays and plain objects, which may
 * be circular.
 */
function* tensorsIn(value: unknown, seen: Set<unknown> = new Set()): Generator<Tensor> {
  if (Tensor.isTensor(value)) yield value;
  if (typeof value !== "object" || value === null || seen.has(value)) return;
  seen.add(value);
  // A plain object's prototype is the end of the chain, in whatever realm it was made.
  const prototype: unknown = Object.getPrototypeOf(value);
  const isPlain = prototype === null || Object.getPrototypeOf(prototype) === null;
  if (!Array.isArray(value) && !isPlain) return;
  for (const item of Object.values(value)) yield* tensorsIn(item, seen);
}
