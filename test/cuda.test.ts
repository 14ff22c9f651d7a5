// The two back ends beside each other: the same programs, the same answers within tolerance, the same drawn tokens.

import { afterAll, describe, expect, it } from "vitest";
import { attention, Device, rope } from "../lib/index";
import * as nn from "../lib/nn/index";
import { expectClose } from "./support/compare";
import { cuda, deviceName } from "./support/device";
import { Random } from "./support/random";
import { FLOAT_TYPES, type FloatType } from "./support/rounding";

const needs = "(needs a GPU)";
const cpu = await Device.open("cpu");
const gpu = cuda ? await Device.open(deviceName) : cpu;
afterAll(() => {
  cpu.dispose();
  gpu.dispose();
});

const ATOL: Record<FloatType, number> = { float32: 6e-6, bfloat16: 0.04, float16: 0.006 };

describe.each(FLOAT_TYPES)("CPU and CUDA in %s", (dtype) => {
  it.skipIf(!cuda)(`attention agrees on random shapes and options ${needs}`, async () => {
    for (let seed = 1; seed <= 150; seed++) {
      const random = new Random(seed);
      const numKvHeads = random.integer(1, 4);
      const numQHeads = numKvHeads * random.integer(1, 8);
      const headDim = 8 * random.integer(1, 32);
      const kvLen = random.pick([1, 16, 37, 128, 500]);
      const qLen = Math.min(kvLen, random.pick([1, 1, 7, 64, 130]));
      const options = {
        window: random.uniform() < 0.4 ? random.integer(1, kvLen + 5) : 0,
        sinkTokens: random.uniform() < 0.3 ? random.integer(0, 20) : 0,
        softCap: random.uniform() < 0.2 ? 20 : 0,
        prefixLen: random.uniform() < 0.2 ? random.integer(0, kvLen) : 0,
        sinkLogits: random.uniform() < 0.2 ? random.normal(numQHeads) : undefined,
        lse: true as const,
      };
      const q = random.normal(qLen * numQHeads * headDim);
      const k = random.normal(kvLen * numKvHeads * headDim);
      const v = random.normal(kvLen * numKvHeads * headDim);
      const on = async (device: Device) => {
        const { o, lse } = attention(
          device.tensor(q, [qLen, numQHeads, headDim], { dtype }),
          device.tensor(k, [kvLen, numKvHeads, headDim], { dtype }),
          device.tensor(v, [kvLen, numKvHeads, headDim], { dtype }),
          options,
        );
        return { o: await o.read(), lse: await lse!.read() };
      };
      const [a, b] = [await on(cpu), await on(gpu)];
      expectClose(b.o, a.o, ATOL[dtype], `o of seed ${seed}`);
      expectClose(b.lse, a.lse, 1e-5, `lse of seed ${seed}`);
    }
  });

  it.skipIf(!cuda)(`linear, norms and RoPE agree ${needs}`, async () => {
    const random = new Random(9);
    const x = random.normal(37 * 320);
    const w = random.normal(200 * 320, 1 / 18);
    const on = async (device: Device) => {
      const input = device.tensor(x, [37, 320], { dtype });
      const weight = device.tensor(w.subarray(0, 320), [320], { dtype });
      const heads = input.reshape([37, 5, 64]);
      return Promise.all([
        nn.linear(input, device.tensor(w, [200, 320], { dtype })).read(),
        nn.rmsNorm(input, weight, 1e-5).read(),
        nn.siluMul(input, input).read(),
        rope(heads, device.rope({ headDim: 64 }), { start: 100_000 }).read(),
      ]);
    };
    const [a, b] = [await on(cpu), await on(gpu)];
    for (const [i, result] of a.entries()) expectClose(b[i]!, result, 8 * ATOL[dtype], `${i}`);
  });
});

describe("CPU and CUDA", () => {
  it.skipIf(!cuda)(`draw the same tokens from the same seed ${needs}`, async () => {
    const filters = [
      {},
      { temperature: 0.8, topP: 0.9 },
      { topK: 50 },
      { temperature: 0.8, topK: 40, topP: 0.95 },
      { temperature: 1.7, topK: 300, topP: 0.97 },
      { temperature: 2, topP: 0.9999 },
      { topK: 1 },
      { temperature: 0 },
    ];
    // Ties, and ids that cannot be drawn.
    for (const vocab of [7, 1000, 2048, 5003]) {
      const logits = new Random(4).normal(64 * vocab, 3).map((x, i) => {
        if (i % 11 === 3) return i % 2 === 0 ? -Infinity : NaN;
        return i % 3 === 0 ? Math.round(x) : x;
      });
      for (const options of filters) {
        const on = (device: Device) =>
          nn.sample(device.tensor(logits, [64, vocab]), { ...options, seed: 12345 }).ids.read();
        expect(await on(gpu), `${vocab} ${JSON.stringify(options)}`).toEqual(await on(cpu));
      }
    }
  });

  it.skipIf(!cuda)(`refuse each other's tensors ${needs}`, () => {
    const x = cpu.zeros([1, 1, 64]);
    expect(() => attention(gpu.zeros([1, 1, 64]), x, x)).toThrow(/device/);
  });
});
