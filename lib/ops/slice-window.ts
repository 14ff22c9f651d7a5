import { checkInt, checkOptions, checkWindow, INT32_MAX } from "../check";
import { sliceWindow as enqueueSliceWindow } from "../native";
import type { Tensor } from "../tensor";
import { firstInWindow } from "../window";
import { outputArgument, tensorArgument } from "./arguments";

/**
 * Rows of `sliceWindow`'s result: slice_window_length of cuda/mask.h, which the addon checks it
 * against.
 */
export function sliceWindowLength(kvLen: number, window: number, sinkTokens: number): number {
  const first = kvLen > 0 ? firstInWindow(kvLen - 1, window) : 0;
  return kvLen - first + Math.min(sinkTokens, first);
}

export interface SliceWindowOptions {
  /** The first n rows are kept whatever the window. Default 0. */
  sinkTokens?: number;
  /** [rows, numKvHeads, headDim], x's dtype: where to write. */
  out?: Tensor;
}

/**
 * The keys or values that the last query of a sequence sees: the rows of the sinks, then those of
 * the window.
 *
 * @param x [kvLen, numKvHeads, headDim], any float dtype
 * @param window keys that a query sees, itself included; 0 or Infinity: no limit
 * @returns [min(kvLen, window) and the sinks left of it, numKvHeads, headDim]
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function sliceWindow(x: Tensor, window: number, options?: SliceWindowOptions): Tensor {
  const operation = "sliceWindow";
  tensorArgument(operation, "x", x, ["kvLen", "numKvHeads", "headDim"]);
  const given = checkOptions(operation, options, ["sinkTokens", "out"]);
  const limit = checkWindow(operation, "window", window);
  const sinkTokens = checkInt(operation, "sinkTokens", given.sinkTokens ?? 0);
  const kvLen = x.shape[0]!;
  const outLen = sliceWindowLength(kvLen, limit, sinkTokens);
  const shape = x.shape.with(0, outLen);
  const out = outputArgument(operation, "out", given.out, shape, x.dtype, x.device, { x });
  if (out.size === 0) return out;
  enqueueSliceWindow(x.device.handle, {
    x: x.rows(operation),
    out: out.ref(operation),
    dtype: x.dtype,
    kvLen,
    window: limit === 0 ? INT32_MAX : limit,
    sinkTokens,
    outLen,
    rowElements: x.rowElements,
  });
  return out;
}
