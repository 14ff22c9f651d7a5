// Programs for long runs: a seed draws shapes, options and numbers, and attention() is called with them twice, on dense
// keys and on pages.

import { attention, type Device } from "../../lib/index";
import { type AttentionOptions, referenceRagged, type States } from "../reference";
import { layPages, type PagedLayout } from "./pages";
import { Random } from "./random";
import { FLOAT_TYPES, type FloatType } from "./rounding";

export interface Program {
  dtype: FloatType;
  numQHeads: number;
  numKvHeads: number;
  headDim: number;
  pageSize: number;
  qLens: number[];
  kvLens: number[];
  prefixLens: number[];
  fixedSplits: number;
  options: AttentionOptions;
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  pages: PagedLayout;
}

export interface ProgramResult {
  o: Float32Array;
  lse: Float32Array;
  pagedO: Float32Array;
  pagedLse: Float32Array;
}

const total = (x: readonly number[]) => x.reduce((a, b) => a + b, 0);
const starts = (x: readonly number[]) =>
  Int32Array.from([0, ...x.map((_, i) => total(x.slice(0, i + 1)))]);

export function drawProgram(seed: number): Program {
  const random = new Random(seed * 7919);
  const dtype = random.pick(FLOAT_TYPES);
  const numKvHeads = random.integer(1, 3);
  const numQHeads = numKvHeads * random.pick([1, 2, 3, 4, 5, 7, 8, 12, 16]);
  const headDim = 8 * random.pick([1, 2, 3, 4, 8, 10, 12, 16, 20, 24, 32]);
  const kvLens = Array.from({ length: random.integer(1, 4) }, () =>
    random.pick([0, 1, 2, 15, 16, 17, 37, 64, 97, 130]),
  );
  const qLens = kvLens.map((n) => random.pick([0, 1, 1, Math.min(n, 5), n, Math.min(n + 3, 40)]));
  // Now and then keys for several splits, and few rows.
  if (random.uniform() < 0.15) {
    kvLens[0] = random.pick([255, 256, 257, 512, 577, 1100]);
    qLens[0] = random.pick([1, 5, 23]);
  }
  const causal = random.uniform() > 0.15;
  const sinks = random.uniform() < 0.2;
  const options: AttentionOptions = {
    causal,
    window: causal && random.uniform() < 0.5 ? random.pick([1, 2, 7, 16, 31, 64, 200]) : 0,
    sinkTokens: causal && random.uniform() < 0.3 ? random.integer(0, 40) : 0,
    softCap: random.uniform() < 0.2 ? random.integer(1, 40) : 0,
    smScale: random.uniform() < 0.2 ? random.uniform() : 1 / Math.sqrt(headDim),
    sinkLogits: sinks ? random.normal(numQHeads) : null,
  };
  const prefixLens = kvLens.map((n) =>
    causal && random.uniform() < 0.3 ? random.integer(0, n + 2) : 0,
  );
  const fixedSplits = random.uniform() < 0.3 ? random.pick([16, 64, 100, 256]) : 0;
  const q = random.normal(total(qLens) * numQHeads * headDim);
  const k = random.normal(total(kvLens) * numKvHeads * headDim);
  const v = random.normal(total(kvLens) * numKvHeads * headDim);
  const pageSize = random.pick([1, 8, 16, 64]);
  const pages = layPages({ k, v, numKvHeads, headDim }, kvLens, pageSize, { seed });
  const shape = { dtype, numQHeads, numKvHeads, headDim, pageSize, qLens, kvLens, prefixLens };
  return { ...shape, fixedSplits, options, q, k, v, pages };
}

export async function runProgram(device: Device, program: Program): Promise<ProgramResult> {
  const { dtype, numQHeads, numKvHeads, headDim, qLens, kvLens, pages, q, k, v } = program;
  const options = {
    ...program.options,
    sinkLogits: (program.options.sinkLogits as Float32Array | null) ?? undefined,
    prefixLen: program.options.causal ? Int32Array.from(program.prefixLens) : 0,
    cuSeqlensQ: starts(qLens),
    fixedSplits: program.fixedSplits,
    lse: true,
  };
  const tensor = (data: Float32Array, ...shape: number[]) => device.tensor(data, shape, { dtype });
  const results = device.tidy(() => {
    const queries = tensor(q, total(qLens), numQHeads, headDim);
    const dense = attention(
      queries,
      tensor(k, total(kvLens), numKvHeads, headDim),
      tensor(v, total(kvLens), numKvHeads, headDim),
      { ...options, cuSeqlensK: starts(kvLens) },
    );
    const kv = {
      pages: tensor(pages.pages, pages.numPages, 2, numKvHeads, program.pageSize, headDim),
      pageTable: device.tensor(pages.pageTable, [kvLens.length, pages.maxPages]),
      kvLens: pages.kvLens,
    };
    return [dense, attention(queries, kv, options)] as const;
  });
  const [dense, paged] = results;
  const reads = [dense.o, dense.lse!, paged.o, paged.lse!].map((t) => t.read());
  const [o, lse, pagedO, pagedLse] = (await Promise.all(reads)) as Float32Array[];
  for (const { o, lse } of results) {
    o.dispose();
    lse!.dispose();
  }
  return { o: o!, lse: lse!, pagedO: pagedO!, pagedLse: pagedLse! };
}

export function exactResult(program: Program): States {
  const { options, qLens, kvLens, prefixLens } = program;
  return referenceRagged({ ...options, ...program }, qLens, kvLens, (b) => ({
    prefixLen: prefixLens[b]!,
  }));
}

/**
 * Golden's tolerances. Logits grow with smScale and headDim, and so does what float32 can say of them; a capped one
 * keeps the digits that softCap leaves it.
 */
export function tolerance({ dtype, headDim, options }: Program): { o: number; lse: number } {
  const logits = 4e-6 * Math.max(1, (options.smScale! * headDim) / 8) + 6e-7 * options.softCap!;
  return { o: { float32: 0, bfloat16: 0.025, float16: 0.0032 }[dtype] + logits, lse: logits };
}
