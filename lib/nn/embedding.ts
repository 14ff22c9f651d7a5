import { checkOptions } from "../check";
import { embedding as enqueueEmbedding, gatherRows as enqueueGatherRows } from "../native";
import { expectContiguous, outputArgument, tensorArgument } from "../ops/arguments";
import { type Ints, intWords, Staging } from "../ops/staging";
import type { Tensor } from "../tensor";

export interface EmbeddingOptions {
  /** [rows, width], the table's dtype: where to write. */
  out?: Tensor;
}

/**
 * Rows of a table: out[i] = table[ids[i]].
 *
 * @param table [vocabSize, width], any float dtype, contiguous
 * @param ids [rows] int32. Ids on the host are checked; a bad id on the device gives zeros and
 *   fails the next wait
 * @returns [rows, width]
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY, BUSY
 */
export function embedding(table: Tensor, ids: Ints, options?: EmbeddingOptions): Tensor {
  const operation = "embedding";
  tensorArgument(operation, "table", table, ["vocabSize", "width"]);
  expectContiguous(operation, "table", table);
  const { device, dtype } = table;
  const [vocabSize, width] = table.shape as [number, number];
  const words = intWords(operation, "ids", ids, device, { max: vocabSize - 1 });
  const given = checkOptions(operation, options, ["out"]);
  const rows = words.length;
  const out = outputArgument(operation, "out", given.out, [rows, width], dtype, device, {
    table,
    ids: words.tensor,
  });
  if (out.size === 0) return out;
  const staging = new Staging(operation, device);
  const idsRef = staging.add(words);
  staging.run(() => {
    enqueueEmbedding(device.handle, {
      table: table.ref(operation),
      ids: idsRef()!,
      out: out.ref(operation),
      dtype,
      rows,
      vocabSize,
      width,
    });
  });
  return out;
}

export interface GatherRowsOptions {
  /** [outRows, width], x's dtype: where to write. */
  out?: Tensor;
}

/**
 * out[i] = x[index[i]]: the last token of each sequence, before the logits are computed.
 *
 * @param x [rows, width], any float dtype
 * @param index [outRows] int32. On the host they are checked; a bad one on the device gives zeros
 *   and fails the next wait
 * @returns [outRows, width]
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY, BUSY
 */
export function gatherRows(x: Tensor, index: Ints, options?: GatherRowsOptions): Tensor {
  const operation = "gatherRows";
  tensorArgument(operation, "x", x, ["rows", "width"]);
  const { device, dtype } = x;
  const [numRows, width] = x.shape as [number, number];
  const words = intWords(operation, "index", index, device, { max: numRows - 1 });
  const given = checkOptions(operation, options, ["out"]);
  const outRows = words.length;
  const out = outputArgument(operation, "out", given.out, [outRows, width], dtype, device, {
    x,
    index: words.tensor,
  });
  if (out.size === 0) return out;
  const staging = new Staging(operation, device);
  const indexRef = staging.add(words);
  staging.run(() => {
    enqueueGatherRows(device.handle, {
      x: x.rows(operation),
      index: indexRef()!,
      out: out.ref(operation),
      dtype,
      numRows,
      outRows,
      width,
    });
  });
  return out;
}
