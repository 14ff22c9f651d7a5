import { checkOptions, showShape } from "../check";
import { invalid } from "../errors";
import { type BatchArgs, appendKv as enqueueAppendKv } from "../native";
import { type RopeTable, ropeArgument } from "../rope";
import type { Tensor } from "../tensor";
import { checkGroup, checkHeadDim, expectApart, outputArgument, tensorArgument } from "./arguments";
import { checkPageIds, type PagedKv, type Pages, pagedArgument, pagedKvArgs } from "./paged";
import { cosSinRows } from "./rope";
import { checkTotalRows, type QueryRows, queryRows } from "./sequences";
import { type Ints, Staging } from "./staging";

export interface AppendKvOptions {
  /** [totalQ, numQHeads, headDim]: queries to rotate by `rope` in the same call. */
  q?: Tensor;
  /** Rotates k, and q, by their positions on the way. */
  rope?: RopeTable;
  /** [batch + 1] int32 prefix sums of the rows. Default: as many for each sequence. */
  cuSeqlensQ?: Ints;
  /** [totalQ, numQHeads, headDim]: where to write the rotated queries. */
  qOut?: Tensor;
}

const OPERATION = "appendKv";

/**
 * Writes this step's keys and values into their pages: row i of a sequence goes to position kvLen -
 * qLen + i, with kvLens counting these rows already. With `rope`, k is rotated on the way, and q as
 * well.
 *
 * @param k [totalQ, numKvHeads, headDim], the dtype of the pages
 * @param v as k
 * @param kv where to write; `attention` takes the same object
 * @returns q rotated, where q was given
 * @throws GqaError INVALID_ARGUMENT, UNSUPPORTED, DISPOSED, OUT_OF_MEMORY, BUSY
 */
export function appendKv(
  k: Tensor,
  v: Tensor,
  kv: PagedKv,
  options?: AppendKvOptions,
): { q?: Tensor } {
  tensorArgument(OPERATION, "k", k, ["totalQ", "numKvHeads", "headDim"]);
  const { device, dtype } = k;
  const like = { device, dtype };
  tensorArgument(OPERATION, "v", v, k.shape, like);
  const [totalQ, numKvHeads, headDim] = k.shape as [number, number, number];
  checkHeadDim(OPERATION, headDim);
  checkTotalRows(OPERATION, "k", totalQ);
  const given = checkOptions(OPERATION, options, ["q", "rope", "cuSeqlensQ", "qOut"]);
  const pages = pagedArgument(OPERATION, kv, device, dtype);
  if (pages.numKvHeads !== numKvHeads || pages.headDim !== headDim) {
    const fitting = showShape(["numPages", 2, numKvHeads, "pageSize", headDim]);
    const actual = showShape(pages.tensor.shape);
    throw invalid(OPERATION, `pages expected ${fitting}, as k has, got ${actual}`);
  }
  const { q } = given;
  if (q !== undefined) {
    tensorArgument(OPERATION, "q", q, [totalQ, "numQHeads", headDim], like);
    checkGroup(OPERATION, q.shape[1]!, numKvHeads);
  }
  if (given.rope === undefined && (q !== undefined || given.qOut !== undefined)) {
    throw invalid(OPERATION, "q is only here to be rotated, and rope is missing", "pass rope");
  }
  if (q === undefined && given.qOut !== undefined) throw invalid(OPERATION, "qOut goes with q");
  const table =
    given.rope === undefined ? null : ropeArgument(OPERATION, "rope", given.rope, device, headDim);

  const rows = queryRows(OPERATION, k, pages.kvLens.length, given.cuSeqlensQ, "kvLens");
  checkPositions(pages, rows);
  checkPageIds(OPERATION, pages, rows, 0, (kvLen, qLen) => kvLen - qLen);
  const inputs = {
    k,
    v,
    cuSeqlensQ: rows.offsets?.tensor,
    pageTable: pages.table.tensor,
    kvLens: pages.kvLens.tensor,
    tableRows: pages.rowOf?.tensor,
  };
  expectApart(OPERATION, "pages", pages.tensor, { q, ...inputs });
  const qOut =
    q === undefined
      ? null
      : outputArgument(OPERATION, "qOut", given.qOut, q.shape, dtype, device, {
          ...inputs,
          q,
          pages: pages.tensor,
        });
  if (totalQ > 0) enqueue(k, v, q ?? null, qOut, table, pages, rows);
  return qOut === null ? {} : { q: qOut };
}

/** A sequence has room for its new rows: kvLen >= qLen. */
function checkPositions(pages: Pages, rows: QueryRows): void {
  if (pages.kvLens.host === null) return;
  for (const [b, kvLen] of pages.kvLens.host.entries()) {
    const qLen = rows.length(b);
    if (qLen === null || kvLen >= qLen) continue;
    throw invalid(
      OPERATION,
      `kvLens[${b}] expected at least ${qLen}, the rows that are appended, got ${kvLen}`,
      "count this call's rows in",
    );
  }
}

function enqueue(
  k: Tensor,
  v: Tensor,
  q: Tensor | null,
  qOut: Tensor | null,
  table: RopeTable | null,
  pages: Pages,
  rows: QueryRows,
): void {
  const { device, dtype } = k;
  const [totalQ, numKvHeads, headDim] = k.shape as [number, number, number];
  const staging = new Staging(OPERATION, device);
  const cuSeqlensQ = staging.add(rows.offsets);
  const source = pagedKvArgs(OPERATION, pages, staging);
  staging.run(() => {
    const batch: BatchArgs = {
      batchSize: rows.batchSize,
      totalQ,
      maxQLen: rows.longest,
      maxKvLen: source.longest,
      uniformQLen: rows.uniform,
      uniformKvLen: 0,
      cuSeqlensQ: cuSeqlensQ(),
      cuSeqlensK: null,
      kvLens: source.kvLens(),
    };
    const placed = { count: totalQ, positions: null, seqLen: 0, batch, maxKvLen: pages.capacity };
    const cosSin = table === null ? null : cosSinRows(OPERATION, device, table, placed);
    try {
      enqueueAppendKv(device.handle, {
        q: q?.rows(OPERATION, "q") ?? null,
        qOut: qOut?.ref(OPERATION, "qOut") ?? null,
        k: k.rows(OPERATION, "k"),
        v: v.rows(OPERATION, "v"),
        cosSin: cosSin?.ref(OPERATION) ?? null,
        kv: source.kv(),
        batch,
        dtype,
        numQHeads: q?.shape[1] ?? numKvHeads,
        numKvHeads,
        headDim,
        half: (table?.rotaryDim ?? 0) / 2,
        interleaved: table?.interleaved ?? false,
      });
    } finally {
      cosSin?.dispose();
    }
  });
}
