import { checkInt, checkOptions, INT32_MAX } from "../check";
import type { Device } from "../device";
import { invalid } from "../errors";
import { type BatchArgs, type Ref, ropeApply, ropeRows } from "../native";
import { type RopeTable, ropeArgument } from "../rope";
import type { Tensor } from "../tensor";
import { outputArgument, tensorArgument } from "./arguments";
import { type Ints, intWords, Staging } from "./staging";

export interface RopeOptions {
  /** [rows] int32: each row's position. */
  positions?: Ints;
  /** Row i is at position start + i. Default 0; not with `positions`. */
  start?: number;
  /**
   * The length that chooses the frequencies of dynamic NTK and LongRoPE. Default: start + rows, and
   * with `positions` each row's position + 1.
   */
  seqLen?: number;
  /**
   * [rows, numHeads, headDim], x's dtype: where to write. May be x itself, where x is contiguous.
   */
  out?: Tensor;
}

/**
 * cos and sin, [rows, 2, rotaryDim / 2] float32, of rows whose positions follow from `batch` or
 * from a ref.
 */
export function cosSinRows(
  operation: string,
  device: Device,
  table: RopeTable,
  rows: {
    count: number;
    positions: Ref | null;
    seqLen: number;
    batch: BatchArgs;
    maxKvLen: number;
  },
): Tensor {
  const cosSin = device.allocate(operation, [rows.count, 2, table.rotaryDim / 2], "float32");
  ropeRows(device.handle, {
    rope: table.args(operation),
    positions: rows.positions,
    seqLen: rows.seqLen,
    batch: rows.batch,
    maxKvLen: rows.maxKvLen,
    rows: rows.count,
    cosSin: cosSin.ref(operation),
  });
  return cosSin;
}

/** One sequence of `rows` rows whose last one is at position kvLen - 1. */
export function singleSequence(rows: number, kvLen: number): BatchArgs {
  return {
    batchSize: 1,
    totalQ: rows,
    maxQLen: rows,
    maxKvLen: kvLen,
    uniformQLen: rows,
    uniformKvLen: kvLen,
    cuSeqlensQ: null,
    cuSeqlensK: null,
    kvLens: null,
  };
}

/**
 * Rotary position embedding of queries or keys (RoFormer, arXiv:2104.09864). Angles are exact at
 * any position.
 *
 * @param x [rows, numHeads, headDim], any float dtype
 * @param table `device.rope(config)` for the same headDim
 * @returns [rows, numHeads, headDim]: numbers beyond rotaryDim are copied
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY, BUSY
 */
export function rope(x: Tensor, table: RopeTable, options?: RopeOptions): Tensor {
  const operation = "rope";
  tensorArgument(operation, "x", x, ["rows", "numHeads", "headDim"]);
  const [rows, numHeads, headDim] = x.shape as [number, number, number];
  const { device, dtype } = x;
  const ropeTable = ropeArgument(operation, "table", table, device, headDim);
  const given = checkOptions(operation, options, ["positions", "start", "seqLen", "out"]);
  if (given.positions !== undefined && given.start !== undefined) {
    throw invalid(operation, "positions and start exclude each other", "pass one of them");
  }
  const start = checkInt(operation, "start", given.start ?? 0, 0, INT32_MAX - rows);
  const seqLen = checkInt(operation, "seqLen", given.seqLen ?? 0);
  let positions =
    given.positions === undefined
      ? null
      : intWords(operation, "positions", given.positions, device, { length: rows });
  if (positions === null && seqLen !== 0 && seqLen !== start + rows) {
    const counted = Int32Array.from({ length: rows }, (_, i) => start + i);
    positions = { length: rows, host: counted, tensor: null };
  }
  const inPlace = given.out === x;
  const out = outputArgument(operation, "out", given.out, x.shape, dtype, device, {
    x: inPlace ? null : x,
    positions: positions?.tensor,
  });
  if (out.size === 0) return out;
  const staging = new Staging(operation, device);
  const positionsRef = staging.add(positions);
  staging.run(() => {
    const cosSin = cosSinRows(operation, device, ropeTable, {
      count: rows,
      positions: positionsRef(),
      seqLen,
      batch: singleSequence(rows, start + rows),
      maxKvLen: 0,
    });
    try {
      ropeApply(device.handle, {
        x: x.rows(operation),
        out: out.ref(operation),
        cosSin: cosSin.ref(operation),
        dtype,
        rows,
        numHeads,
        headDim,
        half: ropeTable.rotaryDim / 2,
        interleaved: ropeTable.interleaved,
      });
    } finally {
      cosSin.dispose();
    }
  });
  return out;
}
