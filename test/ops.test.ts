// appendKv, repeatKv, sliceWindow: what they move. (rope and mergeStates have tests of their own.)

import { describe, expect, it } from "vitest";
import { appendKv, attention, repeatKv, rope, sliceWindow } from "../lib/index";
import { visible } from "./reference";
import { expectClose, expectSameBits } from "./support/compare";
import { cuda, testDevice } from "./support/device";
import { rejected } from "./support/errors";
import { GARBAGE_ID, layPages } from "./support/pages";
import { Random } from "./support/random";
import { ropeConfig } from "./support/rope";
import { FLOAT_TYPES } from "./support/rounding";

const device = await testDevice();
const INVALID = "INVALID_ARGUMENT";
describe.each(FLOAT_TYPES)("repeatKv in %s", (dtype) => {
  it.each([1, 2, 3, 7])("%i times each head", async (groupSize) => {
    const x = new Random(1).normal(5 * 3 * 8);
    const out = repeatKv(device.tensor(x, [5, 3, 8], { dtype }), groupSize);
    expect(out.shape).toEqual([5, 3 * groupSize, 8]);
    const read = await out.read();
    for (let row = 0; row < 5; row++) {
      for (let head = 0; head < 3 * groupSize; head++) {
        const from = (row * 3 + Math.floor(head / groupSize)) * 8;
        const at = (row * 3 * groupSize + head) * 8;
        expect(read.subarray(at, at + 8)).toEqual(x.subarray(from, from + 8));
      }
    }
  });

  it("before attention changes no bit on the CPU, and little on CUDA", async () => {
    const random = new Random(2);
    const q = device.tensor(random.normal(9 * 6 * 32), [9, 6, 32], { dtype });
    const k = device.tensor(random.normal(20 * 2 * 32), [20, 2, 32], { dtype });
    const v = device.tensor(random.normal(20 * 2 * 32), [20, 2, 32], { dtype });
    const grouped = attention(q, k, v).o;
    const repeated = attention(q, repeatKv(k, 3), repeatKv(v, 3)).o;
    if (!cuda) return expectSameBits(await repeated.readBits(), await grouped.readBits());
    // 27 rows of a group of 3 are divided otherwise among warps than 9 of a group of 1.
    const atol = { float32: 2e-6, bfloat16: 0.02, float16: 0.0025 }[dtype];
    expectClose(await repeated.read(), await grouped.read(), atol, "o");
  });
});

describe.each([...FLOAT_TYPES])("sliceWindow in %s", (dtype) => {
  it.each([
    [10, 4, 0],
    [10, 4, 2],
    [10, 4, 9],
    [10, 10, 3],
    [10, 11, 0],
    [10, 1, 0],
    [10, 1, 1],
    [3, 4, 2],
    [10, 0, 0],
    [0, 4, 1],
  ])(
    "of %i keys to a window of %i with %i sinks: the rows that the last query sees",
    async (kvLen, window, sinkTokens) => {
      const x = Float32Array.from({ length: kvLen * 2 * 8 }, (_, i) => Math.floor(i / 16) + 1);
      const out = sliceWindow(device.tensor(x, [kvLen, 2, 8], { dtype }), window, { sinkTokens });
      const keys = Array.from({ length: kvLen }, (_, key) => key).filter((key) =>
        visible(kvLen - 1, key, { window, sinkTokens }),
      );
      expect(out.shape).toEqual([keys.length, 2, 8]);
      const read = await out.read();
      for (const [i, key] of keys.entries()) {
        expect(read.subarray(i * 16, (i + 1) * 16)).toEqual(new Float32Array(16).fill(key + 1));
      }
    },
  );
});

describe.each(FLOAT_TYPES)("appendKv in %s", (dtype) => {
  const numKvHeads = 2;
  const headDim = 16;
  const config = ropeConfig({
    head_dim: headDim,
    rotary_dim: headDim,
    style: "neox",
    max_position_embeddings: 4096,
    rope_parameters: { rope_type: "default", rope_theta: 10000 },
  });

  it("writes this step's rows to their slots, and nothing else", async () => {
    const random = new Random(4);
    const kvLens = [5, 9, 0, 4];
    const qLens = [2, 9, 0, 1];
    const total = 12;
    const k = random.normal(total * numKvHeads * headDim);
    const v = random.normal(total * numKvHeads * headDim);
    const laid = layPages(
      {
        k: new Float32Array(18 * numKvHeads * headDim).fill(-1),
        v: new Float32Array(18 * numKvHeads * headDim).fill(-2),
        numKvHeads,
        headDim,
      },
      kvLens,
      4,
      { seed: 9, poison: 7 },
    );
    const pageShape = [laid.numPages, 2, numKvHeads, 4, headDim];
    const pages = device.tensor(laid.pages, pageShape, { dtype });
    const result = appendKv(
      device.tensor(k, [total, numKvHeads, headDim], { dtype }),
      device.tensor(v, [total, numKvHeads, headDim], { dtype }),
      {
        pages,
        pageTable: device.tensor(laid.pageTable, [4, laid.maxPages]),
        kvLens: Int32Array.from(kvLens),
      },
      { cuSeqlensQ: Int32Array.of(0, 2, 11, 11, 12) },
    );
    expect(result.q).toBeUndefined();
    const want = laid.pages.slice();
    let row = 0;
    for (const [b, qLen] of qLens.entries()) {
      for (let i = 0; i < qLen; i++, row++) {
        const position = kvLens[b]! - qLen + i;
        const page = laid.pageTable[b * laid.maxPages + Math.floor(position / 4)]!;
        for (let h = 0; h < numKvHeads; h++) {
          const from = (row * numKvHeads + h) * headDim;
          const to = ((page * 2 * numKvHeads + h) * 4 + (position % 4)) * headDim;
          want.set(k.subarray(from, from + headDim), to);
          want.set(v.subarray(from, from + headDim), to + numKvHeads * 4 * headDim);
        }
      }
    }
    expectSameBits(await pages.read(), want);
  });

  it("rotates q and k as rope() does, by each row's own position", async () => {
    const random = new Random(5);
    const table = device.rope(config);
    const q = device.tensor(random.normal(6 * 4 * headDim), [6, 4, headDim], { dtype });
    const k = device.tensor(random.normal(6 * numKvHeads * headDim), [6, numKvHeads, headDim], {
      dtype,
    });
    const pages = device.zeros([4, 2, numKvHeads, 8, headDim], dtype);
    const positions = device.tensor(Int32Array.of(3, 4, 5, 6, 0, 1), [6]);
    const turned = appendKv(
      k,
      k,
      {
        pages,
        pageTable: device.tensor(Int32Array.of(2, -1, 1, -1), [2, 2]),
        kvLens: Int32Array.of(7, 2),
      },
      { q, rope: table, cuSeqlensQ: Int32Array.of(0, 4, 6) },
    );
    expectSameBits(await turned.q!.readBits(), await rope(q, table, { positions }).readBits(), "q");
    const turnedK = await rope(k, table, { positions }).read();
    const stored = await pages.read();
    const plainK = await k.read();
    for (const [row, page, slot] of [
      [0, 2, 3],
      [3, 2, 6],
      [4, 1, 0],
      [5, 1, 1],
    ] as const) {
      for (let h = 0; h < numKvHeads; h++) {
        const from = (row * numKvHeads + h) * headDim;
        const to = ((page * 2 * numKvHeads + h) * 8 + slot) * headDim;
        expect(stored.subarray(to, to + headDim)).toEqual(turnedK.subarray(from, from + headDim));
        const toV = to + numKvHeads * 8 * headDim;
        expect(stored.subarray(toV, toV + headDim)).toEqual(plainK.subarray(from, from + headDim));
      }
    }
  });

  it("a bad page id on the device is reported by the next wait and writes nothing", async () => {
    for (const bad of [GARBAGE_ID, -1, 4]) {
      const pages = device.zeros([4, 2, numKvHeads, 8, headDim], dtype);
      const ones = device.tensor(
        new Float32Array(2 * numKvHeads * headDim).fill(1),
        [2, numKvHeads, headDim],
        { dtype },
      );
      appendKv(ones, ones, {
        pages,
        pageTable: device.tensor(Int32Array.of(bad), [1, 1]),
        kvLens: device.tensor(Int32Array.of(2), [1]),
      });
      expect((await rejected(device.synchronize())).code).toBe(INVALID);
      expect((await pages.read()).every((x) => x === 0)).toBe(true);
    }
  });
});
