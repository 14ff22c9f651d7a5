import { checkOneOf, checkOptions } from "../check";
import type { DType } from "../dtype";
import { linear as enqueueLinear } from "../native";
import { checkOutput, expectApart, expectContiguous, tensorArgument } from "../ops/arguments";
import type { Tensor } from "../tensor";

export interface LinearOptions {
  /** [outFeatures], x's dtype: added to each row. */
  bias?: Tensor;
  /** [rows, outFeatures], x's dtype: added to the result. */
  residual?: Tensor;
  /** x's dtype (default), or "float32" for logits of a 16-bit model. */
  outDtype?: DType;
  /** [rows, outFeatures], outDtype: where to write. May be `residual` itself. */
  out?: Tensor;
}

/**
 * x · weightᵀ + bias + residual, summed in float32 and rounded once.
 *
 * @param x [rows, inFeatures], any float dtype
 * @param weight [outFeatures, inFeatures], x's dtype, contiguous: as Hugging Face stores it
 * @returns [rows, outFeatures]
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
  const outFeatures = weight.shape[0]!;
  const given = checkOptions(operation, options, ["bias", "residual", "outDtype", "out"]);
  const { bias, residual } = given;
  if (bias !== undefined) tensorArgument(operation, "bias", bias, [outFeatures], like);
  const shape = [rows, outFeatures];
  if (residual !== undefined) {
    tensorArgument(operation, "residual", residual, shape, like);
    expectContiguous(operation, "residual", residual);
  }
  const allowed: DType[] = dtype === "float32" ? ["float32"] : [dtype, "float32"];
  const outDtype = checkOneOf(operation, "outDtype", given.outDtype ?? dtype, allowed);
  const inputs = { x, weight, bias };
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
    out: out.ref(operation),
    dtype,
    outDtype,
    rows,
    inFeatures,
    outFeatures,
  });
  return out;
}
