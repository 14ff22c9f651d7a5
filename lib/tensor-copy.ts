// Tensor to tensor on one device, with or without gaps between rows, converted where dtypes differ.

import { showShape } from "./check";
import { dtypeBytes } from "./dtype";
import { invalid } from "./errors";
import { addon, DTYPE_CODE, sliceWindow } from "./native";
import type { Tensor } from "./tensor";

/** Copies or converts the elements of `source` to `target`, both live. */
export function copyTensor(operation: string, target: Tensor, source: Tensor): void {
  if (source.device !== target.device) {
    throw invalid(operation, "data lies on another device", "read() it and write the values");
  }
  const [expected, actual] = [showShape(target.shape), showShape(source.shape)];
  if (expected !== actual) throw invalid(operation, `data expected ${expected}, got ${actual}`);
  if ((source.dtype === "int32") !== (target.dtype === "int32")) {
    throw invalid(operation, `data expected dtype ${target.dtype}, got ${source.dtype}`);
  }
  if (target.overlaps(source)) {
    throw invalid(operation, "data overlaps the tensor that is written", "clone() it first");
  }
  if (target.size === 0) return;
  if (!source.contiguous) {
    const packed = packRows(operation, source);
    copyTensor(operation, target, packed);
    packed.dispose();
  } else if (!target.contiguous) {
    const converted = source.dtype === target.dtype ? source : source.to(target.dtype);
    copyToRows(operation, target, converted);
    if (converted !== source) converted.dispose();
  } else {
    copyAll(operation, target, source);
  }
}

/** The rows without the gaps between them, as a new tensor. */
export function packRows(operation: string, source: Tensor): Tensor {
  const packed = source.device.allocate(operation, source.shape, source.dtype);
  const rows = source.shape[0]!;
  // A slice to a window as long as the tensor moves every row. It moves bits: int32 travels as the
  // float dtype of its width.
  sliceWindow(source.device.handle, {
    x: source.rows(operation),
    out: packed.ref(operation),
    dtype: source.dtype === "int32" ? "float32" : source.dtype,
    kvLen: rows,
    window: rows,
    sinkTokens: 0,
    outLen: rows,
    rowElements: source.rowElements,
  });
  return packed;
}

function copyToRows(operation: string, target: Tensor, source: Tensor): void {
  const [to, from] = [target.ref(operation), source.ref(operation)];
  const bytes = dtypeBytes(target.dtype);
  const width = target.rowElements * bytes;
  const stride = target.rowStride * bytes;
  for (let row = 0; row < target.shape[0]!; row++) {
    addon.copy(to.id, to.offset + row * stride, from.id, from.offset + row * width, width);
  }
}

function copyAll(operation: string, target: Tensor, source: Tensor): void {
  const [to, from] = [target.ref(operation), source.ref(operation)];
  if (source.dtype === target.dtype) {
    addon.copy(to.id, to.offset, from.id, from.offset, target.byteLength);
    return;
  }
  const [toCode, fromCode] = [DTYPE_CODE[target.dtype], DTYPE_CODE[source.dtype]];
  addon.convert(to.id, to.offset, toCode, from.id, from.offset, fromCode, target.size);
}
