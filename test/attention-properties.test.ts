// What must hold whatever the numbers: poison is never read, and the layout of memory never changes a bit.

import { describe, expect, it } from "vitest";
import { attention, mergeStates, type Tensor } from "../lib/index";
import { expectClose, expectSameBits } from "./support/compare";
import { testDevice } from "./support/device";
import { GARBAGE_ID, type LayoutOptions, layPages } from "./support/pages";
import { Random } from "./support/random";
import { FLOAT_TYPES, type FloatType } from "./support/rounding";

const device = await testDevice();

const NUM_Q_HEADS = 6;
const NUM_KV_HEADS = 2;
const HEAD_DIM = 64;
const KV_LENS = [1, 16, 37, 130, 64];
const Q_LENS = [1, 5, 1, 33, 0];

interface Ragged {
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  qLens: readonly number[];
  kvLens: readonly number[];
}

const sum = (x: readonly number[]) => x.reduce((a, b) => a + b, 0);
const starts = (lens: readonly number[]) => {
  const out = new Int32Array(lens.length + 1);
  for (const [i, n] of lens.entries()) out[i + 1] = out[i]! + n;
  return out;
};

function ragged(seed: number, qLens = Q_LENS, kvLens = KV_LENS): Ragged {
  const random = new Random(seed);
  return {
    q: random.normal(sum(qLens) * NUM_Q_HEADS * HEAD_DIM),
    k: random.normal(sum(kvLens) * NUM_KV_HEADS * HEAD_DIM),
    v: random.normal(sum(kvLens) * NUM_KV_HEADS * HEAD_DIM),
    qLens,
    kvLens,
  };
}

type Options = { window?: number; sinkTokens?: number; prefixLen?: number; softCap?: number };

function dense(x: Ragged, dtype: FloatType, options: Options = {}) {
  const kvShape = [sum(x.kvLens), NUM_KV_HEADS, HEAD_DIM];
  return attention(
    device.tensor(x.q, [sum(x.qLens), NUM_Q_HEADS, HEAD_DIM], { dtype }),
    device.tensor(x.k, kvShape, { dtype }),
    device.tensor(x.v, kvShape, { dtype }),
    { ...options, lse: true, cuSeqlensQ: starts(x.qLens), cuSeqlensK: starts(x.kvLens) },
  );
}

function paged(
  x: Ragged,
  dtype: FloatType,
  pageSize: number,
  layout: LayoutOptions = {},
  options: Options = {},
) {
  const kv = { k: x.k, v: x.v, numKvHeads: NUM_KV_HEADS, headDim: HEAD_DIM };
  const laid = layPages(kv, x.kvLens, pageSize, layout);
  const pageShape = [laid.numPages, 2, NUM_KV_HEADS, pageSize, HEAD_DIM];
  return attention(
    device.tensor(x.q, [sum(x.qLens), NUM_Q_HEADS, HEAD_DIM], { dtype }),
    {
      pages: device.tensor(laid.pages, pageShape, { dtype }),
      pageTable: device.tensor(laid.pageTable, [x.kvLens.length, laid.maxPages]),
      kvLens: device.tensor(laid.kvLens, [x.kvLens.length]),
    },
    { ...options, lse: true, cuSeqlensQ: starts(x.qLens) },
  );
}

type Result = { o: Tensor; lse?: Tensor };

async function sameBits(a: Result, b: Result, what: string): Promise<void> {
  const [ao, bo, al, bl] = await Promise.all([
    a.o.readBits(),
    b.o.readBits(),
    a.lse!.readBits(),
    b.lse!.readBits(),
  ]);
  expectSameBits(ao, bo, `${what}: o`);
  expectSameBits(al, bl, `${what}: lse`);
}

const MASKS: Options[] = [{}, { window: 16 }, { window: 24, sinkTokens: 3 }, { softCap: 5 }];

describe.each(FLOAT_TYPES)("paged attention in %s", (dtype) => {
  it.each(MASKS)("equals dense attention bit for bit: %o", async (options) => {
    const x = ragged(1);
    await sameBits(paged(x, dtype, 16, {}, options), dense(x, dtype, options), "paged");
  });

  it("gives the same bits for any order of pages and any page size", async () => {
    const x = ragged(2);
    const first = paged(x, dtype, 16);
    for (const seed of [1, 2, 3]) await sameBits(paged(x, dtype, 16, { seed }), first, "permuted");
    for (const pageSize of [8, 32, 64, 128, 256]) {
      await sameBits(paged(x, dtype, pageSize, { seed: pageSize }), first, `pages of ${pageSize}`);
    }
    // In pages of fewer than 8 tokens sequences of more than 64 rows may take another kernel.
    const few = ragged(
      2,
      Q_LENS.map((length) => Math.min(length, 21)),
    );
    const usual = paged(few, dtype, 16);
    for (const pageSize of [1, 2, 4]) {
      const small = paged(few, dtype, pageSize, { seed: pageSize });
      await sameBits(small, usual, `pages of ${pageSize}`);
    }
  });

  it("never reads beyond kv_len, nor an entry that the window has left behind", async () => {
    const x = ragged(3);
    const options = { window: 20, sinkTokens: 4 };
    const want = dense(x, dtype, options);
    const pageSize = 8;
    const dead = (b: number, page: number) => {
      const firstSeen = x.kvLens[b]! - x.qLens[b]! - options.window + 1;
      return page * pageSize >= options.sinkTokens && (page + 1) * pageSize <= firstSeen;
    };
    for (const poison of [NaN, Infinity, 3000]) {
      for (const deadId of [GARBAGE_ID, -1, -2_000_000_000]) {
        const got = paged(x, dtype, pageSize, { seed: 4, poison, dead, deadId }, options);
        await sameBits(got, want, `poison ${poison}, dead entries ${deadId}`);
      }
    }
    await device.synchronize();
  });
});

describe.each(FLOAT_TYPES)("attention in %s", (dtype) => {
  it("gives the same bits run after run", async () => {
    const x = ragged(5);
    const first = dense(x, dtype);
    for (let i = 0; i < 5; i++) await sameBits(dense(x, dtype), first, `run ${i}`);
  });

  it("a window of kv_len or more is no window, bit for bit", async () => {
    const x = ragged(6);
    const want = dense(x, dtype);
    for (const window of [130, 131, 4096, 2 ** 31 - 1]) {
      await sameBits(dense(x, dtype, { window }), want, `window ${window}`);
    }
  });

  it("V = 1 gives O = 1", async () => {
    const x = ragged(7);
    x.v.fill(1);
    for (const options of MASKS) {
      const o = await dense(x, dtype, options).o.read();
      expectClose(o, new Float32Array(o.length).fill(1), dtype === "float32" ? 1e-6 : 0);
    }
  });

  it("V = one-hot rows recovers the probabilities: none negative, none in the future, sum 1", async () => {
    const kvLen = HEAD_DIM;
    const x = ragged(8, [kvLen], [kvLen]);
    x.v.fill(0);
    for (let t = 0; t < kvLen; t++) {
      for (let h = 0; h < NUM_KV_HEADS; h++) x.v[(t * NUM_KV_HEADS + h) * HEAD_DIM + t] = 1;
    }
    const p = await dense(x, dtype, { window: 10, sinkTokens: 2 }).o.read();
    for (let row = 0; row < kvLen; row++) {
      for (let head = 0; head < NUM_Q_HEADS; head++) {
        const at = (row * NUM_Q_HEADS + head) * HEAD_DIM;
        let total = 0;
        for (let key = 0; key < kvLen; key++) {
          const seen = key <= row && (key > row - 10 || key < 2);
          if (!seen) expect(p[at + key], `row ${row} key ${key}`).toBe(0);
          else expect(p[at + key], `row ${row} key ${key}`).toBeGreaterThanOrEqual(0);
          total += p[at + key]!;
        }
        expect(total).toBeCloseTo(1, dtype === "bfloat16" ? 1 : 2);
      }
    }
  });

  it("with fixedSplits a sequence's bits do not depend on what else is in the batch", async () => {
    const x = ragged(9);
    const options = { fixedSplits: 32 };
    const whole = paged(x, dtype, 16, {}, options as Options);
    const bits = await whole.o.readBits();
    let q = 0;
    let kv = 0;
    for (const [b, qLen] of x.qLens.entries()) {
      const kvLen = x.kvLens[b]!;
      const cut = (y: Float32Array, first: number, rows: number, width: number) =>
        y.subarray(first * width, (first + rows) * width);
      const alone: Ragged = {
        q: cut(x.q, q, qLen, NUM_Q_HEADS * HEAD_DIM),
        k: cut(x.k, kv, kvLen, NUM_KV_HEADS * HEAD_DIM),
        v: cut(x.v, kv, kvLen, NUM_KV_HEADS * HEAD_DIM),
        qLens: [qLen],
        kvLens: [kvLen],
      };
      if (qLen > 0) {
        const got = await paged(alone, dtype, 16, { seed: b }, options as Options).o.readBits();
        const width = NUM_Q_HEADS * HEAD_DIM;
        expectSameBits(got, bits.subarray(q * width, (q + qLen) * width), `sequence ${b}`);
      }
      q += qLen;
      kv += kvLen;
    }
  });

  it("mergeStates of parts over disjoint keys is the whole attention", async () => {
    const x = ragged(10, [4], [97]);
    const whole = dense(x, dtype);
    const q = device.tensor(x.q, [4, NUM_Q_HEADS, HEAD_DIM], { dtype });
    const part = (first: number, last: number, causal: boolean) => {
      const width = NUM_KV_HEADS * HEAD_DIM;
      const rows = (y: Float32Array) =>
        device.tensor(
          y.subarray(first * width, last * width),
          [last - first, NUM_KV_HEADS, HEAD_DIM],
          {
            dtype,
          },
        );
      const { o, lse } = attention(q, rows(x.k), rows(x.v), { causal, lse: true });
      return { o, lse: lse! };
    };
    // The last four keys are the queries' own positions: causal there, all visible before.
    const merged = mergeStates([part(0, 30, false), part(30, 93, false), part(93, 97, true)]);
    const atol = { float32: 2e-6, bfloat16: 0.02, float16: 0.003 }[dtype];
    expectClose(await merged.o.read(), await whole.o.read(), atol, "o");
    const lse = await merged.lse!.read();
    expectClose(lse, await whole.lse!.read(), 4e-6, "lse");
  });

  // On a GPU they are divided among blocks by a warp, 32 at a time.
  it.each([33, 128, 129])("of %i sequences gives each what it gets alone", async (batch) => {
    const random = new Random(batch);
    const kvLens = Array.from({ length: batch }, () => random.integer(1, 80));
    const x = ragged(batch, Array(batch).fill(1), kvLens);
    const together = await dense(x, dtype).o.read();
    const [qWidth, kvWidth] = [NUM_Q_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM];
    const atol = { float32: 2e-6, bfloat16: 0.02, float16: 0.003 }[dtype];
    const kvStarts = starts(kvLens);
    for (let b = 0; b < batch; b += 8) {
      const [from, to] = [kvStarts[b]! * kvWidth, kvStarts[b + 1]! * kvWidth];
      const alone = dense(
        {
          q: x.q.slice(b * qWidth, (b + 1) * qWidth),
          k: x.k.slice(from, to),
          v: x.v.slice(from, to),
          qLens: [1],
          kvLens: [kvLens[b]!],
        },
        dtype,
      );
      const mine = together.slice(b * qWidth, (b + 1) * qWidth);
      expectClose(mine, await alone.o.read(), atol, `sequence ${b}`);
    }
  });

  it("mergeStates ignores a part that saw no key", async () => {
    const x = ragged(11, [3], [20]);
    const { o, lse } = dense(x, dtype);
    const empty = {
      o: device.zeros([3, NUM_Q_HEADS, HEAD_DIM], dtype),
      lse: device.tensor(new Float32Array(3 * NUM_Q_HEADS).fill(-Infinity), [3, NUM_Q_HEADS]),
    };
    for (const parts of [
      [{ o, lse: lse! }, empty],
      [empty, { o, lse: lse! }],
    ]) {
      const merged = mergeStates(parts);
      expectSameBits(await merged.o.readBits(), await o.readBits());
    }
    const none = mergeStates([empty, empty]);
    expect((await none.o.read()).every((y) => y === 0)).toBe(true);
    expect((await none.lse!.read()).every((y) => y === -Infinity)).toBe(true);
  });
});
