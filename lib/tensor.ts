import {
  checkInt,
  checkInternal,
  checkOneOf,
  checkOptions,
  checkShape,
  elementCount,
  INTERNAL,
  show,
  showShape,
} from "./check";
import type { Device } from "./device";
import { DTYPES, type DType, dtypeBytes } from "./dtype";
import { failure, invalid } from "./errors";
import { type Extent, extentsOverlap } from "./extent";
import { hostValues, type TensorData } from "./host-values";
import type { Memory } from "./memory";
import { addon, DTYPE_CODE, type Ref, type RowsRef } from "./native";
import { copyTensor, packRows } from "./tensor-copy";

export type { Float16ArrayLike, TensorData } from "./host-values";

/**
 * Numbers on a device: `shape[0]` rows, each contiguous, one `rowStride` elements after the other.
 * Tensors are views: several may look into the same memory, which lives until the last of them is
 * disposed.
 *
 * Made by `device.tensor`, `device.empty`, `device.zeros` and by operations.
 */
export class Tensor {
  readonly device: Device;
  readonly dtype: DType;
  /** Sizes in elements, 1 to 8 of them. A size may be 0. */
  readonly shape: readonly number[];
  /** Elements from one row (index of axis 0) to the next. */
  readonly rowStride: number;
  /** Elements: the product of `shape`. */
  readonly size: number;
  /** Elements of one row. */
  readonly rowElements: number;
  readonly #offset: number;
  #memory: Memory | null;

  private constructor(
    key: symbol,
    device: Device,
    memory: Memory,
    dtype: DType,
    shape: readonly number[],
    rowStride: number,
    offset: number,
  ) {
    checkInternal(key, "Tensor", "device.tensor(data, shape)");
    this.device = device;
    this.dtype = dtype;
    this.shape = shape;
    this.rowStride = rowStride;
    this.size = elementCount(shape);
    this.rowElements = elementCount(shape, 1);
    this.#offset = offset;
    this.#memory = memory;
    device.track(this);
  }

  /** @internal `offset` in bytes; takes over one ownership of `memory`. */
  static view(
    device: Device,
    memory: Memory,
    dtype: DType,
    shape: readonly number[],
    rowStride: number,
    offset: number,
  ): Tensor {
    return new Tensor(INTERNAL, device, memory, dtype, shape, rowStride, offset);
  }

  /** Whether `value` is a Tensor, made by this copy of the module. */
  static isTensor(value: unknown): value is Tensor {
    return typeof value === "object" && value !== null && #memory in value;
  }

  /** Bytes of the elements; rows that a view skips are not counted. */
  get byteLength(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  /** True after `dispose()`, and when the device is disposed. */
  get disposed(): boolean {
    return this.#memory === null || this.device.disposed;
  }

  /** Whether the rows follow each other without a gap. */
  get contiguous(): boolean {
    return this.size === 0 || this.shape[0] === 1 || this.rowStride === this.rowElements;
  }

  /**
   * A view of the indices [start, end) of an axis. Axis 0 and axis 1 can be cut; deeper axes only
   * be taken whole. Throws INVALID_ARGUMENT, DISPOSED.
   */
  slice(axis: number, start: number, end?: number): Tensor {
    const operation = "Tensor.slice";
    const memory = this.#live(operation);
    const dim = checkInt(operation, "axis", axis, 0, this.shape.length - 1);
    const size = this.shape[dim]!;
    const to = end === undefined ? size : checkInt(operation, "end", end, 0, size);
    const from = checkInt(operation, "start", start, 0, to);
    if (dim > 1 && to - from !== size) {
      throw invalid(
        operation,
        `axis ${dim} can only be taken whole, [0, ${size}), got [${from}, ${to})`,
        "reshape so that it becomes axis 1",
      );
    }
    const shape = Object.freeze(this.shape.with(dim, to - from));
    const step = dim === 0 ? this.rowStride : elementCount(this.shape, dim + 1);
    return this.#view(memory, shape, this.rowStride, from * step);
  }

  /**
   * A view with another shape of as many elements. Where rows are not contiguous the first size
   * must stay. Throws INVALID_ARGUMENT, DISPOSED.
   */
  reshape(shape: readonly number[]): Tensor {
    const operation = "Tensor.reshape";
    const memory = this.#live(operation);
    const sizes = checkShape(operation, shape);
    if (elementCount(sizes) !== this.size) {
      const expected = `${this.size} elements, as ${showShape(this.shape)} has`;
      throw invalid(operation, `shape expected ${expected}, got ${showShape(sizes)}`);
    }
    const row = elementCount(sizes, 1);
    if (this.contiguous) return this.#view(memory, sizes, row, 0);
    if (sizes[0] === this.shape[0]) return this.#view(memory, sizes, this.rowStride, 0);
    const expected = `${this.shape[0]} first, as rows lie ${this.rowStride} elements apart`;
    throw invalid(
      operation,
      `shape expected ${expected}, got ${showShape(sizes)}`,
      "clone() it first",
    );
  }

  /**
   * The values once the queue has got here: Int32Array for int32, else Float32Array. Waits off the
   * event loop. Rejects with DISPOSED, with BUSY inside `device.capture`, and with DEVICE or
   * INVALID_ARGUMENT where an operation enqueued before has failed.
   */
  async read(): Promise<Float32Array | Int32Array> {
    const to = this.dtype === "int32" ? "int32" : "float32";
    const buffer = await this.#readAs("Tensor.read", to);
    return to === "int32" ? new Int32Array(buffer) : new Float32Array(buffer);
  }

  /**
   * As `read`, without conversion: Uint16Array for 16-bit dtypes, Uint32Array for float32,
   * Int32Array for int32.
   */
  async readBits(): Promise<Uint16Array | Uint32Array | Int32Array> {
    const buffer = await this.#readAs("Tensor.readBits", this.dtype);
    if (this.dtype === "int32") return new Int32Array(buffer);
    return this.dtype === "float32" ? new Uint32Array(buffer) : new Uint16Array(buffer);
  }

  /**
   * Overwrites the contents, in queue order. Data is copied before the call returns and converted
   * as by `device.tensor`; a tensor of the same shape is copied on the device and may be captured.
   * Returns this tensor. Throws INVALID_ARGUMENT, DISPOSED, and BUSY for host data inside
   * `device.capture`.
   */
  write(data: TensorData | Tensor): this {
    const operation = "Tensor.write";
    const memory = this.#live(operation);
    if (Tensor.isTensor(data)) {
      data.expectLive(operation, "data");
      copyTensor(operation, this, data);
      return this;
    }
    const values = hostValues(operation, data, this.dtype, this.size);
    this.device.notCapturing(operation);
    if (this.size === 0) return this;
    if (this.contiguous) {
      addon.upload(
        memory.id,
        this.#offset,
        DTYPE_CODE[this.dtype],
        values.view,
        DTYPE_CODE[values.from],
        values.elements,
      );
      return this;
    }
    const staged = this.device.allocate(operation, this.shape, this.dtype);
    try {
      staged.write(data);
      copyTensor(operation, this, staged);
    } finally {
      staged.dispose();
    }
    return this;
  }

  /**
   * Overwrites the contents with `size` elements of a file, from byte `position` on, little-endian
   * and stored as `dtype` (default: this tensor's). A native thread carries them; the event loop
   * never does. The tensor must be contiguous. Rejects with INVALID_ARGUMENT, DISPOSED,
   * CORRUPT_DATA where the file is too short, DEVICE, BUSY.
   */
  async load(path: string, options?: { position?: number; dtype?: DType }): Promise<this> {
    const operation = "Tensor.load";
    this.#live(operation);
    this.device.notCapturing(operation);
    if (typeof path !== "string" || path === "" || path.includes("\0")) {
      throw invalid(operation, `path expected the name of a file, got ${show(path)}`);
    }
    const given = checkOptions(operation, options, ["position", "dtype"]);
    const most = Number.MAX_SAFE_INTEGER;
    const position = checkInt(operation, "position", given.position ?? 0, 0, most);
    const from = checkOneOf(operation, "dtype", given.dtype ?? this.dtype, DTYPES);
    if ((from === "int32") !== (this.dtype === "int32")) {
      throw invalid(operation, `dtype expected one that becomes ${this.dtype}, got ${from}`);
    }
    if (!this.contiguous) {
      throw invalid(
        operation,
        "this tensor has gaps between its rows",
        "load into a contiguous one",
      );
    }
    if (this.size === 0) return this;
    const { id, offset } = this.ref(operation);
    const to = DTYPE_CODE[this.dtype];
    await addon.loadFile(id, offset, to, path, position, DTYPE_CODE[from], this.size);
    return this;
  }

  /**
   * A contiguous copy of another float dtype; of the same dtype, a clone. Throws INVALID_ARGUMENT,
   * DISPOSED.
   */
  to(dtype: DType): Tensor {
    const operation = "Tensor.to";
    this.#live(operation);
    const target = checkOneOf(operation, "dtype", dtype, DTYPES);
    if (target === this.dtype) return this.clone();
    if (target === "int32" || this.dtype === "int32") {
      throw invalid(
        operation,
        `dtype expected two float dtypes, got ${this.dtype} to ${target}`,
        "read() it and make a new tensor",
      );
    }
    const copy = this.device.allocate(operation, this.shape, target);
    copyTensor(operation, copy, this);
    return copy;
  }

  /** A contiguous copy. Throws DISPOSED, OUT_OF_MEMORY. */
  clone(): Tensor {
    const operation = "Tensor.clone";
    this.#live(operation);
    const copy = this.device.allocate(operation, this.shape, this.dtype);
    copyTensor(operation, copy, this);
    return copy;
  }

  /**
   * Gives this view up; may be called again. The memory goes with its last view, behind the work
   * enqueued on it.
   */
  dispose(): void {
    const memory = this.#memory;
    if (memory === null) return;
    this.#memory = null;
    this.device.untrack(this);
    memory.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal A view of the same bits as numbers of another dtype, as wide as this one. */
  reinterpret(dtype: DType): Tensor {
    const memory = this.#live("Tensor.reinterpret").retain();
    const { device, shape, rowStride } = this;
    return Tensor.view(device, memory, dtype, shape, rowStride, this.#offset);
  }

  /** @internal Throws DISPOSED, naming the argument. */
  expectLive(operation: string, name: string): void {
    this.#live(operation, name);
  }

  /** @internal Where the first element lies. */
  ref(operation: string, name: string = "tensor"): Ref {
    const memory = this.#live(operation, name);
    return { id: memory.id, offset: this.#offset };
  }

  /** @internal `ref` and the elements from one row to the next: of axis 0, unless told. */
  rows(operation: string, name: string = "tensor", stride: number = this.rowStride): RowsRef {
    const memory = this.#live(operation, name);
    return { id: memory.id, offset: this.#offset, stride };
  }

  /** @internal Bytes from the start of its memory: what alignment is judged by. */
  get byteOffset(): number {
    return this.#offset;
  }

  /**
   * @internal Whether a byte may belong to both. Interleaved columns of one memory count as apart.
   */
  overlaps(other: Tensor): boolean {
    if (this.#memory === null || this.#memory !== other.#memory) return false;
    return extentsOverlap(this.#extent(), other.#extent());
  }

  #extent(): Extent {
    const bytes = dtypeBytes(this.dtype);
    return {
      offset: this.#offset,
      rows: this.size === 0 ? 0 : this.shape[0]!,
      stride: this.rowStride * bytes,
      width: this.rowElements * bytes,
    };
  }

  #live(operation: string, name?: string): Memory {
    if (this.#memory !== null && !this.device.disposed) return this.#memory;
    const what = this.#memory === null ? "tensor" : "tensor's device";
    const argument = name === undefined ? "this" : name === "tensor" ? "a" : `${name}, a`;
    throw failure(
      "DISPOSED",
      operation,
      `${argument} ${what} ${showShape(this.shape)} has been disposed`,
      "dispose it after its last use",
    );
  }

  #view(memory: Memory, shape: readonly number[], rowStride: number, skip: number): Tensor {
    const offset = this.#offset + skip * dtypeBytes(this.dtype);
    return Tensor.view(this.device, memory.retain(), this.dtype, shape, rowStride, offset);
  }

  async #readAs(operation: string, to: DType): Promise<ArrayBuffer> {
    this.#live(operation);
    this.device.notCapturing(operation);
    if (this.size === 0) return new ArrayBuffer(0);
    const source = this.contiguous ? this : packRows(operation, this);
    try {
      const { id, offset } = source.ref(operation);
      return await addon.read(id, offset, DTYPE_CODE[this.dtype], DTYPE_CODE[to], this.size);
    } finally {
      if (source !== this) source.dispose();
    }
  }
}
