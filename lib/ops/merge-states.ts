import { checkOptions, mapItems, show } from "../check";
import { invalid } from "../errors";
import { mergeStates as enqueueMergeStates } from "../native";
import type { Tensor } from "../tensor";
import { checkHeadDim, checkOutput, expectContiguous, tensorArgument } from "./arguments";

const MAX_PARTS = 64;

/** One part of an attention: what `attention` returns with `lse: true`. */
export interface AttentionState {
  /** [rows, numQHeads, headDim] */
  o: Tensor;
  /** [rows, numQHeads] float32, natural logarithm */
  lse: Tensor;
}

export interface MergeStatesOptions {
  /** [rows, numQHeads, headDim], the parts' dtype: where to write o. */
  o?: Tensor;
  /** [rows, numQHeads] float32: where to write lse. */
  lse?: Tensor;
}

/**
 * Merges parts of one attention over disjoint keys into the attention over all of them, in the
 * order given: lse = log(sum exp(lse_i)), o = sum exp(lse_i - lse) o_i. A part that saw no key (lse
 * -inf) adds nothing. A sink logit joins the sum once: at most one part may be computed with
 * `sinkLogits`, which cannot be checked here.
 *
 * @param parts 1 to 64, all of the same shapes and dtype
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function mergeStates(
  parts: readonly AttentionState[],
  options?: MergeStatesOptions,
): AttentionState {
  const operation = "mergeStates";
  if (!Array.isArray(parts) || parts.length < 1 || parts.length > MAX_PARTS) {
    throw invalid(
      operation,
      `parts expected an array of 1 to ${MAX_PARTS} { o, lse }, got ${show(parts)}`,
      "merge in several calls",
    );
  }
  const states = mapItems(parts, (part, i) => {
    const { o, lse } = checkOptions(operation, part as AttentionState, ["o", "lse"], `parts[${i}]`);
    return { o, lse };
  });
  const first = tensorArgument(operation, "parts[0].o", states[0]!.o, [
    "rows",
    "numQHeads",
    "headDim",
  ]);
  const { device, dtype, shape } = first;
  const [rows, numHeads, headDim] = shape as [number, number, number];
  checkHeadDim(operation, headDim);
  const inputs: Record<string, Tensor> = {};
  for (const [i, state] of states.entries()) {
    const o = tensorArgument(operation, `parts[${i}].o`, state.o, shape, { device, dtype });
    const lse = tensorArgument(operation, `parts[${i}].lse`, state.lse, [rows, numHeads], {
      device,
      dtype: "float32",
    });
    inputs[`parts[${i}].o`] = o;
    inputs[`parts[${i}].lse`] = lse;
  }
  for (const [name, tensor] of Object.entries(inputs)) expectContiguous(operation, name, tensor);
  const given = checkOptions(operation, options, ["o", "lse"]);
  const lseShape = [rows, numHeads];
  const givenLse = checkOutput(operation, "lse", given.lse, lseShape, "float32", device, inputs);
  const apart = { ...inputs, lse: givenLse };
  const givenO = checkOutput(operation, "o", given.o, shape, dtype, device, apart);
  const o = givenO ?? device.allocate(operation, shape, dtype);
  const lse = givenLse ?? device.allocate(operation, lseShape, "float32");
  if (o.size === 0) return { o, lse };
  enqueueMergeStates(device.handle, {
    o: states.map((state) => state.o!.ref(operation)),
    lse: states.map((state) => state.lse!.ref(operation)),
    out: o.ref(operation),
    outLse: lse.ref(operation),
    dtype,
    rows,
    numHeads,
    headDim,
  });
  return { o, lse };
}
