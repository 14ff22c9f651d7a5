// 32 heads at 32,768 tokens: little more memory than the inputs and the output. The square of the length would be
// 137 GB.

import { expect, it } from "vitest";
import { attention } from "../../lib/index";
import { referenceAttention } from "../reference";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { Random } from "../support/random";

const device = await testDevice();

it.each([
  ["a window of 512", { window: 512 }],
  ["no window", {}],
])(
  "attention over 32,768 tokens, 32 heads on 8, %s: memory by the tile, and right",
  async (_, options) => {
    const [length, numQHeads, numKvHeads, headDim] = [32_768, 32, 8, 64];
    const random = new Random(1);
    const cycle = random.normal(numQHeads * headDim * 509);
    const fill = (count: number) =>
      Float32Array.from({ length: count }, (_, i) => cycle[i % cycle.length]!);
    const qData = fill(length * numQHeads * headDim);
    const kvData = fill(length * numKvHeads * headDim);
    const dtype = "bfloat16" as const;
    const q = device.tensor(qData, [length, numQHeads, headDim], { dtype });
    const k = device.tensor(kvData, [length, numKvHeads, headDim], { dtype });
    const v = device.tensor(kvData, [length, numKvHeads, headDim], { dtype });
    await device.synchronize();
    const before = process.memoryUsage.rss();
    const held = device.memory().allocated;
    const { o, lse } = attention(q, k, v, { ...options, lse: true });
    await device.synchronize();
    expect(device.memory().allocated - held).toBeLessThanOrEqual(o.byteLength + lse!.byteLength);
    if (device.kind === "cpu") {
      const grown = process.memoryUsage.rss() - before;
      expect(grown).toBeLessThan(o.byteLength + lse!.byteLength + (192 << 20));
    }
    // A few rows against float64: the last one, with every key that it sees.
    for (const row of [0, 700, length - 1]) {
      const rows = (data: Float32Array, heads: number, count: number, first = 0) =>
        data.subarray(first * heads * headDim, (first + count) * heads * headDim);
      const exact = referenceAttention({
        ...options,
        q: rows(qData, numQHeads, 1, row),
        k: rows(kvData, numKvHeads, row + 1),
        v: rows(kvData, numKvHeads, row + 1),
        qLen: 1,
        kvLen: row + 1,
        numQHeads,
        numKvHeads,
        headDim,
      });
      expectClose(await o.slice(0, row, row + 1).read(), exact.o, 0.02, `row ${row}`);
      expectClose(await lse!.slice(0, row, row + 1).read(), exact.lse, 2e-5, `lse of row ${row}`);
    }
    for (const tensor of [q, k, v, o, lse!]) tensor.dispose();
  },
);
