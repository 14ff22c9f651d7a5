// Checks that operations share: tensors by shape and dtype, and outputs.

import { show, showShape } from "../check";
import type { Device } from "../device";
import { type DType, dtypeBytes } from "../dtype";
import { failure, invalid } from "../errors";
import { addon } from "../native";
import { Tensor } from "../tensor";

/** A size that is known, or the name of one that is not. */
export type Dim = number | string;

const FLOATS: readonly DType[] = ["float32", "float16", "bfloat16"];
/** What the loads of the attention kernels need. */
const ALIGNMENT = 16;

/**
 * A live tensor with these sizes. Where `like` is given it must share its device, where `dtype` is,
 * have that one.
 */
export function tensorArgument(
  operation: string,
  name: string,
  value: unknown,
  shape: readonly Dim[],
  expected: { device?: Device; dtype?: DType | readonly DType[] } = {},
): Tensor {
  if (!Tensor.isTensor(value)) {
    const what = `${name} expected a tensor ${showShape(shape)}, got ${show(value)}`;
    throw invalid(operation, what, "make one with device.tensor(data, shape)");
  }
  value.expectLive(operation, name);
  if (expected.device !== undefined && value.device !== expected.device) {
    throw invalid(
      operation,
      `${name} lies on another device than the other tensors`,
      "read() it and make a tensor on this device",
    );
  }
  if (!fits(value.shape, shape)) {
    throw invalid(
      operation,
      `${name} expected ${showShape(shape)}, got ${showShape(value.shape)}`,
      value.size === shape.reduce<number>((n, size) => n * Number(size), 1)
        ? "reshape() it"
        : undefined,
    );
  }
  const dtypes = expected.dtype ?? FLOATS;
  if (typeof dtypes === "string" ? dtypes !== value.dtype : !dtypes.includes(value.dtype)) {
    const list = typeof dtypes === "string" ? dtypes : dtypes.join(", ");
    throw invalid(
      operation,
      `${name} expected dtype ${list}, got ${value.dtype}`,
      value.dtype === "int32" || list === "int32" ? undefined : "convert it with to(dtype)",
    );
  }
  return value;
}

function fits(sizes: readonly number[], expected: readonly Dim[]): boolean {
  if (sizes.length !== expected.length) return false;
  for (let i = 0; i < sizes.length; i++) {
    if (typeof expected[i] === "number" && expected[i] !== sizes[i]) return false;
  }
  return true;
}

/** Refuses a tensor with gaps between its rows. */
export function expectContiguous(operation: string, name: string, tensor: Tensor): void {
  if (tensor.contiguous) return;
  const what = `rows of ${tensor.rowElements} elements, got rows ${tensor.rowStride} apart`;
  throw invalid(operation, `${name} expected contiguous ${what}`, "clone() it");
}

/** Refuses rows that do not begin at multiples of 16 bytes. */
export function expectAligned(operation: string, name: string, tensor: Tensor): void {
  const strideBytes = tensor.shape[0]! > 1 ? tensor.rowStride * dtypeBytes(tensor.dtype) : 0;
  if (tensor.byteOffset % ALIGNMENT === 0 && strideBytes % ALIGNMENT === 0) return;
  const got = `a view from byte ${tensor.byteOffset} on, rows ${strideBytes} bytes apart`;
  throw invalid(
    operation,
    `${name} expected rows that begin at multiples of ${ALIGNMENT} bytes, got ${got}`,
    "clone() it",
  );
}

/** The tensor to write to, where one was given: contiguous, and apart from `inputs`. */
export function checkOutput(
  operation: string,
  name: string,
  value: unknown,
  shape: readonly number[],
  dtype: DType,
  device: Device,
  inputs: Readonly<Record<string, Tensor | null | undefined>>,
): Tensor | undefined {
  if (value === undefined) return undefined;
  const out = tensorArgument(operation, name, value, shape, { device, dtype });
  expectContiguous(operation, name, out);
  expectApart(operation, name, out, inputs);
  return out;
}

/** As checkOutput, and a new tensor where none was given. */
export function outputArgument(
  operation: string,
  name: string,
  value: unknown,
  shape: readonly number[],
  dtype: DType,
  device: Device,
  inputs: Readonly<Record<string, Tensor | null | undefined>>,
): Tensor {
  const given = checkOutput(operation, name, value, shape, dtype, device, inputs);
  return given ?? device.allocate(operation, shape, dtype);
}

/** Refuses an output whose memory an input shares. */
export function expectApart(
  operation: string,
  name: string,
  out: Tensor,
  inputs: Readonly<Record<string, Tensor | null | undefined>>,
): void {
  for (const inputName of Object.keys(inputs)) {
    if (inputs[inputName]?.overlaps(out)) {
      throw invalid(
        operation,
        `${name} overlaps ${inputName}`,
        `write to a tensor of its own, or leave ${name} out`,
      );
    }
  }
}

/** head_dim that the attention kernels take: a multiple of 8 up to 256. */
export function checkHeadDim(operation: string, headDim: number): void {
  if (headDim >= 8 && headDim <= 256 && headDim % 8 === 0) return;
  const nearest = Math.min(256, Math.max(8, Math.ceil(headDim / 8) * 8));
  throw failure(
    "UNSUPPORTED",
    operation,
    `headDim expected a multiple of 8 in [8, 256], got ${headDim}`,
    headDim > 256 ? "the largest is 256" : `pad the heads with zeros to ${nearest}`,
  );
}

/** Query heads per KV head. */
export function checkGroup(operation: string, numQHeads: number, numKvHeads: number): void {
  if (numQHeads >= 1 && numKvHeads >= 1 && numQHeads % numKvHeads === 0) return;
  throw invalid(
    operation,
    `q expected a multiple of the ${numKvHeads} KV heads, at least one, got ${numQHeads} heads`,
  );
}

/** Enqueues the same value for every byte of a tensor that lies in one piece. */
export function fillBytes(operation: string, tensor: Tensor, value: number): void {
  const { id, offset } = tensor.ref(operation);
  addon.fill(id, offset, value, tensor.byteLength);
}
