// Tables and lengths that only the device reads: bounded there, reported by the next wait, and the process goes on.

import { describe, expect, it } from "vitest";
import { type AttentionOptions, attention, GqaError, type PagedKv } from "../lib/index";
import { testDevice } from "./support/device";
import { rejected } from "./support/errors";

const device = await testDevice();

const INVALID = "INVALID_ARGUMENT";
const ints = (...x: number[]) => Int32Array.from(x);
const deviceInts = (...x: number[]) => device.tensor(ints(...x), [x.length]);
/** Two sequences of 5 and 3 tokens on pages of 4. */
const pages = () => device.zeros([6, 2, 2, 4, 64]);
const table = (...x: number[]) => device.tensor(ints(...x), [2, x.length / 2]);
const q = () => device.zeros([4, 4, 64]);
const kv = () => device.zeros([8, 2, 64]);

describe("tables and lengths that are read on the device", () => {
  const cases: [string, Partial<PagedKv>, AttentionOptions?][] = [
    ["a page id beyond the pages", { pageTable: table(0, 6, 2, -1) }],
    ["a negative page id", { pageTable: table(0, -1, 2, -1) }],
    ["a garbage page id", { pageTable: table(0, 2_147_480_000, 2, -1) }],
    ["a negative length", { kvLens: deviceInts(5, -3) }],
    ["a length beyond the table", { kvLens: deviceInts(5, 1_000_000) }],
    ["offsets that fall", {}, { cuSeqlensQ: deviceInts(0, 2, 1) }],
    ["offsets beyond the rows", {}, { cuSeqlensQ: deviceInts(0, 1, 70_000) }],
    ["negative offsets", {}, { cuSeqlensQ: deviceInts(-5, 1, 2) }],
  ];
  it.each(cases)(
    "%s: reported by the next wait, and the device goes on",
    async (_, source, more = {}) => {
      const result = attention(
        device.zeros([2, 4, 64]),
        { pages: pages(), pageTable: table(0, 1, 2, -1), kvLens: deviceInts(5, 3), ...source },
        { cuSeqlensQ: deviceInts(0, 1, 2), ...more },
      );
      const error = await rejected(result.o.read());
      expect(error.code).toBe(INVALID);
      await device.synchronize();
      const good = attention(
        device.zeros([2, 4, 64]),
        { pages: pages(), pageTable: table(0, 1, 2, -1), kvLens: ints(5, 3) },
        { cuSeqlensQ: ints(0, 1, 2) },
      );
      expect(await good.o.read()).toEqual(new Float32Array(2 * 4 * 64));
    },
  );

  it("a bad page hides its own keys alone: what else the call computes is right", async () => {
    const data = new Float32Array(6 * 2 * 2 * 4 * 64).fill(1);
    data.fill(5, 5 * 1024, 6 * 1024); // page 5: what a wrong id must not be taken for
    const { o } = attention(
      device.zeros([2, 4, 64]),
      {
        pages: device.tensor(data, [6, 2, 2, 4, 64]),
        pageTable: table(0, 6, 2, -1),
        kvLens: deviceInts(5, 3),
      },
      { cuSeqlensQ: ints(0, 1, 2) },
    );
    expect((await rejected(o.read())).code).toBe(INVALID);
    // Sequence 0 has four keys left of its five, sequence 1 all of its three.
    expect(await o.read()).toEqual(new Float32Array(2 * 4 * 64).fill(1));
  });

  it("rows that offsets leave out show nothing of what lay in their memory: zeros, and NaN as lse", async () => {
    const [behind, before] = [deviceInts(0, 1), deviceInts(3, 4)];
    for (const [cuSeqlensQ, row] of [
      [behind, 0],
      [before, 3],
    ] as const) {
      for (const shape of [
        [4, 4, 64],
        [4, 4],
      ]) {
        device.tensor(new Float32Array(shape.reduce((a, b) => a * b)).fill(777), shape).dispose();
      }
      const options = { cuSeqlensQ, cuSeqlensK: [0, 8], lse: true };
      const { o, lse } = attention(q(), kv(), kv(), options);
      expect(await o.read()).toEqual(new Float32Array(4 * 4 * 64));
      const known = Array.from(await lse!.read(), (x) => !Number.isNaN(x));
      expect(known).toEqual(Array.from({ length: 16 }, (_, i) => Math.floor(i / 4) === row));
    }
  });

  it("dense offsets too", async () => {
    const { o } = attention(q(), kv(), kv(), {
      cuSeqlensQ: deviceInts(0, 4),
      cuSeqlensK: deviceInts(0, 80_000),
    });
    const error = await rejected(o.read());
    expect(error).toBeInstanceOf(GqaError);
    expect(error.code).toBe(INVALID);
    await device.synchronize();
  });
});
