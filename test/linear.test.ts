// nn.linear against float64, its norm and gate against the operations that they are short for, and what it refuses.

import { describe, expect, it } from "vitest";
import * as nn from "../lib/nn/index";
import type { Tensor } from "../lib/tensor";
import { maxError, rms, rmsError } from "./support/compare";
import { testDevice } from "./support/device";
import { expectError, type Wrong } from "./support/errors";
import { Random } from "./support/random";
import { FLOAT_TYPES, type FloatType, ROUND } from "./support/rounding";

const device = await testDevice();
/** Unit roundoff. */
const ULP: Record<FloatType, number> = { float32: 2 ** -24, bfloat16: 2 ** -8, float16: 2 ** -11 };

describe.each(FLOAT_TYPES)("in %s", (dtype) => {
  const round = ROUND[dtype];

  it.each([
    [1, 8, 8],
    [1, 320, 704],
    [3, 64, 1],
    [7, 33, 65],
    [65, 129, 97],
    [130, 320, 40],
  ])("linear of %i rows, %i to %i", async (rows, inFeatures, outFeatures) => {
    const random = new Random(rows + inFeatures);
    const x = random.normal(rows * inFeatures);
    const w = random.normal(outFeatures * inFeatures, 1 / Math.sqrt(inFeatures));
    const bias = random.normal(outFeatures);
    const residual = random.normal(rows * outFeatures);
    const exact = new Float64Array(rows * outFeatures);
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < outFeatures; c++) {
        let sum = bias[c]! + residual[r * outFeatures + c]!;
        for (let i = 0; i < inFeatures; i++) sum += x[r * inFeatures + i]! * w[c * inFeatures + i]!;
        exact[r * outFeatures + c] = sum;
      }
    }
    const tensors = {
      x: device.tensor(x, [rows, inFeatures], { dtype }),
      w: device.tensor(w, [outFeatures, inFeatures], { dtype }),
      bias: device.tensor(bias, [outFeatures], { dtype }),
      residual: device.tensor(residual, [rows, outFeatures], { dtype }),
    };
    const options = { bias: tensors.bias, residual: tensors.residual };
    const out = await nn.linear(tensors.x, tensors.w, options).read();
    // The sum in float32, then one rounding of a number of some size.
    const largest = exact.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    expect(maxError(out, exact)).toBeLessThanOrEqual(
      2 * ULP[dtype] * largest + inFeatures * 2 ** -22,
    );
    // The rounding of a number is spread evenly over its last place.
    expect(rmsError(out, exact)).toBeLessThanOrEqual(
      ULP[dtype] * (0.9 * rms(exact) + 2 ** -6) + Math.sqrt(inFeatures) * 2 ** -22,
    );

    // A second rounding would move a quarter of them; the sum in float32 moves those that lie on the border of two.
    const wrong = out.filter((value, i) => value !== round(exact[i]!)).length;
    if (dtype !== "float32") expect(wrong).toBeLessThanOrEqual(1 + 0.04 * out.length);

    const wide = await nn.linear(tensors.x, tensors.w, { ...options, outDtype: "float32" }).read();
    expect(maxError(wide, exact)).toBeLessThanOrEqual(inFeatures * 2 ** -21);
    // The residual may be written over.
    const over = nn.linear(tensors.x, tensors.w, { ...options, out: tensors.residual });
    expect(await over.read()).toEqual(out);
    // Strided rows of a wider tensor.
    const padded = device.tensor(
      Float32Array.from({ length: rows * 2 * inFeatures }, (_, i) => {
        const column = i % (2 * inFeatures);
        return column < inFeatures
          ? x[Math.floor(i / (2 * inFeatures)) * inFeatures + column]!
          : NaN;
      }),
      [rows, 2 * inFeatures],
      { dtype },
    );
    if (inFeatures % 8 === 0) {
      const strided = nn.linear(padded.slice(1, 0, inFeatures), tensors.w, { bias: tensors.bias });
      const dense = nn.linear(tensors.x, tensors.w, { bias: tensors.bias });
      expect(await strided.readBits()).toEqual(await dense.readBits());
    }
  });

  it.each([
    [1, 64, 48],
    [2, 320, 704],
    [3, 136, 40],
    [4, 320, 70],
    [4, 33, 65],
    [5, 320, 64],
    [70, 64, 36],
  ])(
    "linear with norm or gate, of %i rows, %i to %i: the operations that it is short for",
    async (...shape) => {
      const [rows, inFeatures, outFeatures] = shape;
      const random = new Random(rows + inFeatures);
      const tensor = (of: number[], scale: number) => {
        const values = random.normal(
          of.reduce((a, b) => a * b),
          scale,
        );
        return device.tensor(values, of, { dtype });
      };
      const x = tensor([rows, inFeatures], 3);
      const weight = tensor([inFeatures], 1);
      const w = tensor([2 * outFeatures, inFeatures], 1 / Math.sqrt(inFeatures));
      const bias = tensor([2 * outFeatures], 1);
      const residual = tensor([rows, 2 * outFeatures], 1);
      const norm = { weight, eps: 1e-5 };
      const normed = nn.rmsNorm(x, weight, norm.eps);
      const both = nn.linear(normed, w);
      const halves = [both.slice(1, 0, outFeatures), both.slice(1, outFeatures)] as const;
      const pairs: [Tensor, Tensor][] = [
        [nn.linear(x, w, { norm }), both],
        [nn.linear(x, w, { norm, bias, residual }), nn.linear(normed, w, { bias, residual })],
        [nn.linear(x, w, { norm, gated: true }), nn.siluMul(...halves)],
        [nn.linear(normed, w, { gated: true }), nn.siluMul(...halves)],
        [
          nn.linear(x, w, { norm, outDtype: "float32" }),
          nn.linear(normed, w, { outDtype: "float32" }),
        ],
      ];
      const sums = Math.sqrt(inFeatures) * 2 ** -22;
      for (const [given, expected] of pairs) {
        const [a, b] = [await given.read(), await expected.read()];
        expect(given.shape).toEqual(expected.shape);
        // Sums in another order may round a number to its neighbour, before the product or behind it.
        const exact = Float64Array.from(b);
        const largest = exact.reduce((x, y) => Math.max(x, Math.abs(y)), 0);
        expect(maxError(a, exact)).toBeLessThanOrEqual(3 * ULP[dtype] * largest + sums);
        expect(rmsError(a, exact)).toBeLessThanOrEqual(ULP[dtype] * rms(exact) + sums);
      }
      // In place, as a decoder adds to its residual stream.
      const apart = nn.linear(x, w, { norm, bias, residual });
      const over = nn.linear(x, w, { norm, bias, residual, out: residual });
      expect(await over.readBits()).toEqual(await apart.readBits());
    },
  );
});

describe("wrong arguments", () => {
  const x = () => device.zeros([2, 8]);
  const w = () => device.zeros([4, 8]);
  const any = nn as Wrong;

  it.each<[string, () => unknown, ...string[]]>([
    ["no weight", () => any.linear(x()), "weight"],
    ["features that differ", () => nn.linear(x(), device.zeros([4, 9])), "weight"],
    [
      "a weight of another dtype",
      () => nn.linear(x(), device.zeros([4, 8], "float16")),
      "weight",
      "dtype",
    ],
    ["a bias of another length", () => nn.linear(x(), w(), { bias: device.zeros([5]) }), "bias"],
    [
      "a residual of another shape",
      () => nn.linear(x(), w(), { residual: device.zeros([2, 5]) }),
      "residual",
    ],
    ["an int32 result", () => nn.linear(x(), w(), { outDtype: "int32" }), "outDtype"],
    [
      "out that is x",
      () => {
        const t = device.zeros([2, 8]);
        nn.linear(t, device.zeros([8, 8]), { out: t });
      },
      "out",
      "overlaps",
    ],
    [
      "a gate of odd rows",
      () => nn.linear(x(), device.zeros([5, 8]), { gated: true }),
      "gated",
      "even",
    ],
    [
      "a gate and a bias",
      () => nn.linear(x(), w(), { gated: true, bias: device.zeros([2]) }),
      "gated",
      "bias",
    ],
    [
      "a gate and another dtype",
      () => nn.linear(x(), w(), { gated: true, outDtype: "float32" }),
      "gated",
      "outDtype",
    ],
    ["a gate that is no boolean", () => any.linear(x(), w(), { gated: 1 }), "gated"],
    [
      "a norm of another width",
      () => nn.linear(x(), w(), { norm: { weight: device.zeros([7]), eps: 0 } }),
      "norm.weight",
    ],
    [
      "a norm without eps",
      () => any.linear(x(), w(), { norm: { weight: device.zeros([8]) } }),
      "norm.eps",
    ],
    [
      "a norm below zero",
      () => nn.linear(x(), w(), { norm: { weight: device.zeros([8]), eps: -1 } }),
      "norm.eps",
    ],
    ["a norm that is a tensor", () => any.linear(x(), w(), { norm: device.zeros([8]) }), "norm"],
    [
      "out that is the norm's weight",
      () => {
        const weight = device.zeros([4]);
        nn.linear(device.zeros([1, 4]), device.zeros([4, 4]), {
          norm: { weight, eps: 0 },
          out: weight.reshape([1, 4]),
        });
      },
      "out",
      "norm.weight",
    ],
    ["an unknown option", () => any.linear(x(), w(), { biass: 1 }), "biass", "bias"],
  ])("%s", (_, call, ...names) => {
    expectError(call, "INVALID_ARGUMENT", "linear", ...names);
  });
});
