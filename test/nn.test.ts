// flash-gqa/nn against float64, and what it refuses.

import { describe, expect, it } from "vitest";
import * as nn from "../lib/nn/index";
import { maxError } from "./support/compare";
import { testDevice } from "./support/device";
import { expectError, rejected, type Wrong } from "./support/errors";
import { Random } from "./support/random";
import { FLOAT_TYPES, type FloatType, ROUND } from "./support/rounding";

const device = await testDevice();
/** Unit roundoff. */
const ULP: Record<FloatType, number> = { float32: 2 ** -24, bfloat16: 2 ** -8, float16: 2 ** -11 };
const INVALID = "INVALID_ARGUMENT";

describe.each(FLOAT_TYPES)("in %s", (dtype) => {
  const round = ROUND[dtype];

  it("rmsNorm, of rows and of heads, in place too", async () => {
    const random = new Random(2);
    for (const shape of [
      [5, 320],
      [3, 4, 64],
      [1, 24],
    ]) {
      const width = shape.at(-1)!;
      const size = shape.reduce((a, b) => a * b);
      const x = random.normal(size, 3);
      const weight = random.normal(width);
      const exact = new Float64Array(size);
      for (let row = 0; row < size / width; row++) {
        let squares = 0;
        for (let i = 0; i < width; i++) squares += x[row * width + i]! ** 2;
        const factor = 1 / Math.sqrt(squares / width + 1e-5);
        for (let i = 0; i < width; i++) {
          exact[row * width + i] = round(x[row * width + i]! * factor) * weight[i]!;
        }
      }
      const tensor = device.tensor(x, shape, { dtype });
      const w = device.tensor(weight, [width], { dtype });
      const out = await nn.rmsNorm(tensor, w, 1e-5).read();
      for (const [i, e] of exact.entries()) {
        expect(Math.abs(out[i]! - e)).toBeLessThanOrEqual(
          8 * ULP[dtype] * Math.max(Math.abs(e), 1e-3),
        );
      }
      expect(await nn.rmsNorm(tensor, w, 1e-5, { out: tensor }).read()).toEqual(out);
    }
  });

  it("add and siluMul", async () => {
    const random = new Random(3);
    const a = random.normal(7 * 33, 4);
    const b = random.normal(7 * 33, 4);
    const ta = device.tensor(a, [7, 33], { dtype });
    const tb = device.tensor(b, [7, 33], { dtype });
    expect(await nn.add(ta, tb).read()).toEqual(a.map((x, i) => round(x + b[i]!)));
    const product = await nn.siluMul(ta, tb).read();
    for (const [i, x] of a.entries()) {
      const exact = (x / (1 + Math.exp(-x))) * b[i]!;
      expect(Math.abs(product[i]! - exact)).toBeLessThanOrEqual(
        4 * ULP[dtype] * (Math.abs(exact) + 1e-6),
      );
    }
    // Far out: no overflow to NaN.
    const far = device.tensor([-1000, 1000, -88.8, 88.8], [1, 4], { dtype });
    const one = device.tensor([1, 1, 1, 1], [1, 4], { dtype });
    const ends = await nn.siluMul(far, one).read();
    expect(ends[0]).toBeCloseTo(0);
    expect(ends[1]).toBe(round(1000));
    expect(await nn.add(ta, tb, { out: ta }).read()).toEqual(a.map((x, i) => round(x + b[i]!)));
  });

  it("embedding and gatherRows", async () => {
    const table = new Random(4).normal(10 * 24);
    const tensor = device.tensor(table, [10, 24], { dtype });
    const ids = Int32Array.of(9, 0, 3, 3);
    const want = Float32Array.from(
      [...ids].flatMap((id) => [...table.subarray(id * 24, id * 24 + 24)]),
    );
    expect(await nn.embedding(tensor, ids).read()).toEqual(want);
    expect(await nn.embedding(tensor, device.tensor(ids, [4])).read()).toEqual(want);
    expect(await nn.gatherRows(tensor, ids).read()).toEqual(want);
    const columns = tensor.slice(1, 8, 16);
    const some = await nn.gatherRows(columns, [9]).read();
    expect(some).toEqual(table.slice(9 * 24 + 8, 9 * 24 + 16));
  });

  it("topK: descending, ties to the smaller id, log-probabilities under the full softmax", async () => {
    const logits = new Random(5).normal(3 * 1000, 2);
    logits.set([7, 7, 7], 1500);
    const { ids, logProbs } = nn.topK(device.tensor(logits, [3, 1000], { dtype }), 10);
    const [readIds, readLogs] = [await ids.read(), await logProbs.read()];
    for (let row = 0; row < 3; row++) {
      const values = logits.subarray(row * 1000, (row + 1) * 1000);
      const order = Array.from(values.keys()).sort((x, y) => values[y]! - values[x]! || x - y);
      expect([...readIds.subarray(row * 10, row * 10 + 10)]).toEqual(order.slice(0, 10));
      const max = values[order[0]!]!;
      const lse = max + Math.log(values.reduce((sum, x) => sum + Math.exp(x - max), 0));
      for (let k = 0; k < 10; k++) {
        expect(readLogs[row * 10 + k]).toBeCloseTo(values[order[k]!]! - lse, 4);
      }
    }
  });

  it("sample with temperature 0 takes the largest", async () => {
    const logits = new Random(6).normal(4 * 777, 3);
    const tensor = device.tensor(logits, [4, 777], { dtype });
    const greedy = nn.sample(tensor, { temperature: 0 });
    const best = nn.topK(tensor, 1);
    expect(await greedy.ids.read()).toEqual(await best.ids.read());
    const [a, b] = [await greedy.logProbs.read(), await best.logProbs.read()];
    expect(maxError(a, b)).toBeLessThanOrEqual(1e-5);
  });
});

describe("sample", () => {
  const ROWS = 4000;
  const logits = Float32Array.of(2, 1, 0, -1, 0.5, -30);
  const many = () => {
    const data = new Float32Array(ROWS * logits.length);
    for (let row = 0; row < ROWS; row++) data.set(logits, row * logits.length);
    return device.tensor(data, [ROWS, logits.length]);
  };
  const counter = Int32Array.from({ length: ROWS }, (_, i) => i);

  async function frequencies(options: nn.SampleOptions): Promise<number[]> {
    const ids = await nn.sample(many(), { seed: 7, counter, ...options }).ids.read();
    const counts = new Array(logits.length).fill(0);
    for (const id of ids) counts[id]++;
    return counts.map((count) => count / ROWS);
  }

  function softmax(kept: number[], temperature: number): number[] {
    const weights = [...logits].map((x, i) => (kept.includes(i) ? Math.exp(x / temperature) : 0));
    const sum = weights.reduce((a, b) => a + b);
    return weights.map((w) => w / sum);
  }

  it.each<[string, nn.SampleOptions, number[], number]>([
    ["plain", {}, [0, 1, 2, 3, 4, 5], 1],
    ["temperature 2", { temperature: 2 }, [0, 1, 2, 3, 4, 5], 2],
    ["topK 2", { topK: 2 }, [0, 1], 1],
    ["topP 0.6: the two that reach it", { topP: 0.6 }, [0, 1], 1],
    ["topK and topP", { topK: 4, topP: 0.9 }, [0, 1, 4], 1],
    ["topP below the first", { topP: 1e-6 }, [0], 1],
  ])("%s draws by the right probabilities", async (_, options, kept, temperature) => {
    const measured = await frequencies(options);
    for (const [i, p] of softmax(kept, temperature).entries()) {
      // Five standard deviations: a wrong distribution misses by far more, chance by less.
      const sigma = Math.sqrt((p * (1 - p)) / ROWS);
      expect(Math.abs(measured[i]! - p), `token ${i}: ${measured[i]} of ${p}`).toBeLessThanOrEqual(
        5 * sigma + 1e-9,
      );
    }
  });

  it("the same seed and counter draw the same token; others differ", async () => {
    const draw = (options: nn.SampleOptions) => nn.sample(many(), options).ids.read();
    const first = await draw({ seed: 1, counter });
    expect(await draw({ seed: 1, counter })).toEqual(first);
    expect(await draw({ seed: 2, counter })).not.toEqual(first);
    expect(await draw({ seed: 2 ** 40 + 1, counter })).not.toEqual(first);
    const shifted = await draw({ seed: 1, counter: counter.map((c) => c + 1) });
    expect([...shifted.subarray(0, -1)]).toEqual([...first.subarray(1)]);
  });

  it("log-probabilities are those of the full softmax at temperature 1", async () => {
    const { ids, logProbs } = nn.sample(many(), { seed: 3, counter, temperature: 2, topK: 3 });
    const all = softmax([0, 1, 2, 3, 4, 5], 1);
    const [i, l] = [await ids.read(), await logProbs.read()];
    for (let row = 0; row < 50; row++) expect(l[row]).toBeCloseTo(Math.log(all[i[row]!]!), 4);
  });

  it("never draws what has probability 0, NaN and infinity included", async () => {
    const rows: [number[], number[]][] = [
      [
        [-Infinity, 0, -Infinity, 0],
        [1, 3],
      ],
      [
        [NaN, 1, 2, NaN],
        [1, 2],
      ],
      [[-Infinity, -Infinity, 5, -Infinity], [2]],
    ];
    for (const [row, allowed] of rows) {
      const data = Float32Array.from({ length: 400 }, (_, i) => row[i % 4]!);
      const ids = await nn
        .sample(device.tensor(data, [100, 4]), { seed: 1, counter: counter.slice(0, 100) })
        .ids.read();
      for (const id of ids) expect(allowed).toContain(id);
    }
  });

  it("of rows that have no probability at all stays inside the vocabulary", async () => {
    for (const value of [NaN, -Infinity, Infinity]) {
      for (const temperature of [0, 1]) {
        const tensor = device.tensor(new Float32Array(40).fill(value), [4, 10]);
        const ids = await nn.sample(tensor, { seed: 1, temperature }).ids.read();
        for (const id of ids) {
          expect(id).toBeGreaterThanOrEqual(0);
          expect(id).toBeLessThan(10);
        }
      }
    }
  });
});

describe("wrong arguments", () => {
  const x = () => device.zeros([2, 8]);
  const w = () => device.zeros([4, 8]);
  const any = nn as Wrong;

  it.each<[string, string, () => unknown, ...(string | RegExp)[]]>([
    [
      "rmsNorm",
      "a weight of another width",
      () => nn.rmsNorm(x(), device.zeros([7]), 1e-5),
      "weight",
    ],
    ["rmsNorm", "a negative eps", () => nn.rmsNorm(x(), device.zeros([8]), -1), "eps"],
    ["rmsNorm", "no eps", () => any.rmsNorm(x(), device.zeros([8])), "eps"],
    ["rmsNorm", "width 0", () => nn.rmsNorm(device.zeros([2, 0]), device.zeros([0]), 0), "x"],
    ["add", "shapes that differ", () => nn.add(x(), w()), "b"],
    [
      "add",
      "int32",
      () => nn.add(device.zeros([2], "int32"), device.zeros([2], "int32")),
      "a",
      "dtype",
    ],
    ["siluMul", "shapes that differ", () => nn.siluMul(x(), w()), "up"],
    ["siluMul", "one axis", () => nn.siluMul(device.zeros([4]), device.zeros([4])), "gate"],
    ["embedding", "an id beyond the table", () => nn.embedding(w(), [4]), /ids\[0\]/],
    ["embedding", "a negative id", () => nn.embedding(w(), [-1]), /ids\[0\]/],
    ["embedding", "ids of float32", () => nn.embedding(w(), device.zeros([1])), "ids", "dtype"],
    ["gatherRows", "a row beyond", () => nn.gatherRows(x(), [2]), /index\[0\]/],
    ["topK", "k 0", () => nn.topK(x(), 0), "k"],
    ["topK", "k 65", () => nn.topK(device.zeros([1, 100]), 65), "k", "64"],
    ["topK", "k beyond the vocabulary", () => nn.topK(x(), 9), "k"],
    ["sample", "a negative temperature", () => nn.sample(x(), { temperature: -1 }), "temperature"],
    ["sample", "a NaN temperature", () => nn.sample(x(), { temperature: NaN }), "temperature"],
    ["sample", "topP 0", () => nn.sample(x(), { topP: 0 }), "topP"],
    ["sample", "topP 1.5", () => nn.sample(x(), { topP: 1.5 }), "topP"],
    ["sample", "topK -1", () => nn.sample(x(), { topK: -1 }), "topK"],
    ["sample", "a fractional seed", () => nn.sample(x(), { seed: 1.5 }), "seed"],
    ["sample", "seeds of another length", () => nn.sample(x(), { seed: [1] }), "seed"],
    [
      "sample",
      "temperatures of another length",
      () => nn.sample(x(), { temperature: [1] }),
      "temperature",
    ],
    ["sample", "no vocabulary", () => nn.sample(device.zeros([2, 0])), "logits"],
  ])("%s: %s", (operation, _, call, ...names) => {
    expectError(call, INVALID, operation, ...names);
  });

  it("ids that only the device reads are bounded there and reported by the next wait", async () => {
    const table = device.tensor(new Float32Array(32).fill(1), [4, 8]);
    for (const bad of [4, -1, 2_147_480_000]) {
      const ids = device.tensor(Int32Array.of(1, bad), [2]);
      const out = nn.embedding(table, ids);
      expect((await rejected(device.synchronize())).code).toBe(INVALID);
      const read = await out.read();
      expect([...read.subarray(0, 8)]).toEqual(new Array(8).fill(1));
      expect([...read.subarray(8)]).toEqual(new Array(8).fill(0));
      const gathered = nn.gatherRows(table, ids);
      expect((await rejected(gathered.read())).code).toBe(INVALID);
    }
    await device.synchronize();
  });
});
