// Random shapes and options of attention(), dense, ragged and paged at once, against float64. The seed of each is its
// name: a failure is run again with FLASH_GQA_SEED.

import { describe, it } from "vitest";
import { attention } from "../../lib/index";
import { type AttentionOptions, referenceRagged } from "../reference";
import { expectClose, expectSameBits } from "../support/compare";
import { testDevice } from "../support/device";
import { layPages } from "../support/pages";
import { Random } from "../support/random";
import { FLOAT_TYPES } from "../support/rounding";

const device = await testDevice();
const PROGRAMS = 2000;
const first = Number(process.env.FLASH_GQA_SEED ?? 1);
const count = process.env.FLASH_GQA_SEED === undefined ? PROGRAMS : 1;

async function program(seed: number): Promise<void> {
  const random = new Random(seed * 7919);
  const dtype = random.pick(FLOAT_TYPES);
  const numKvHeads = random.integer(1, 3);
  const numQHeads = numKvHeads * random.pick([1, 2, 3, 4, 5, 7, 8, 12, 16]);
  const headDim = 8 * random.pick([1, 2, 3, 4, 8, 10, 12, 16, 20, 24, 32]);
  const batch = random.integer(1, 4);
  const kvLens = Array.from({ length: batch }, () =>
    random.pick([0, 1, 2, 15, 16, 17, 37, 64, 97, 130]),
  );
  const qLens = kvLens.map((n) => random.pick([0, 1, 1, Math.min(n, 5), n, Math.min(n + 3, 40)]));
  const causal = random.uniform() > 0.15;
  const sinks = random.uniform() < 0.2;
  const shared: AttentionOptions = {
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
  const total = (x: readonly number[]) => x.reduce((a, b) => a + b, 0);
  const starts = (x: readonly number[]) =>
    Int32Array.from([0, ...x.map((_, i) => total(x.slice(0, i + 1)))]);
  const q = random.normal(total(qLens) * numQHeads * headDim);
  const k = random.normal(total(kvLens) * numKvHeads * headDim);
  const v = random.normal(total(kvLens) * numKvHeads * headDim);
  const exact = referenceRagged(
    { ...shared, q, k, v, numQHeads, numKvHeads, headDim },
    qLens,
    kvLens,
    (b) => ({ prefixLen: prefixLens[b]! }),
  );
  const options = {
    ...shared,
    sinkLogits: (shared.sinkLogits as Float32Array | null) ?? undefined,
    prefixLen: causal ? Int32Array.from(prefixLens) : 0,
    cuSeqlensQ: starts(qLens),
    lse: true,
  };
  const tensor = (data: Float32Array, rows: number, heads: number) =>
    device.tensor(data, [rows, heads, headDim], { dtype });
  const queries = tensor(q, total(qLens), numQHeads);
  const dense = attention(
    queries,
    tensor(k, total(kvLens), numKvHeads),
    tensor(v, total(kvLens), numKvHeads),
    { ...options, cuSeqlensK: starts(kvLens) },
  );
  const pageSize = random.pick([1, 8, 16, 64]);
  const laid = layPages({ k, v, numKvHeads, headDim }, kvLens, pageSize, { seed });
  const paged = attention(
    queries,
    {
      pages: device.tensor(laid.pages, [laid.numPages, 2, numKvHeads, pageSize, headDim], {
        dtype,
      }),
      pageTable: device.tensor(laid.pageTable, [batch, laid.maxPages]),
      kvLens: laid.kvLens,
    },
    options,
  );
  const o = await dense.o.read();
  // Logits grow with smScale and headDim; so does what float32 can say of them.
  const spread = Math.max(1, (shared.smScale! * headDim) / 8);
  const atol = { float32: 4e-6, bfloat16: 0.025, float16: 0.004 }[dtype] * spread;
  expectClose(await dense.lse!.read(), exact.lse, 4e-6 * spread, "lse");
  expectClose(o, exact.o, atol, "o");
  expectSameBits(await paged.o.readBits(), await dense.o.readBits(), "paged o");
  expectSameBits(await paged.lse!.readBits(), await dense.lse!.readBits(), "paged lse");
}

describe("random programs", () => {
  for (let from = first; from < first + count; from += 50) {
    const until = Math.min(from + 50, first + count);
    it(`seeds ${from} to ${until - 1}`, async () => {
      for (let seed = from; seed < until; seed++) {
        await program(seed).catch((error) => {
          throw new Error(`seed ${seed}: ${error.message}`, { cause: error });
        });
      }
    });
  }
});
