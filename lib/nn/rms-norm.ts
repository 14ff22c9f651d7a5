import { checkNumber, checkOptions, showShape } from "../check";
import { invalid } from "../errors";
import { rmsNorm as enqueueRmsNorm } from "../native";
import { expectContiguous, outputArgument, tensorArgument } from "../ops/arguments";
import { Tensor } from "../tensor";

export interface RmsNormOptions {
  /** x's shape and dtype: where to write. May be x itself, where x is contiguous. */
  out?: Tensor;
}

/**
 * x / sqrt(mean(x²) + eps) · weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467).
 * The normalised value is rounded to the dtype before the weight multiplies it, as Llama's
 * reference code does.
 *
 * @param x [rows, width], or [rows, numHeads, width] for norms of queries and keys; any float dtype
 * @param weight [width], x's dtype
 * @param eps >= 0
 * @returns x's shape
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number, options?: RmsNormOptions): Tensor {
  const operation = "rmsNorm";
  const heads = Tensor.isTensor(x) && x.shape.length === 3;
  tensorArgument(operation, "x", x, heads ? ["rows", "numHeads", "width"] : ["rows", "width"]);
  const { device, dtype, shape } = x;
  const width = shape.at(-1)!;
  if (width === 0) throw invalid(operation, `x expected a width >= 1, got ${showShape(shape)}`);
  tensorArgument(operation, "weight", weight, [width], { device, dtype });
  expectContiguous(operation, "weight", weight);
  const epsilon = checkNumber(operation, "eps", eps, 0);
  const given = checkOptions(operation, options, ["out"]);
  const out = outputArgument(operation, "out", given.out, shape, dtype, device, {
    x: given.out === x ? null : x,
    weight,
  });
  if (out.size === 0) return out;
  enqueueRmsNorm(device.handle, {
    x: x.rows(operation),
    weight: weight.ref(operation),
    out: out.ref(operation),
    dtype,
    rows: shape[0]!,
    numGroups: heads ? shape[1]! : 1,
    width,
    eps: epsilon,
  });
  return out;
}
