// attention() against float64 over head groups, head sizes, odd lengths and every mask, including those that have no
// golden vectors: the prefix, and its combinations with windows and sinks.

import { describe, expect, it } from "vitest";
import { attention } from "../lib/index";
import { type AttentionOptions, EXACT, referenceAttention, referenceRagged } from "./reference";
import { expectClose, expectRms } from "./support/compare";
import { testDevice } from "./support/device";
import { Random } from "./support/random";
import { FLOAT_TYPES, type FloatType, plain, ROUND } from "./support/rounding";

const device = await testDevice();

interface Case extends AttentionOptions {
  qLen: number;
  kvLen: number;
  numQHeads?: number;
  numKvHeads?: number;
  headDim?: number;
  seed?: number;
}

const LSE_ATOL = 4e-6;
/** Half a last place of |o| <= 4 and the rounding of the probabilities, as golden's tolerances have it. */
const O_ATOL: Record<FloatType, number> = { float32: 3e-6, bfloat16: 0.022, float16: 0.003 };

async function check(c: Case, dtype: FloatType, looser = 1): Promise<void> {
  const { qLen, kvLen, numQHeads = 2, numKvHeads = 1, headDim = 64, seed = 1, ...options } = c;
  const random = new Random(seed + qLen * 1000 + kvLen + headDim);
  const q = random.normal(qLen * numQHeads * headDim);
  const k = random.normal(kvLen * numKvHeads * headDim);
  const v = random.normal(kvLen * numKvHeads * headDim);
  const { sinkLogits, ...rest } = options;
  const result = attention(
    device.tensor(q, [qLen, numQHeads, headDim], { dtype }),
    device.tensor(k, [kvLen, numKvHeads, headDim], { dtype }),
    device.tensor(v, [kvLen, numKvHeads, headDim], { dtype }),
    {
      ...rest,
      sinkLogits: sinkLogits
        ? device.tensor(Float32Array.from(sinkLogits), [numQHeads])
        : undefined,
      lse: true,
    },
  );
  const problem = { q, k, v, qLen, kvLen, numQHeads, numKvHeads, headDim, ...options };
  const exact = referenceAttention(problem);
  const [o, lse] = await Promise.all([result.o.read(), result.lse!.read()]);
  expectClose(lse, exact.lse, looser * LSE_ATOL, "lse");
  expectClose(o, exact.o, looser * O_ATOL[dtype], "o");
  expectRms(o, exact.o, referenceAttention(problem, plain(dtype)).o);
  for (const tensor of [result.o, result.lse!]) tensor.dispose();
}

describe.each(FLOAT_TYPES)("attention against float64 in %s", (dtype) => {
  it.each([1, 3, 5, 7, 8, 12, 16])("group size %i", async (groupSize) => {
    await check({ qLen: 9, kvLen: 37, numQHeads: groupSize * 2, numKvHeads: 2 }, dtype);
    await check({ qLen: 1, kvLen: 97, numQHeads: groupSize * 2, numKvHeads: 2 }, dtype);
  });

  it.each([1, 37, 97, 113, 577])("length %i", async (length) => {
    await check({ qLen: Math.min(length, 150), kvLen: length, headDim: 32 }, dtype);
    await check({ qLen: 1, kvLen: length, headDim: 32 }, dtype);
    await check({ qLen: 1, kvLen: length, headDim: 32, window: 64 }, dtype);
  });

  it("every head_dim that is a multiple of 8 up to 256", async () => {
    for (let headDim = 8; headDim <= 256; headDim += 8) {
      await check({ qLen: 5, kvLen: 21, headDim, numQHeads: 3 }, dtype);
      await check({ qLen: 1, kvLen: 21, headDim, numQHeads: 3 }, dtype);
    }
  });

  it("query longer than the keys: rows that see no key are 0 and -inf", async () => {
    await check({ qLen: 12, kvLen: 7 }, dtype);
    await check({ qLen: 12, kvLen: 7, window: 2 }, dtype);
    await check({ qLen: 6, kvLen: 0 }, dtype);
    await check({ qLen: 6, kvLen: 3, sinkLogits: [0.5, -1] }, dtype);
  });

  it.each([1, 2, 15, 16, 17, 31, 63, 64, 65, 112, 113, 114, 1000])("window %i", async (window) => {
    await check({ qLen: 40, kvLen: 113, window, headDim: 32 }, dtype);
    await check({ qLen: 40, kvLen: 113, window, sinkTokens: 5, headDim: 32 }, dtype);
  });

  it.each([
    { prefixLen: 1 },
    { prefixLen: 20 },
    { prefixLen: 64 },
    { prefixLen: 113 },
    { prefixLen: 5000 },
    { prefixLen: 50, window: 20 },
    { prefixLen: 50, window: 20, sinkTokens: 4 },
    { prefixLen: 90, window: 3, sinkTokens: 60 },
  ])("prefix: %o", async (options) => {
    await check({ qLen: 113, kvLen: 113, headDim: 32, ...options }, dtype);
    await check({ qLen: 40, kvLen: 113, headDim: 32, ...options }, dtype);
  });

  it.each<AttentionOptions>([
    { softCap: 1 },
    { softCap: 30, window: 16 },
    { smScale: 0 },
    { smScale: 1 },
    { smScale: -0.125 },
    { sinkLogits: [2, -3] },
    { sinkLogits: [40, -60], window: 9, sinkTokens: 2 },
    { sinkLogits: [0, 1], softCap: 5, prefixLen: 30 },
    { causal: false },
    { causal: false, softCap: 10, sinkLogits: [1, 0] },
  ])("options: %o", async (options) => {
    await check({ qLen: 33, kvLen: 70, headDim: 32, ...options }, dtype);
    await check({ qLen: 1, kvLen: 70, headDim: 32, ...options }, dtype);
  });

  it("a ragged batch with empty sequences and a prefix for each", async () => {
    const shape = { numQHeads: 6, numKvHeads: 2, headDim: 32 };
    const qLens = [0, 7, 1, 0, 20, 3];
    const kvLens = [0, 7, 40, 9, 33, 0];
    const prefixLens = [3, 4, 0, 2, 30, 1];
    const random = new Random(77);
    const total = (x: number[]) => x.reduce((a, b) => a + b, 0);
    const q = random.normal(total(qLens) * 6 * 32);
    const k = random.normal(total(kvLens) * 2 * 32);
    const v = random.normal(total(kvLens) * 2 * 32);
    const starts = (x: number[]) =>
      Int32Array.from([0, ...x.map((_, i) => total(x.slice(0, i + 1)))]);
    const { o, lse } = attention(
      device.tensor(q, [total(qLens), 6, 32], { dtype }),
      device.tensor(k, [total(kvLens), 2, 32], { dtype }),
      device.tensor(v, [total(kvLens), 2, 32], { dtype }),
      {
        cuSeqlensQ: starts(qLens),
        cuSeqlensK: starts(kvLens),
        prefixLen: Int32Array.from(prefixLens),
        lse: true,
      },
    );
    const problem = { ...shape, q, k, v };
    const perSequence = (b: number) => ({ prefixLen: prefixLens[b]! });
    const exact = referenceRagged(problem, qLens, kvLens, perSequence, EXACT);
    expectClose(await lse!.read(), exact.lse, LSE_ATOL);
    const read = await o.read();
    expectClose(read, exact.o, O_ATOL[dtype]);
    const yardstick = referenceRagged(problem, qLens, kvLens, perSequence, plain(dtype));
    expectRms(read, exact.o, yardstick.o);
  });

  it("logits far outside exp's range", async () => {
    // A logit of 300 has its last place at 3e-5, and so has its log-sum-exp.
    await check({ qLen: 9, kvLen: 50, headDim: 32, smScale: 12 }, dtype, 15);
    await check({ qLen: 9, kvLen: 50, headDim: 32, sinkLogits: [500, -500] }, dtype, 15);
  });
});

describe("NaN in V", () => {
  it("reaches every row that sees it, and no other head or column", async () => {
    const [qLen, headDim] = [6, 32];
    const random = new Random(5);
    const [q, k, v] = [0, 1, 2].map(() => random.normal(qLen * 2 * headDim));
    v![(4 * 2 + 1) * headDim + 3] = NaN;
    const shape = [qLen, 2, headDim];
    const o = await attention(
      device.tensor(q!, shape),
      device.tensor(k!, shape),
      device.tensor(v!, shape),
    ).o.read();
    for (const [i, x] of o.entries()) {
      const column = i % (2 * headDim) === headDim + 3;
      if (!column) expect(x, `element ${i}`).not.toBeNaN();
      else if (Math.floor(i / (2 * headDim)) >= 4) expect(x, `element ${i}`).toBeNaN();
    }
  });
});

describe("conversion", () => {
  it("of float32 to 16 bits is to nearest even", async () => {
    const random = new Random(3);
    const x = new Float32Array(4096);
    for (let i = 0; i < x.length; i++)
      x[i] = random.normal(1)[0]! * 2 ** random.integer(-30, 20) * 1.0001;
    x.set([
      0,
      -0,
      Infinity,
      -Infinity,
      NaN,
      65504,
      65519.9,
      65520,
      2 ** -24,
      2 ** -25,
      3 * 2 ** -25,
    ]);
    x.set([1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -11, 1 + 3 * 2 ** -11, 3.4e38, -3.4e38], 20);
    for (const dtype of ["bfloat16", "float16"] as const) {
      const read = await device.tensor(x, [x.length], { dtype }).read();
      for (const [i, y] of read.entries()) {
        const want = ROUND[dtype](x[i]!);
        expect(Object.is(y, want), `${dtype} of ${x[i]} is ${y}, expected ${want}`).toBe(true);
      }
    }
  });
});
