// One attention layer of Llama and Mistral, prefill and single steps through the cache, against Transformers.

import { describe, expect, it } from "vitest";
import { Device, type KvCache } from "../lib/index";
import { linear } from "../lib/nn/index";
import { expectClose, maxError } from "./support/compare";
import { testDevice } from "./support/device";
import { type GoldenCase, golden, goldenCases } from "./support/golden";
import type { FloatType } from "./support/rounding";

const device = await testDevice();

/** y [batch, token, hidden] of the whole case, fed as a prefill and then token by token. */
async function runLayer(
  c: GoldenCase,
  dtype: FloatType,
  on: Device = device,
): Promise<Float64Array> {
  const p = c.params;
  const { hidden, num_q_heads: qHeads, num_kv_heads: kvHeads, head_dim: headDim } = p;
  const weight = (name: string) => {
    const { data, shape } = golden(c, name);
    return on.tensor(Float32Array.from(data), shape, { dtype });
  };
  const [wq, wk, wv, wo] = ["Wq", "Wk", "Wv", "Wo"].map(weight);
  const x = golden(c, "x").data;
  const total = p.prefill + p.steps;
  const cache: KvCache = on.createCache({
    numLayers: 1,
    numKvHeads: kvHeads,
    headDim,
    dtype,
    rope: { headDim, theta: p.rope_theta, interleaved: p.rope_style === "interleaved" },
    smScale: p.sm_scale,
    window: p.window ?? 0,
    maxTokens: 1024,
  });
  const y = new Float64Array(p.batch * total * hidden);
  const seqs = Array.from({ length: p.batch }, () => cache.open());
  for (let start = 0; start < total; ) {
    const length = start === 0 ? p.prefill : 1;
    const rows = Float32Array.from(
      seqs.flatMap((_, b) => [
        ...x.subarray((b * total + start) * hidden, (b * total + start + length) * hidden),
      ]),
    );
    const input = on.tensor(rows, [p.batch * length, hidden], { dtype });
    const step = cache.plan(seqs.map((seq) => [seq, length]));
    const heads = (w: typeof wq, n: number) =>
      linear(input, w!).reshape([p.batch * length, n, headDim]);
    const o = step.attend(0, heads(wq, qHeads), heads(wk, kvHeads), heads(wv, kvHeads));
    const out = linear(o.reshape([p.batch * length, qHeads * headDim]), wo!);
    const read = await out.read();
    step.commit();
    step.dispose();
    for (let b = 0; b < p.batch; b++) {
      const part = read.subarray(b * length * hidden, (b + 1) * length * hidden);
      y.set(part, (b * total + start) * hidden);
    }
    start += length;
  }
  cache.dispose();
  return y;
}

describe("one layer through the cache", () => {
  it.each(goldenCases("cached_attention").map((c) => [c.name, c] as const))(
    "%s in float32",
    async (_, c) => {
      expectClose(await runLayer(c, "float32"), golden(c, "y_exact").data, c.tolerance.y_atol_f32);
    },
  );

  it.each(goldenCases("cached_attention").map((c) => [c.name, c] as const))(
    "%s in bfloat16",
    async (_, c) => {
      expectClose(
        await runLayer(c, "bfloat16"),
        golden(c, "y_exact").data,
        c.tolerance.y_atol_bf16,
      );
    },
  );

  it.each(goldenCases("cached_attention_cut").map((c) => [c.name, c] as const))(
    "%s: the window keeps as many keys as it says, not one fewer",
    async (_, c) => {
      const whole = goldenCases("cached_attention").find((other) => other.name === c.params.of)!;
      const { hidden, prefill } = whole.params;
      const steps = (await runLayer(whole, "float32")).subarray(prefill * hidden);
      expectClose(steps, golden(c, "y_mask").data, c.tolerance.y_atol_f32);
      expect(maxError(steps, golden(c, "y_append_then_cut").data)).toBeGreaterThan(0.1);
    },
  );

  it("of a second device gives the same bits", async () => {
    const c = goldenCases("cached_attention")[0]!;
    const other = await Device.open(device.kind);
    expect(await runLayer(c, "float32", other)).toEqual(await runLayer(c, "float32"));
    other.dispose();
  });
});
