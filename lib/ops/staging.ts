// Small arguments that a user gives as host arrays or as device tensors: lengths, offsets, page
// tables, logits.

import { checkFloats, checkInts, hostCopy } from "../check";
import type { Device } from "../device";
import type { DType } from "../dtype";
import type { Ref } from "../native";
import { Tensor } from "../tensor";
import { expectContiguous, tensorArgument } from "./arguments";

/**
 * int32 values: on the host, where they are checked at once, or on the device, where kernels bound
 * them.
 */
export type Ints = Int32Array | readonly number[] | Tensor;

/** float32 values, on the host or on the device. */
export type Floats = Float32Array | readonly number[] | Tensor;

/** A checked argument of 32-bit words. `host` is null where it lies on the device. */
export interface Words {
  readonly length: number;
  readonly host: Int32Array | null;
  readonly tensor: Tensor | null;
}

export interface Limits {
  length?: number;
  min?: number;
  max?: number;
}

function deviceWords(
  operation: string,
  name: string,
  value: Tensor,
  device: Device,
  dtype: DType,
  length: number | undefined,
): Words {
  const tensor = tensorArgument(operation, name, value, [length ?? "length"], { device, dtype });
  expectContiguous(operation, name, tensor);
  return { length: tensor.size, host: null, tensor };
}

export function hostWords(host: Int32Array): Words {
  return { length: host.length, host, tensor: null };
}

export function intWords(
  operation: string,
  name: string,
  value: unknown,
  device: Device,
  limits: Limits = {},
): Words {
  if (Tensor.isTensor(value)) {
    return deviceWords(operation, name, value, device, "int32", limits.length);
  }
  return hostWords(checkInts(operation, name, value, limits));
}

export function floatWords(
  operation: string,
  name: string,
  value: unknown,
  device: Device,
  limits: Limits = {},
): Words {
  if (Tensor.isTensor(value)) {
    return deviceWords(operation, name, value, device, "float32", limits.length);
  }
  return hostWords(new Int32Array(checkFloats(operation, name, value, limits).buffer));
}

const nothing = () => null;

/**
 * Uploads the host words of one call together, as one small tensor that goes behind the operation.
 */
export class Staging {
  readonly #operation: string;
  readonly #device: Device;
  readonly #parts: Int32Array[] = [];
  #words = 0;
  #tensor: Tensor | null = null;

  constructor(operation: string, device: Device) {
    this.#operation = operation;
    this.#device = device;
  }

  /**
   * The returned function gives the argument's place inside `run`. Nothing is read of an empty one:
   * null.
   */
  add(argument: Words | null): () => Ref | null {
    if (argument === null) return nothing;
    const { tensor, host } = argument;
    if (host === null) return () => tensor!.ref(this.#operation);
    if (host.length === 0) return nothing;
    const first = this.#words;
    this.#parts.push(host);
    this.#words += host.length;
    return () => {
      const { id, offset } = this.#tensor!.ref(this.#operation);
      return { id, offset: offset + first * 4 };
    };
  }

  run(enqueue: () => void): void {
    try {
      if (this.#words > 0) this.#upload();
      enqueue();
    } finally {
      this.#tensor?.dispose();
    }
  }

  #upload(): void {
    this.#device.notCapturing(this.#operation);
    const words = hostCopy(this.#operation, "the call", Int32Array, this.#words);
    let next = 0;
    for (const part of this.#parts) {
      words.set(part, next);
      next += part.length;
    }
    this.#tensor = this.#device.tensor(words, [words.length]);
  }
}
