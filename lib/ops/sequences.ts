// How the rows of a batch belong to sequences: one, a uniform batch, or ragged by prefix sums.

import { INT32_MAX } from "../check";
import type { Device } from "../device";
import { invalid } from "../errors";
import type { Tensor } from "../tensor";
import { type Ints, intWords, type Words } from "./staging";

/**
 * Prefix sums over `total` packed rows, [batch + 1]: on the host from 0 up to `total` without a
 * step down.
 */
export function offsetsArgument(
  operation: string,
  name: string,
  value: unknown,
  device: Device,
  total: number,
): Words {
  const words = intWords(operation, name, value, device, { max: total });
  if (words.length < 1) {
    throw invalid(operation, `${name} expected [batch + 1] prefix sums, got none`, "begin with 0");
  }
  const offsets = words.host;
  if (offsets === null) return words;
  if (offsets[0] !== 0) throw invalid(operation, `${name}[0] expected 0, got ${offsets[0]}`);
  for (let b = 1; b < offsets.length; b++) {
    if (offsets[b]! >= offsets[b - 1]!) continue;
    const expected = `at least ${offsets[b - 1]}, as ${name}[${b - 1}] has`;
    throw invalid(
      operation,
      `${name}[${b}] expected ${expected}, got ${offsets[b]}`,
      "pass prefix sums, not lengths",
    );
  }
  const last = offsets.at(-1)!;
  if (last === total) return words;
  throw invalid(
    operation,
    `${name}[${offsets.length - 1}] expected ${total}, the rows there are, got ${last}`,
  );
}

/** Query rows of the sequences of a batch. */
export interface QueryRows {
  readonly batchSize: number;
  readonly totalQ: number;
  /** What every sequence has where `offsets` is null. */
  readonly uniform: number;
  readonly offsets: Words | null;
  /** Upper bound. */
  readonly longest: number;
  /** Rows of sequence b; null where only the device knows. */
  length(b: number): number | null;
}

export function raggedRows(offsets: Words, totalQ: number): QueryRows {
  const { host } = offsets;
  const length = (b: number) => (host === null ? null : host[b + 1]! - host[b]!);
  let longest = host === null ? totalQ : 0;
  if (host !== null) {
    for (let b = 0; b + 1 < host.length; b++) longest = Math.max(longest, length(b)!);
  }
  return { batchSize: offsets.length - 1, totalQ, uniform: 0, offsets, longest, length };
}

export function uniformRows(batchSize: number, each: number): QueryRows {
  return {
    batchSize,
    totalQ: batchSize * each,
    uniform: each,
    offsets: null,
    longest: each,
    length: () => each,
  };
}

/**
 * Query rows of `batchSize` sequences: by offsets, or as many for each. `counted` names the argument
 * that says how many sequences there are.
 */
export function queryRows(
  operation: string,
  q: Tensor,
  batchSize: number,
  cuSeqlensQ: Ints | undefined,
  counted: "kvLens" | "cuSeqlensK",
): QueryRows {
  const isBatch = q.shape.length === 4;
  const totalQ = isBatch ? q.shape[0]! * q.shape[1]! : q.shape[0]!;
  if (cuSeqlensQ !== undefined) {
    const offsets = offsetsArgument(operation, "cuSeqlensQ", cuSeqlensQ, q.device, totalQ);
    if (!isBatch && offsets.length === batchSize + 1) return raggedRows(offsets, totalQ);
    throw invalid(
      operation,
      `cuSeqlensQ expected ${batchSize + 1} values for packed rows, got ${offsets.length}`,
      `${counted} is for ${batchSize} sequences`,
    );
  }
  if (isBatch ? q.shape[0] === batchSize : batchSize > 0 && totalQ % batchSize === 0) {
    return uniformRows(batchSize, isBatch ? q.shape[1]! : totalQ / batchSize);
  }
  if (totalQ === 0 && batchSize === 0) return uniformRows(0, 0);
  throw invalid(
    operation,
    `${counted} expected one value for each sequence, got ${batchSize} for [${q.shape.join(", ")}]`,
    "pass cuSeqlensQ where sequences have unequal rows",
  );
}

/** The rows of one operation, in all and per int32 index. */
export function checkTotalRows(operation: string, name: string, total: number): void {
  if (total <= INT32_MAX) return;
  throw invalid(
    operation,
    `${name} expected at most ${INT32_MAX} rows in all, got ${total}`,
    "split the batch",
  );
}
