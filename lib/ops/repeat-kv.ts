import { checkInt, checkOptions, INT32_MAX } from "../check";
import { repeatKv as enqueueRepeatKv } from "../native";
import type { Tensor } from "../tensor";
import { outputArgument, tensorArgument } from "./arguments";

export interface RepeatKvOptions {
  /** [rows, numKvHeads * groupSize, headDim], x's dtype: where to write. */
  out?: Tensor;
}

/**
 * The KV expansion made explicit: each head `groupSize` times, as Llama's `repeat_kv` does.
 * `attention` does not need it: it reads each KV head once for its whole group.
 *
 * @param x [rows, numKvHeads, headDim], any float dtype
 * @param groupSize query heads per KV head, >= 1
 * @returns [rows, numKvHeads * groupSize, headDim]: head h is x's head floor(h / groupSize)
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function repeatKv(x: Tensor, groupSize: number, options?: RepeatKvOptions): Tensor {
  const operation = "repeatKv";
  tensorArgument(operation, "x", x, ["rows", "numKvHeads", "headDim"]);
  const given = checkOptions(operation, options, ["out"]);
  const [rows, numKvHeads, headDim] = x.shape as [number, number, number];
  const most = Math.floor(INT32_MAX / Math.max(1, numKvHeads));
  const group = checkInt(operation, "groupSize", groupSize, 1, most);
  const shape = [rows, numKvHeads * group, headDim];
  const out = outputArgument(operation, "out", given.out, shape, x.dtype, x.device, { x });
  if (out.size === 0) return out;
  enqueueRepeatKv(x.device.handle, {
    x: x.rows(operation),
    out: out.ref(operation),
    dtype: x.dtype,
    rows,
    numKvHeads,
    headDim,
    groupSize: group,
  });
  return out;
}
