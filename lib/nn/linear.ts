import { checkBoolean, checkNumber, checkOneOf, checkOptions } from "../check";
import type { DType } from "../dtype";
import { invalid } from "../errors";
import { linear as enqueueLinear } from "../native";
import { checkOutput, expectApart, expectContiguous, tensorArgument } from "../ops/arguments";
import type { Tensor } from "../tensor";

export interface LinearOptions {
  /** [outFeatures], x's dtype: added to each row. */
  bias?: Tensor;
  /** [rows, outFeatures], x's dtype: added to the result. */
  residual?: Tensor;
  /**
   * `rmsNorm(x, weight, eps)` takes x's place. weight: [inFeatures], x's dtype; eps >= 0. One kernel with the product,
   * where x has few rows.
   */
  norm?: { readonly weight: Tensor; readonly eps: number };
  /**
   * The weight's rows are a gate's and then as many of what it lets through: the result is `siluMul` of the two halves
   * of the product, [rows, outFeatures / 2]. With neither bias, residual nor outDtype. Default false.
   */
  gated?: boolean;
  /** x's dtype (default), or "float32" for logits of a 16-bit model. */
  outDtype?: DType;
  /** The result's shape, outDtype: where to write. May be `residual` itself. */
  out?: Tensor;
}

/**
 * x · weightᵀ + bias + residual, summed in float32 and rounded once. `norm` and `gated` are what stands before and
 * behind a product in a decoder: short for rmsNorm and siluMul, with their roundings.
 *
 * @param x [rows, inFeatures], any float dtype
 * @param weight [outFeatures, inFeatures], x's dtype, contiguous: as Hugging Face stores it
 * @returns [rows, outFeatures], or half of that where gated
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function linear(x: Tensor, weight: Tensor, options?: LinearOptions): Tensor {
  const operation = "linear";
  tensorArgument(operation, "x", x, ["rows", "inFeatures"]);
  const { device, dtype } = x;
  const [rows, inFeatures] = x.shape as [number, number];
  const like = { device, dtype };
  tensorArgument(operation, "weight", weight, ["outFeatures", inFeatures], like);
  expectContiguous(operation, "weight", weight);
  const given = checkOptions(operation, options, [
    "bias",
    "residual",
    "norm",
    "gated",
    "outDtype",
    "out",
  ]);
  const { bias, residual } = given;
  const gated = checkBoolean(operation, "gated", given.gated ?? false);
  const outFeatures = gated ? weight.shape[0]! / 2 : weight.shape[0]!;
  if (gated) checkGated(operation, weight, given);
  const norm = normArgument(operation, given.norm, x);
  if (bias !== undefined) tensorArgument(operation, "bias", bias, [outFeatures], like);
  const shape = [rows, outFeatures];
  if (residual !== undefined) {
    tensorArgument(operation, "residual", residual, shape, like);
    expectContiguous(operation, "residual", residual);
  }
  const allowed: DType[] = dtype === "float32" ? ["float32"] : [dtype, "float32"];
  const outDtype = checkOneOf(operation, "outDtype", given.outDtype ?? dtype, allowed);
  const inputs = { x, weight, bias, "norm.weight": norm?.weight };
  const target = checkOutput(operation, "out", given.out, shape, outDtype, device, inputs);
  if (target !== undefined && target !== residual) {
    expectApart(operation, "out", target, { residual });
  }
  const out = target ?? device.allocate(operation, shape, outDtype);
  if (out.size === 0) return out;
  enqueueLinear(device.handle, {
    x: x.rows(operation),
    weight: weight.ref(operation),
    bias: bias?.ref(operation) ?? null,
    residual: residual?.ref(operation) ?? null,
    normWeight: norm?.weight.ref(operation) ?? null,
    out: out.ref(operation),
    dtype,
    outDtype,
    rows,
    inFeatures,
    outFeatures,
    normEps: norm?.eps ?? 0,
    gated,
  });
  return out;
}

function checkGated(operation: string, weight: Tensor, given: LinearOptions): void {
  if (weight.shape[0]! % 2 !== 0) {
    const what = `gated expected a weight with an even number of rows, got ${weight.shape[0]}`;
    throw invalid(operation, what);
  }
  for (const name of ["bias", "residual", "outDtype"] as const) {
    if (given[name] !== undefined) throw invalid(operation, `gated expected no ${name}`);
  }
}

function normArgument(operation: string, value: LinearOptions["norm"], x: Tensor) {
  if (value === undefined) return null;
  const { weight, eps } = checkOptions(operation, value, ["weight", "eps"], "norm");
  const like = { device: x.device, dtype: x.dtype };
  const checked = tensorArgument(operation, "norm.weight", weight, [x.shape[1]!], like);
  expectContiguous(operation, "norm.weight", checked);
  return { weight: checked, eps: checkNumber(operation, "norm.eps", eps, 0) };
}
