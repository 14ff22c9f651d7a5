// What appendKv, repeatKv, sliceWindow, rope and mergeStates refuse.

import { describe, expect, it } from "vitest";
import { appendKv, mergeStates, repeatKv, rope, sliceWindow, type Tensor } from "../lib/index";
import { testDevice } from "./support/device";
import { expectError, trapped, type Wrong } from "./support/errors";
import { ropeConfig } from "./support/rope";

const device = await testDevice();
const INVALID = "INVALID_ARGUMENT";

describe("wrong arguments", () => {
  const x = () => device.zeros([4, 2, 16]);
  const cache = () => ({
    pages: device.zeros([4, 2, 2, 8, 16]),
    pageTable: device.zeros([1, 2], "int32"),
    kvLens: Int32Array.of(4),
  });
  const table = device.rope(
    ropeConfig({
      head_dim: 16,
      rotary_dim: 16,
      style: "neox",
      max_position_embeddings: 64,
      rope_parameters: { rope_type: "default", rope_theta: 10000 },
    }),
  );
  const state = () => ({ o: device.zeros([4, 2, 16]), lse: device.zeros([4, 2]) });
  const append = (k: Wrong, v: Wrong, c: Wrong, o?: Wrong) => () => (appendKv as Wrong)(k, v, c, o);
  const merge = (parts: Wrong, o?: Wrong) => () => (mergeStates as Wrong)(parts, o);

  it.each<[string, string, () => unknown, string, ...(string | RegExp)[]]>([
    ["repeatKv", "no tensor", () => repeatKv(null as Wrong, 2), INVALID, "x"],
    ["repeatKv", "groupSize 0", () => repeatKv(x(), 0), INVALID, "groupSize"],
    ["repeatKv", "groupSize NaN", () => repeatKv(x(), NaN), INVALID, "groupSize"],
    ["repeatKv", "a huge groupSize", () => repeatKv(x(), 2 ** 31), INVALID, "groupSize"],
    [
      "repeatKv",
      "int32",
      () => repeatKv(device.zeros([1, 1, 8], "int32"), 2),
      INVALID,
      "x",
      "dtype",
    ],
    ["repeatKv", "two axes", () => repeatKv(device.zeros([4, 16]), 2), INVALID, "x"],
    ["repeatKv", "out of another shape", () => repeatKv(x(), 2, { out: x() }), INVALID, "out"],
    [
      "repeatKv",
      "out that is x",
      () => {
        const t = x();
        repeatKv(t, 1, { out: t });
      },
      INVALID,
      "out",
      "overlaps",
    ],
    ["sliceWindow", "a negative window", () => sliceWindow(x(), -1), INVALID, "window"],
    ["sliceWindow", "NaN", () => sliceWindow(x(), NaN), INVALID, "window"],
    [
      "sliceWindow",
      "negative sinks",
      () => sliceWindow(x(), 2, { sinkTokens: -1 }),
      INVALID,
      "sinkTokens",
    ],
    [
      "sliceWindow",
      "an unknown option",
      () => sliceWindow(x(), 2, { sinks: 1 } as Wrong),
      INVALID,
      "sinks",
      "sinkTokens",
    ],
    [
      "sliceWindow",
      "out that is x",
      () => {
        const t = x();
        sliceWindow(t, 4, { out: t });
      },
      INVALID,
      "out",
    ],
    ["mergeStates", "no array", merge(undefined), INVALID, "parts"],
    ["mergeStates", "no parts", merge([]), INVALID, "parts"],
    [
      "mergeStates",
      "too many parts",
      () => merge(new Array(65).fill(state()))(),
      INVALID,
      "parts",
      "64",
    ],
    ["mergeStates", "a part without lse", () => merge([{ o: x() }])(), INVALID, /parts\[0\]/],
    [
      "mergeStates",
      "parts of two shapes",
      () => merge([state(), { ...state(), o: device.zeros([3, 2, 16]) }])(),
      INVALID,
      /parts\[1\]/,
    ],
    [
      "mergeStates",
      "parts of two dtypes",
      () => merge([state(), { ...state(), o: device.zeros([4, 2, 16], "float16") }])(),
      INVALID,
      /parts\[1\]/,
    ],
    [
      "mergeStates",
      "lse of 16 bits",
      () => merge([{ ...state(), lse: device.zeros([4, 2], "float16") }])(),
      INVALID,
      "lse",
    ],
    ["rope", "no table", () => (rope as Wrong)(x(), {}), INVALID, "table"],
    [
      "rope",
      "another head_dim",
      () => rope(device.zeros([4, 2, 32]), table, { start: 0 }),
      INVALID,
      "x",
    ],
    ["rope", "a negative start", () => rope(x(), table, { start: -1 }), INVALID, "start"],
    [
      "rope",
      "start and positions",
      () => rope(x(), table, { start: 0, positions: Int32Array.of(0, 1, 2, 3) } as Wrong),
      INVALID,
      "start",
      "positions",
    ],
    [
      "rope",
      "positions of another length",
      () => rope(x(), table, { positions: device.zeros([3], "int32") }),
      INVALID,
      "positions",
    ],
    [
      "rope",
      "a negative seqLen",
      () => rope(x(), table, { start: 0, seqLen: -1 }),
      INVALID,
      "seqLen",
    ],
    ["appendKv", "no pages", () => append(x(), x(), undefined)(), INVALID],
    [
      "appendKv",
      "v of another shape",
      () => append(x(), device.zeros([3, 2, 16]), cache())(),
      INVALID,
      "v",
    ],
    [
      "appendKv",
      "k with other heads than the pages",
      () => {
        const t = device.zeros([4, 1, 16]);
        append(t, t, cache())();
      },
      INVALID,
    ],
    [
      "appendKv",
      "k of another dtype",
      () => {
        const t = device.zeros([4, 2, 16], "float16");
        append(t, t, cache())();
      },
      INVALID,
      "dtype",
    ],
    [
      "appendKv",
      "more rows than kvLen",
      () => append(x(), x(), { ...cache(), kvLens: Int32Array.of(3) })(),
      INVALID,
      "kvLens",
    ],
    [
      "appendKv",
      "kvLens beyond the table",
      () => append(x(), x(), { ...cache(), kvLens: Int32Array.of(17) })(),
      INVALID,
      "kvLens",
    ],
    ["appendKv", "q without rope", () => append(x(), x(), cache(), { q: x() })(), INVALID, "rope"],
    [
      "appendKv",
      "q of another length",
      () => append(x(), x(), cache(), { q: device.zeros([3, 2, 16]), rope: table })(),
      INVALID,
      "q",
    ],
    [
      "appendKv",
      "k that lies in the pages",
      () => {
        const c = cache();
        const k = c.pages
          .reshape([4 * 2 * 2 * 8 * 16])
          .slice(0, 0, 128)
          .reshape([4, 2, 16]);
        append(k, x(), c)();
      },
      INVALID,
      "overlaps",
    ],
  ])("%s: %s", (operation, _, call, code, ...names) => {
    expectError(call, code, operation, ...names);
  });

  it("keys that someone put on Object.prototype change nothing", () => {
    const input = x();
    const polluted = Object.prototype as Wrong;
    polluted.pollution = input;
    try {
      expect(repeatKv(x(), 1, { out: input })).toBe(input);
    } finally {
      delete polluted.pollution;
    }
  });

  it("parts with a hole, and iterators of the user's own", () => {
    expectError(merge(new Array(2)), INVALID, "mergeStates", /parts\[0\]/);
    expect(mergeStates(trapped(state(), state())).o.shape).toEqual([4, 2, 16]);
    const paged = { ...cache(), pageTable: trapped([0, 1]) };
    expect(() => appendKv(x(), x(), paged)).not.toThrow();
    expectError(append(x(), x(), { ...cache(), pageTable: [[0], 1] }), INVALID, /pageTable\[1\]/);
  });

  it("disposed tensors give DISPOSED everywhere", () => {
    const dead = x() as Tensor;
    dead.dispose();
    for (const call of [
      () => repeatKv(dead, 2),
      () => sliceWindow(dead, 2),
      () => rope(dead, table, { start: 0 }),
      () => mergeStates([{ ...state(), o: dead }]),
      append(dead, x(), cache()),
      append(x(), dead, cache()),
      append(x(), x(), { ...cache(), pages: dead }),
    ]) {
      expectError(call, "DISPOSED");
    }
  });
});
