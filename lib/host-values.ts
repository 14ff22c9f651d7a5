// Numbers that a user hands over, as typed arrays of any realm or as plain arrays, made ready for
// an upload.

import { isTypedArray } from "node:util/types";
import { checkInt, checkMemory, hostCopy, INT32_MAX, show, typedArrayType } from "./check";
import { type DType, dtypeBytes } from "./dtype";
import { invalid } from "./errors";

/** A Float16Array, where Node has it (24 and later). */
export interface Float16ArrayLike extends ArrayBufferView, ArrayLike<number> {
  readonly [Symbol.toStringTag]: "Float16Array";
}

/**
 * Values on the host. A Uint16Array holds raw bits of a 16-bit dtype. Other numbers are rounded to
 * float32 and from there to the dtype, to the nearest, ties to even.
 */
export type TensorData =
  | Float32Array
  | Int32Array
  | Uint16Array
  | Float16ArrayLike
  | readonly number[];

/** What one upload moves: bytes of `from`, which the device turns into the tensor's dtype. */
interface HostValues {
  view: ArrayBufferView;
  from: DType;
  elements: number;
}

/** The dtype that data asks for where none is given. */
export function dtypeOfData(operation: string, data: unknown): DType {
  const type = isTypedArray(data) ? typedArrayType(data) : undefined;
  if (type === "Int32Array") return "int32";
  if (type === "Float16Array") return "float16";
  if (type !== "Uint16Array") return "float32";
  throw invalid(
    operation,
    "data of type Uint16Array is raw bits of a 16-bit dtype, and none is given",
    'pass { dtype: "bfloat16" } or { dtype: "float16" }',
  );
}

function exactInts(operation: string, values: ArrayLike<unknown>, elements: number): Int32Array {
  const ints = hostCopy(operation, "data", Int32Array, elements);
  for (let i = 0; i < ints.length; i++) {
    ints[i] = checkInt(operation, `data[${i}]`, values[i], -INT32_MAX - 1, INT32_MAX);
  }
  return ints;
}

function floats(operation: string, values: ArrayLike<unknown>, elements: number): Float32Array {
  const out = hostCopy(operation, "data", Float32Array, elements);
  for (let i = 0; i < out.length; i++) {
    const value = values[i];
    if (typeof value !== "number") {
      throw invalid(operation, `data[${i}] expected a number, got ${show(value)}`);
    }
    out[i] = value;
  }
  return out;
}

/** Checks data for a tensor of `dtype` and brings it to a form that the device converts. */
export function hostValues(
  operation: string,
  data: unknown,
  dtype: DType,
  elements: number,
): HostValues {
  const type = isTypedArray(data) ? typedArrayType(data) : undefined;
  if (type !== undefined) checkMemory(operation, "data", data as ArrayBufferView);
  const known = ["Float32Array", "Int32Array", "Uint16Array", "Float16Array"];
  if (type === undefined ? !Array.isArray(data) : !known.includes(type)) {
    const kinds = "Float32Array, Int32Array, Uint16Array (raw bits), Float16Array or number[]";
    throw invalid(operation, `data expected ${kinds}, got ${show(data)}`);
  }
  const values = data as ArrayLike<unknown>;
  if (values.length !== elements) {
    throw invalid(
      operation,
      `data expected ${elements} values for the shape, got ${values.length}`,
    );
  }
  if (type === "Uint16Array") {
    if (dtypeBytes(dtype) === 2) return { view: data as Uint16Array, from: dtype, elements };
    throw invalid(
      operation,
      `data of type Uint16Array is raw bits of a 16-bit dtype, got dtype ${dtype}`,
      "pass a Float32Array or an Int32Array",
    );
  }
  if (dtype === "int32") {
    const view =
      type === "Int32Array" ? (data as Int32Array) : exactInts(operation, values, elements);
    return { view, from: "int32", elements };
  }
  if (type === "Float16Array" && dtype === "float16") {
    // Node-API does not know Float16Array: its bits travel as 16-bit integers.
    const { buffer, byteOffset } = data as unknown as ArrayBufferView<ArrayBuffer>;
    return { view: new Uint16Array(buffer, byteOffset, elements), from: "float16", elements };
  }
  const view =
    type === "Float32Array" ? (data as Float32Array) : floats(operation, values, elements);
  return { view, from: "float32", elements };
}
