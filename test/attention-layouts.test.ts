// The same attention given in other ways: strided views, outputs of one's own, page tables by row, uniform batches, and
// keys worked on in splits.

import { describe, expect, it } from "vitest";
import { appendKv, attention, type RopeTable, rope, type Tensor } from "../lib/index";
import { type AttentionOptions, referenceAttention } from "./reference";
import { expectClose, expectRms, expectSameBits } from "./support/compare";
import { testDevice } from "./support/device";
import { expectError } from "./support/errors";
import { layPages } from "./support/pages";
import { Random } from "./support/random";
import { FLOAT_TYPES, plain } from "./support/rounding";

const device = await testDevice();
const [Q_HEADS, KV_HEADS, HEAD_DIM] = [6, 2, 32];
const O_ATOL = { float32: 3e-6, bfloat16: 0.022, float16: 0.003 };

describe.each(FLOAT_TYPES)("in %s", (dtype) => {
  const random = new Random(3);
  const fused = random.normal(20 * (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM);
  /** One row holds q, k and v of a token, as a fused projection writes them. */
  const qkv = () => device.tensor(fused, [20, Q_HEADS + 2 * KV_HEADS, HEAD_DIM], { dtype });
  const views = (whole: Tensor) => {
    const at = (first: number, heads: number) => whole.slice(1, first, first + heads);
    return [at(0, Q_HEADS), at(Q_HEADS, KV_HEADS), at(Q_HEADS + KV_HEADS, KV_HEADS)] as const;
  };

  it("views of a fused projection are as good as copies", async () => {
    const [q, k, v] = views(qkv());
    const strided = attention(q, k, v, { lse: true, window: 7 });
    const dense = attention(q.clone(), k.clone(), v.clone(), { lse: true, window: 7 });
    expectSameBits(await strided.o.readBits(), await dense.o.readBits(), "o");
    expectSameBits(await strided.lse!.readBits(), await dense.lse!.readBits(), "lse");
  });

  it("dense rows are divided evenly among the sequences of cuSeqlensK where there is no cuSeqlensQ", async () => {
    const [q, k, v] = views(qkv());
    const rows = q.slice(0, 0, 6);
    const cuSeqlensK = device.tensor(Int32Array.of(0, 4, 4, 20), [4]);
    const even = attention(rows, k, v, { cuSeqlensK, lse: true });
    const told = attention(rows, k, v, {
      cuSeqlensK,
      cuSeqlensQ: Int32Array.of(0, 2, 4, 6),
      lse: true,
    });
    expectSameBits(await even.o.readBits(), await told.o.readBits(), "o");
    expectSameBits(await even.lse!.readBits(), await told.lse!.readBits(), "lse");
  });

  it.each<[string, () => RopeTable | undefined]>([
    ["without RoPE", () => undefined],
    ["with RoPE", () => device.rope({ headDim: HEAD_DIM })],
    ["with interleaved RoPE", () => device.rope({ headDim: HEAD_DIM, interleaved: true })],
    ["with partial RoPE", () => device.rope({ headDim: HEAD_DIM, partialRotaryFactor: 0.5 })],
  ])("appendKv %s takes views too, and attention finds what it wrote", async (_, makeTable) => {
    const table = makeTable();
    const [q, k, v] = views(qkv());
    const kv = {
      pages: device.tensor(
        new Float32Array(5 * 2 * KV_HEADS * 8 * HEAD_DIM).fill(NaN),
        [5, 2, KV_HEADS, 8, HEAD_DIM],
        { dtype },
      ),
      pageTable: [Int32Array.of(4, 0, 2)],
      kvLens: [20],
    };
    const turned = appendKv(k, v, kv, table ? { q, rope: table } : {});
    const paged = attention(turned.q ?? q, kv);
    const dense = table
      ? attention(rope(q, table), rope(k, table), v)
      : attention(q.clone(), k.clone(), v.clone());
    expectSameBits(await paged.o.readBits(), await dense.o.readBits());
  });

  it("o and lse may be tensors of one's own, and nothing else is touched", async () => {
    const [q, k, v] = views(qkv());
    const room = device.zeros([22, Q_HEADS, HEAD_DIM], dtype);
    const lse = device.zeros([20, Q_HEADS]);
    const given = attention(q, k, v, { o: room.slice(0, 1, 21), lse });
    const made = attention(q, k, v, { lse: true });
    expectSameBits(await given.o.readBits(), await made.o.readBits(), "o");
    expectSameBits(await lse.readBits(), await made.lse!.readBits(), "lse");
    const whole = await room.read();
    const width = Q_HEADS * HEAD_DIM;
    const around = [...whole.subarray(0, width), ...whole.subarray(21 * width)];
    expect(around.every((x) => x === 0)).toBe(true);
  });

  it("rows of the page table by tableRows, uniform rows without cuSeqlensQ, and q of four axes", async () => {
    const [batch, qLen] = [3, 4];
    const kvLens = [9, 30, 17];
    const total = kvLens.reduce((a, b) => a + b);
    const k = random.normal(total * KV_HEADS * HEAD_DIM);
    const laid = layPages(
      { k, v: k.toReversed(), numKvHeads: KV_HEADS, headDim: HEAD_DIM },
      kvLens,
      8,
      { seed: 1 },
    );
    const pages = device.tensor(laid.pages, [laid.numPages, 2, KV_HEADS, 8, HEAD_DIM], { dtype });
    const q = device.tensor(
      random.normal(batch * qLen * Q_HEADS * HEAD_DIM),
      [batch * qLen, Q_HEADS, HEAD_DIM],
      { dtype },
    );
    const rows = kvLens.map((_, b) =>
      laid.pageTable.slice(b * laid.maxPages, (b + 1) * laid.maxPages),
    );
    const pageTable = device.tensor(laid.pageTable, [batch, laid.maxPages]);
    const want = await attention(
      q,
      { pages, pageTable, kvLens },
      { cuSeqlensQ: [0, 4, 8, 12] },
    ).o.readBits();
    const same = async (o: Tensor, what: string) => expectSameBits(await o.readBits(), want, what);

    await same(attention(q, { pages, pageTable, kvLens }).o, "uniform rows");
    await same(attention(q, { pages, pageTable: laid.pageTable, kvLens }).o, "a flat table");
    await same(attention(q, { pages, pageTable: rows, kvLens }).o, "a table by rows");
    const four = attention(q.reshape([batch, qLen, Q_HEADS, HEAD_DIM]), {
      pages,
      pageTable,
      kvLens,
    });
    expect(four.o.shape).toEqual([batch, qLen, Q_HEADS, HEAD_DIM]);
    await same(four.o, "four axes");
    const [a, b, c] = rows as [Int32Array, Int32Array, Int32Array];
    for (const tableRows of [[3, 0, 1], device.tensor(Int32Array.of(3, 0, 1), [3])]) {
      await same(
        attention(q, { pages, pageTable: [b, c, [], a], kvLens, tableRows }).o,
        "tableRows",
      );
    }
    for (const wrong of [
      [3, 0, 4],
      [3, 0, -1],
      [3, 0],
    ]) {
      const call = () =>
        attention(q, { pages, pageTable: [b, c, [], a], kvLens, tableRows: wrong });
      expectError(call, "INVALID_ARGUMENT", "tableRows");
    }
  });

  it.each<[string, AttentionOptions]>([
    ["plain", {}],
    ["with sink logits, which count once", { sinkLogits: [3, -1, 0, 2, 5, -4] }],
    ["with a window that begins inside a split", { window: 100, sinkTokens: 5 }],
    ["with a soft cap", { softCap: 4 }],
    ["with a prefix", { prefixLen: 150 }],
    ["without the causal mask", { causal: false }],
  ])("in splits of a few tokens, %s", async (_, options) => {
    for (const [qLen, kvLen] of [
      [1, 211],
      [5, 211],
      [70, 90],
    ] as const) {
      const shape = { qLen, kvLen, numQHeads: Q_HEADS, numKvHeads: KV_HEADS, headDim: HEAD_DIM };
      const q = random.normal(qLen * Q_HEADS * HEAD_DIM);
      const k = random.normal(kvLen * KV_HEADS * HEAD_DIM);
      const v = random.normal(kvLen * KV_HEADS * HEAD_DIM);
      const { sinkLogits, ...rest } = options;
      const problem = { ...shape, ...options, q, k, v };
      const exact = referenceAttention(problem);
      const yardstick = referenceAttention(problem, plain(dtype));
      for (const fixedSplits of [1, 16, 64, 1000]) {
        const { o, lse } = attention(
          device.tensor(q, [qLen, Q_HEADS, HEAD_DIM], { dtype }),
          device.tensor(k, [kvLen, KV_HEADS, HEAD_DIM], { dtype }),
          device.tensor(v, [kvLen, KV_HEADS, HEAD_DIM], { dtype }),
          {
            ...rest,
            sinkLogits: sinkLogits ? [...(sinkLogits as number[])] : undefined,
            lse: true,
            fixedSplits,
          },
        );
        const read = await o.read();
        expectClose(await lse!.read(), exact.lse, 4e-6, `lse, splits of ${fixedSplits}`);
        expectClose(read, exact.o, O_ATOL[dtype], `o, splits of ${fixedSplits}`);
        expectRms(read, exact.o, yardstick.o);
      }
    }
  });

  it("over 9,000 keys, in the splits that it chooses itself", async () => {
    const [kvLen, headDim] = [9000, 64];
    const q = random.normal(2 * 4 * headDim);
    const k = random.normal(kvLen * headDim);
    const v = random.normal(kvLen * headDim);
    for (const options of [{}, { sinkLogits: [1, 2, 8, -3] }, { window: 5000, sinkTokens: 3 }]) {
      const problem = { ...options, q, k, v, qLen: 2, kvLen, numQHeads: 4, numKvHeads: 1, headDim };
      const exact = referenceAttention(problem);
      const { o, lse } = attention(
        device.tensor(q, [2, 4, headDim], { dtype }),
        device.tensor(k, [kvLen, 1, headDim], { dtype }),
        device.tensor(v, [kvLen, 1, headDim], { dtype }),
        { ...options, lse: true },
      );
      const read = await o.read();
      expectClose(await lse!.read(), exact.lse, 8e-6, "lse");
      expectClose(read, exact.o, O_ATOL[dtype] / 8, "o");
      expectRms(read, exact.o, referenceAttention(problem, plain(dtype)).o);
    }
  });
});

describe("no rows", () => {
  it("is a result, not an error", async () => {
    const none = device.zeros([0, 4, 16]);
    const kv = device.zeros([3, 2, 16]);
    const { o, lse } = attention(none, kv, kv, { lse: true });
    expect(o.shape).toEqual([0, 4, 16]);
    expect((await o.read()).length + (await lse!.read()).length).toBe(0);
    const batch = attention(
      device.zeros([0, 4, 4, 16]),
      device.zeros([0, 4, 2, 16]),
      device.zeros([0, 4, 2, 16]),
    );
    expect(batch.o.shape).toEqual([0, 4, 4, 16]);
    const keyless = attention(
      device.zeros([2, 4, 16]),
      device.zeros([0, 2, 16]),
      device.zeros([0, 2, 16]),
      { lse: true },
    );
    expect((await keyless.o.read()).every((x) => x === 0)).toBe(true);
    expect((await keyless.lse!.read()).every((x) => x === -Infinity)).toBe(true);
  });
});
