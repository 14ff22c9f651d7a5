import {
  checkBoolean,
  checkInt,
  checkNumber,
  checkOptions,
  checkSoftCap,
  checkWindow,
  INT32_MAX,
} from "../check";
import type { Device } from "../device";
import { failure, invalid } from "../errors";
import {
  type AttentionArgs,
  attention as enqueueAttention,
  explainAttention,
  type KvArgs,
  type Ref,
} from "../native";
import { Tensor } from "../tensor";
import { firstInWindow } from "../window";
import {
  checkGroup,
  checkHeadDim,
  checkOutput,
  expectAligned,
  expectApart,
  expectContiguous,
  fillBytes,
  tensorArgument,
} from "./arguments";
import { checkPageIds, type PagedKv, pagedArgument, pagedKvArgs } from "./paged";
import {
  checkTotalRows,
  offsetsArgument,
  type QueryRows,
  queryRows,
  raggedRows,
  uniformRows,
} from "./sequences";
import { type Floats, floatWords, type Ints, intWords, Staging, type Words } from "./staging";

/** Which keys a query sees and how its logits are made. */
export interface AttentionOptions {
  /**
   * Query i of a sequence sits at position kvLen - qLen + i and sees keys up to it. Default true.
   */
  causal?: boolean;
  /** How many keys a query sees, its own position included. 0 (default) or Infinity: no limit. */
  window?: number;
  /** The first n positions stay visible whatever the window. Default 0. */
  sinkTokens?: number;
  /**
   * [numQHeads] float32: a learned logit that joins each row's softmax without a value (gpt-oss).
   * Not scaled.
   */
  sinkLogits?: Floats;
  /** softCap * tanh(logit / softCap), before the mask (Gemma 2). In [1e-30, 1e30]; 0 (default): off. */
  softCap?: number;
  /** Factor on q·k. Default 1 / sqrt(headDim). */
  smScale?: number;
  /**
   * The first n positions of a sequence see each other both ways; one number or [batch] int32.
   * Default 0.
   */
  prefixLen?: number | Ints;
  /** [batch + 1] int32 prefix sums of a ragged batch's query rows. Default: as many for each. */
  cuSeqlensQ?: Ints;
  /** [batch + 1] int32 prefix sums of its key rows; with dense k and v. */
  cuSeqlensK?: Ints;
  /**
   * true, or a float32 tensor [totalQ, numQHeads] to write to: natural-log log-sum-exp of each row.
   * Default false.
   */
  lse?: boolean | Tensor;
  /** Of q's shape and dtype: where to write the output. */
  o?: Tensor;
  /** Tokens per split of a sequence's keys: its bits then do not depend on the batch. 0 (default): fastest. */
  fixedSplits?: number;
  /** Also return `kernel`, the name of the kernel that runs. Default false. */
  explain?: boolean;
}

export interface AttentionResult {
  /** Of q's shape and dtype. A row that sees no key is 0, and so is one that offsets on the device leave out. */
  o: Tensor;
  /**
   * [totalQ, numQHeads] float32, or [batch, qLen, numQHeads]; -Infinity where no key is seen, NaN in rows that offsets
   * on the device leave out. Only when asked for.
   */
  lse?: Tensor;
  /** With `explain`. */
  kernel?: string;
}

const OPTIONS = [
  "causal",
  "window",
  "sinkTokens",
  "sinkLogits",
  "softCap",
  "smScale",
  "prefixLen",
  "cuSeqlensQ",
  "cuSeqlensK",
  "lse",
  "o",
  "fixedSplits",
  "explain",
] as const;

const OPERATION = "attention";

/**
 * Grouped-query attention: softmax(mask(softCap(smScale · q kᵀ))) v, tiled, in memory that does not
 * grow with qLen · kvLen. Query head h reads KV head floor(h / groupSize), groupSize = numQHeads /
 * numKvHeads.
 *
 * @param q [totalQ, numQHeads, headDim] packed rows, or [batch, qLen, numQHeads, headDim]; float32,
 *   float16, bfloat16
 * @param k [totalKv, numKvHeads, headDim], or [batch, kvLen, numKvHeads, headDim]; q's dtype
 * @param v as k
 * @throws GqaError INVALID_ARGUMENT; UNSUPPORTED (headDim not a multiple of 8 or over 256; causal:
 *   false with window, sinkTokens or prefixLen); DISPOSED; OUT_OF_MEMORY; BUSY (host arrays inside
 *   `device.capture`)
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: AttentionOptions,
): AttentionResult;
/** The same with keys and values in pages. */
export function attention(q: Tensor, kv: PagedKv, options?: AttentionOptions): AttentionResult;
export function attention(
  q: Tensor,
  kOrPages: Tensor | PagedKv,
  vOrOptions?: Tensor | AttentionOptions,
  denseOptions?: AttentionOptions,
): AttentionResult {
  const isBatch = Tensor.isTensor(q) && q.shape.length === 4;
  const rowShape = ["numQHeads", "headDim"];
  const shape = isBatch ? ["batch", "qLen", ...rowShape] : ["totalQ", ...rowShape];
  tensorArgument(OPERATION, "q", q, shape);
  if (isBatch) expectContiguous(OPERATION, "q", q);
  expectAligned(OPERATION, "q", q);
  const numQHeads = q.shape.at(-2)!;
  const headDim = q.shape.at(-1)!;
  checkHeadDim(OPERATION, headDim);

  const dense = Tensor.isTensor(kOrPages);
  const given = dense ? denseOptions : (vOrOptions as AttentionOptions | undefined);
  if (!dense && denseOptions !== undefined) {
    throw invalid(OPERATION, "expected (q, pages, options), got a fourth argument", "leave it out");
  }
  const options = checkOptions(OPERATION, given, OPTIONS);
  const mask = maskOptions(options);
  const staging = new Staging(OPERATION, q.device);
  const source = dense
    ? denseSource(q, kOrPages, vOrOptions as Tensor, options, staging)
    : pagedSource(q, kOrPages, options, mask, staging);
  checkGroup(OPERATION, numQHeads, source.numKvHeads);
  checkTotalRows(OPERATION, "q", source.rows.totalQ);

  const { rows } = source;
  const sinkLogits = logitsArgument(options.sinkLogits, q.device, numQHeads);
  const prefixLens = prefixArgument(options.prefixLen, q.device, rows.batchSize);
  const prefixLen = typeof options.prefixLen === "number" ? options.prefixLen : 0;
  if (!mask.causal && (prefixLen > 0 || prefixLens !== null)) throw unsupportedMask("prefixLen");
  const { inputs } = source;
  inputs.cuSeqlensQ = rows.offsets?.tensor;
  inputs.sinkLogits = sinkLogits?.tensor;
  inputs.prefixLen = prefixLens?.tensor;
  const { o, lse } = outputs(q, options, inputs);
  const result: AttentionResult = lse === null ? { o } : { o, lse };

  const places = {
    cuSeqlensQ: staging.add(rows.offsets),
    sinkLogits: staging.add(sinkLogits),
    prefixLens: staging.add(prefixLens),
  };
  const explain = checkBoolean(OPERATION, "explain", options.explain ?? false);
  if (o.size === 0) return explain ? { ...result, kernel: "none: no rows" } : result;
  // Offsets on the device may leave rows out, which must not show what their memory held before.
  const unchecked = rows.offsets !== null && rows.offsets.host === null;
  staging.run(() => {
    if (unchecked && options.o === undefined) fillBytes(OPERATION, o, 0);
    if (unchecked && options.lse === true) fillBytes(OPERATION, lse!, 0xff); // NaN
    const args: AttentionArgs = {
      q: q.rows(OPERATION, "q", isBatch ? numQHeads * headDim : q.rowStride),
      o: o.ref(OPERATION, "o"),
      lse: lse?.ref(OPERATION, "lse") ?? null,
      sinkLogits: places.sinkLogits(),
      prefixLens: places.prefixLens(),
      kv: source.kv(),
      batch: {
        batchSize: rows.batchSize,
        totalQ: rows.totalQ,
        maxQLen: rows.longest,
        maxKvLen: source.longest,
        uniformQLen: rows.uniform,
        uniformKvLen: source.uniformKvLen,
        cuSeqlensQ: places.cuSeqlensQ(),
        cuSeqlensK: source.cuSeqlensK(),
        kvLens: source.kvLens(),
      },
      dtype: q.dtype,
      numQHeads,
      numKvHeads: source.numKvHeads,
      headDim,
      smScale: mask.smScale ?? 1 / Math.sqrt(headDim),
      softCap: mask.softCap,
      causal: mask.causal,
      window: mask.window,
      sinkTokens: mask.sinkTokens,
      prefixLen,
      fixedSplit: mask.fixedSplit,
    };
    if (explain) result.kernel = explainAttention(q.device.handle, args);
    enqueueAttention(q.device.handle, args);
  });
  return result;
}

type Options = Partial<AttentionOptions>;

function unsupportedMask(name: string): Error {
  return failure(
    "UNSUPPORTED",
    OPERATION,
    `causal: false with ${name} is not offered`,
    `leave ${name} out, or let causal be true`,
  );
}

function maskOptions(options: Options) {
  const causal = checkBoolean(OPERATION, "causal", options.causal ?? true);
  const window = checkWindow(OPERATION, "window", options.window);
  const sinkTokens = checkInt(OPERATION, "sinkTokens", options.sinkTokens ?? 0);
  if (!causal && window > 0) throw unsupportedMask("window");
  if (!causal && sinkTokens > 0) throw unsupportedMask("sinkTokens");
  const { smScale } = options;
  return {
    causal,
    window,
    sinkTokens,
    softCap: checkSoftCap(OPERATION, options.softCap),
    smScale: smScale === undefined ? undefined : checkNumber(OPERATION, "smScale", smScale),
    fixedSplit: checkInt(OPERATION, "fixedSplits", options.fixedSplits ?? 0),
  };
}

/**
 * Where keys and values are found; functions are called once everything has its place on the
 * device.
 */
interface Source {
  rows: QueryRows;
  numKvHeads: number;
  longest: number;
  uniformKvLen: number;
  kv: () => KvArgs;
  kvLens: () => Ref | null;
  cuSeqlensK: () => Ref | null;
  /** What an output must not overlap. */
  inputs: Record<string, Tensor | null | undefined>;
}

function denseSource(q: Tensor, k: Tensor, v: Tensor, options: Options, staging: Staging): Source {
  const { device, dtype } = q;
  const headDim = q.shape.at(-1)!;
  const isBatch = q.shape.length === 4;
  const rowsShape = isBatch ? [q.shape[0]!, "kvLen"] : ["totalKv"];
  const like = { device, dtype };
  tensorArgument(OPERATION, "k", k, [...rowsShape, "numKvHeads", headDim], like);
  tensorArgument(OPERATION, "v", v, k.shape, like);
  if (isBatch) {
    expectContiguous(OPERATION, "k", k);
    expectContiguous(OPERATION, "v", v);
  }
  expectAligned(OPERATION, "k", k);
  expectAligned(OPERATION, "v", v);
  const numKvHeads = k.shape.at(-2)!;
  const totalKv = isBatch ? k.shape[0]! * k.shape[1]! : k.shape[0]!;
  checkTotalRows(OPERATION, "k", totalKv);

  const { cuSeqlensQ, cuSeqlensK } = options;
  const ragged = cuSeqlensQ !== undefined || cuSeqlensK !== undefined;
  let rows = isBatch ? uniformRows(q.shape[0]!, q.shape[1]!) : uniformRows(1, q.shape[0]!);
  let offsetsK: Words | null = null;
  let longest = isBatch ? k.shape[1]! : totalKv;
  if (ragged) {
    if (isBatch) {
      throw invalid(
        OPERATION,
        "cuSeqlensQ and cuSeqlensK go with packed rows, got q of 4 axes",
        "reshape q, k and v to 3",
      );
    }
    if (cuSeqlensK === undefined) {
      throw invalid(OPERATION, "cuSeqlensK is missing", "pass it beside cuSeqlensQ");
    }
    offsetsK = offsetsArgument(OPERATION, "cuSeqlensK", cuSeqlensK, device, totalKv);
    rows = queryRows(OPERATION, q, offsetsK.length - 1, cuSeqlensQ, "cuSeqlensK");
    longest = raggedRows(offsetsK, totalKv).longest;
  }
  return {
    rows,
    numKvHeads,
    longest,
    uniformKvLen: ragged ? 0 : longest,
    kv: () => ({
      k: k.rows(OPERATION, "k", isBatch ? numKvHeads * headDim : k.rowStride),
      v: v.rows(OPERATION, "v", isBatch ? numKvHeads * headDim : v.rowStride),
      stridePage: 0,
      totalKv,
      pageSize: 0,
      numPages: 0,
      maxPages: 0,
      tableRows: 0,
      pageTable: null,
      tableRow: null,
    }),
    kvLens: () => null,
    cuSeqlensK: staging.add(offsetsK),
    inputs: { q, k, v, cuSeqlensK: offsetsK?.tensor },
  };
}

function pagedSource(
  q: Tensor,
  value: PagedKv,
  options: Options,
  mask: { causal: boolean; window: number; sinkTokens: number },
  staging: Staging,
): Source {
  const pages = pagedArgument(OPERATION, value, q.device, q.dtype);
  if (pages.headDim !== q.shape.at(-1)) {
    throw invalid(
      OPERATION,
      `pages expected headDim ${q.shape.at(-1)}, as q has, got ${pages.headDim}`,
    );
  }
  if (options.cuSeqlensK !== undefined) {
    throw invalid(OPERATION, "cuSeqlensK goes with dense k and v", "pages are measured by kvLens");
  }
  const rows = queryRows(OPERATION, q, pages.kvLens.length, options.cuSeqlensQ, "kvLens");
  checkPageIds(OPERATION, pages, rows, mask.sinkTokens, (kvLen, qLen) =>
    mask.causal ? firstInWindow(kvLen - qLen, mask.window) : 0,
  );
  const { kv, kvLens, longest } = pagedKvArgs(OPERATION, pages, staging);
  return {
    rows,
    numKvHeads: pages.numKvHeads,
    longest,
    uniformKvLen: 0,
    kv,
    kvLens,
    cuSeqlensK: () => null,
    inputs: {
      q,
      pages: pages.tensor,
      pageTable: pages.table.tensor,
      kvLens: pages.kvLens.tensor,
      tableRows: pages.rowOf?.tensor,
    },
  };
}

function logitsArgument(value: unknown, device: Device, numQHeads: number): Words | null {
  if (value === undefined) return null;
  return floatWords(OPERATION, "sinkLogits", value, device, { length: numQHeads });
}

function prefixArgument(value: unknown, device: Device, batchSize: number): Words | null {
  if (value === undefined) return null;
  if (typeof value === "number") {
    checkInt(OPERATION, "prefixLen", value, 0, INT32_MAX);
    return null;
  }
  return intWords(OPERATION, "prefixLen", value, device, { length: batchSize });
}

function outputs(
  q: Tensor,
  options: Options,
  inputs: Readonly<Record<string, Tensor | null | undefined>>,
): { o: Tensor; lse: Tensor | null } {
  const { device, dtype, shape } = q;
  const givenO = checkOutput(OPERATION, "o", options.o, shape, dtype, device, inputs);
  if (givenO !== undefined) expectAligned(OPERATION, "o", givenO);
  const wanted = options.lse ?? false;
  const lseShape = shape.slice(0, -1);
  const givenLse = Tensor.isTensor(wanted)
    ? checkOutput(OPERATION, "lse", wanted, lseShape, "float32", device, inputs)
    : undefined;
  const asked = givenLse !== undefined || checkBoolean(OPERATION, "lse", wanted);
  if (givenLse !== undefined) expectApart(OPERATION, "lse", givenLse, { o: givenO });
  const o = givenO ?? device.allocate(OPERATION, shape, dtype);
  return { o, lse: asked ? (givenLse ?? device.allocate(OPERATION, lseShape, "float32")) : null };
}
