// rope() against the golden tables: every scaling and both layouts, at positions up to 131071.

import { describe, expect, it } from "vitest";
import { rope } from "../lib/index";
import { maxError } from "./support/compare";
import { testDevice } from "./support/device";
import { golden, goldenCases } from "./support/golden";
import { ropeConfig } from "./support/rope";
import { FLOAT_TYPES, ROUND } from "./support/rounding";

const device = await testDevice();
const cases = goldenCases("rope").map((c) => [c.name, c] as const);

describe.each(FLOAT_TYPES)("rope on golden vectors in %s", (dtype) => {
  it.each(cases)("%s", async (_, c) => {
    const p = c.params;
    const table = device.rope(ropeConfig(p));
    const positions = Int32Array.from(golden(c, "positions").data);
    for (const name of c.tensors.k ? ["q", "k"] : ["q"]) {
      const { data, shape } = golden(c, name);
      const x = device.tensor(Float32Array.from(data), shape, { dtype });
      const rotated = rope(x, table, {
        positions: device.tensor(positions, [positions.length], { dtype: "int32" }),
        seqLen: p.seq_len,
      });
      const exact = golden(c, `${name}_rot_exact`).data;
      const read = await rotated.read();
      if (dtype === "float32") {
        expect(maxError(read, exact)).toBeLessThanOrEqual(8 * c.tolerance.table_atol_vs_exact);
        continue;
      }
      // 16-bit: the input and the result are rounded once each, the rotation between them is exact.
      const ulp = 2 ** (dtype === "bfloat16" ? -8 : -11);
      for (const [i, e] of exact.entries()) {
        const row = Math.floor(i / p.head_dim) * p.head_dim;
        let largest = 0;
        for (let d = 0; d < p.head_dim; d++) largest = Math.max(largest, Math.abs(data[row + d]!));
        expect(Math.abs(read[i]! - e)).toBeLessThanOrEqual(4 * ulp * p.attention_factor * largest);
      }
    }
  });
});

describe("rope", () => {
  const config = ropeConfig({
    head_dim: 64,
    rotary_dim: 32,
    style: "neox",
    max_position_embeddings: 4096,
    rope_parameters: { rope_type: "default", rope_theta: 10000, partial_rotary_factor: 0.5 },
  });
  const x = Float32Array.from({ length: 5 * 2 * 64 }, (_, i) => Math.sin(i));

  it("leaves position 0 and the dimensions beyond rotary_dim as they are", async () => {
    const input = device.tensor(x, [5, 2, 64]);
    const read = await rope(input, device.rope(config), { start: 0 }).read();
    expect([...read.subarray(0, 128)]).toEqual([...x.subarray(0, 128)]);
    for (let row = 0; row < 10; row++) {
      const tail = [row * 64 + 32, row * 64 + 64] as const;
      expect([...read.subarray(...tail)]).toEqual([...x.subarray(...tail)]);
    }
  });

  it("turns q and k so that their product depends on the distance alone", async () => {
    const table = device.rope(config);
    const turned = async (start: number) =>
      rope(device.tensor(x.subarray(0, 128), [2, 1, 64]), table, { start }).read();
    const product = (y: ArrayLike<number>) => {
      let sum = 0;
      for (let d = 0; d < 64; d++) sum += y[d]! * y[64 + d]!;
      return sum;
    };
    const near = product(await turned(0));
    for (const start of [1, 100, 4094, 1_000_000]) {
      expect(product(await turned(start))).toBeCloseTo(near, 4);
    }
  });

  it("rounds once: bfloat16 is the rounded float32 result", async () => {
    const table = device.rope(config);
    const rounded = Float32Array.from(x, ROUND.bfloat16);
    const exact = await rope(device.tensor(rounded, [5, 2, 64]), table, { start: 7 }).read();
    const half = await rope(device.tensor(rounded, [5, 2, 64], { dtype: "bfloat16" }), table, {
      start: 7,
    }).read();
    expect([...half]).toEqual([...Float32Array.from(exact, ROUND.bfloat16)]);
  });

  it("start counts up from its value as explicit positions do", async () => {
    const table = device.rope(config);
    const input = device.tensor(x, [5, 2, 64]);
    const a = await rope(input, table, { start: 11 }).read();
    const positions = device.tensor(Int32Array.of(11, 12, 13, 14, 15), [5]);
    const b = await rope(input, table, { positions }).read();
    expect([...a]).toEqual([...b]);
  });
});
