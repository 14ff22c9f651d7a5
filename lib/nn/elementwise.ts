import { checkOptions } from "../check";
import { add as enqueueAdd, siluMul as enqueueSiluMul } from "../native";
import { expectContiguous, outputArgument, tensorArgument } from "../ops/arguments";
import { Tensor } from "../tensor";

export interface AddOptions {
  /** a's shape and dtype: where to write. May be a or b itself. */
  out?: Tensor;
}

/**
 * a + b, element by element.
 *
 * @param a any shape and float dtype, contiguous
 * @param b as a
 * @returns a's shape
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function add(a: Tensor, b: Tensor, options?: AddOptions): Tensor {
  const operation = "add";
  tensorArgument(operation, "a", a, Tensor.isTensor(a) ? a.shape : ["…"]);
  const { device, dtype, shape } = a;
  tensorArgument(operation, "b", b, shape, { device, dtype });
  expectContiguous(operation, "a", a);
  expectContiguous(operation, "b", b);
  const given = checkOptions(operation, options, ["out"]);
  const out = outputArgument(operation, "out", given.out, shape, dtype, device, {
    a: given.out === a ? null : a,
    b: given.out === b ? null : b,
  });
  if (out.size === 0) return out;
  enqueueAdd(device.handle, {
    a: a.ref(operation),
    b: b.ref(operation),
    out: out.ref(operation),
    dtype,
    elements: a.size,
  });
  return out;
}

export interface SiluMulOptions {
  /** [rows, width], gate's dtype: where to write. */
  out?: Tensor;
}

/**
 * silu(gate) · up with silu(x) = x / (1 + exp(-x)): the middle of a gated MLP (SwiGLU,
 * arXiv:2002.05202).
 *
 * @param gate [rows, width], any float dtype
 * @param up as gate
 * @returns [rows, width]
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function siluMul(gate: Tensor, up: Tensor, options?: SiluMulOptions): Tensor {
  const operation = "siluMul";
  tensorArgument(operation, "gate", gate, ["rows", "width"]);
  const { device, dtype, shape } = gate;
  tensorArgument(operation, "up", up, shape, { device, dtype });
  const given = checkOptions(operation, options, ["out"]);
  const inputs = { gate, up };
  const out = outputArgument(operation, "out", given.out, shape, dtype, device, inputs);
  if (out.size === 0) return out;
  enqueueSiluMul(device.handle, {
    gate: gate.rows(operation),
    up: up.rows(operation),
    out: out.ref(operation),
    dtype,
    rows: shape[0]!,
    width: shape[1]!,
  });
  return out;
}
