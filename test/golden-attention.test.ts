// attention() against the golden vectors: dense, ragged and paged, in every float type.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { attention, type Tensor } from "../lib/index";
import {
  type AttentionOptions,
  EXACT,
  type Precision,
  referenceRagged,
  type States,
} from "./reference";
import { expectClose, expectRms, expectSameBits } from "./support/compare";
import { testDevice } from "./support/device";
import {
  type GoldenCase,
  golden,
  goldenCases,
  goldenDir,
  goldenIndex,
  TOLERANCE_KEY,
  type Tolerance,
} from "./support/golden";
import { FLOAT_TYPES, type FloatType, plain } from "./support/rounding";

const device = await testDevice();

function options(c: GoldenCase): AttentionOptions {
  const p = c.params;
  return {
    causal: p.causal,
    window: p.window ?? 0,
    softCap: p.soft_cap ?? 0,
    sinkTokens: p.sink_tokens,
    smScale: p.sm_scale,
    sinkLogits: p.sink_logits ? golden(c, "sink_logits").data : null,
  };
}

/** The options as attention() takes them. */
function callOptions(c: GoldenCase) {
  const { sinkLogits, ...rest } = options(c);
  return {
    ...rest,
    sinkLogits: sinkLogits
      ? device.tensor(Float32Array.from(sinkLogits), [sinkLogits.length])
      : undefined,
    lse: true as const,
  };
}

function lens(c: GoldenCase): { qLens: number[]; kvLens: number[] } {
  const p = c.params;
  if (c.kind !== "attention") return { qLens: p.q_lens, kvLens: p.kv_lens };
  return {
    qLens: new Array(p.batch).fill(p.q_len),
    kvLens: new Array(p.batch).fill(p.kv_len),
  };
}

/** K and V of a paged case as packed rows, in sequence order. */
function gathered(c: GoldenCase, which: 0 | 1): Float64Array {
  const { page_size: pageSize, num_kv_heads: heads, head_dim: headDim } = c.params;
  const pages = golden(c, "pages").data;
  const table = golden(c, "page_table");
  const rows: number[] = [];
  for (const [b, kvLen] of lens(c).kvLens.entries()) {
    for (let t = 0; t < kvLen; t++) {
      const page = table.data[b * table.shape[1]! + Math.floor(t / pageSize)]!;
      for (let h = 0; h < heads; h++) {
        const at = (((page * 2 + which) * heads + h) * pageSize + (t % pageSize)) * headDim;
        for (let d = 0; d < headDim; d++) rows.push(pages[at + d]!);
      }
    }
  }
  return Float64Array.from(rows);
}

function reference(c: GoldenCase, precision: Precision): States {
  const { qLens, kvLens } = lens(c);
  const paged = c.kind === "attention_paged";
  return referenceRagged(
    {
      ...options(c),
      q: golden(c, "q").data,
      k: paged ? gathered(c, 0) : golden(c, "k").data,
      v: paged ? gathered(c, 1) : golden(c, "v").data,
      numQHeads: c.params.num_q_heads,
      numKvHeads: c.params.num_kv_heads,
      headDim: c.params.head_dim,
    },
    qLens,
    kvLens,
    () => ({}),
    precision,
  );
}

function upload(c: GoldenCase, name: string, dtype: FloatType): Tensor {
  const stored = golden(c, name);
  return device.tensor(Float32Array.from(stored.data), stored.shape, { dtype });
}

const ints = (c: GoldenCase, name: string) => Int32Array.from(golden(c, name).data);

function run(c: GoldenCase, dtype: FloatType): { o: Tensor; lse?: Tensor } {
  const q = upload(c, "q", dtype);
  if (c.kind === "attention") {
    return attention(q, upload(c, "k", dtype), upload(c, "v", dtype), callOptions(c));
  }
  if (c.kind === "attention_varlen") {
    return attention(q, upload(c, "k", dtype), upload(c, "v", dtype), {
      ...callOptions(c),
      cuSeqlensQ: ints(c, "cu_seqlens_q"),
      cuSeqlensK: ints(c, "cu_seqlens_k"),
    });
  }
  const table = golden(c, "page_table");
  return attention(
    q,
    {
      pages: upload(c, "pages", dtype),
      pageTable: device.tensor(ints(c, "page_table"), table.shape, { dtype: "int32" }),
      kvLens: device.tensor(ints(c, "kv_lens"), [table.shape[0]!], { dtype: "int32" }),
    },
    { ...callOptions(c), cuSeqlensQ: ints(c, "cu_seqlens_q") },
  );
}

describe("golden files", () => {
  it("are the ones that the index describes", () => {
    for (const [name, { bytes, sha256 }] of Object.entries(goldenIndex.files)) {
      const content = readFileSync(join(goldenDir, name));
      expect(content.length, name).toBe(bytes);
      expect(createHash("sha256").update(content).digest("hex"), name).toBe(sha256);
    }
  });

  it("agree with test/reference.ts", () => {
    for (const c of goldenCases("attention", "attention_varlen", "attention_paged")) {
      const { o, lse } = reference(c, EXACT);
      expectClose(o, golden(c, "o").data, 1e-6, `${c.name} o`);
      expectClose(lse, golden(c, "lse").data, 1e-4, `${c.name} lse`);
    }
  });
});

describe.each(FLOAT_TYPES)("attention on golden vectors in %s", (dtype) => {
  const cases = goldenCases("attention", "attention_varlen", "attention_paged");
  it.each(cases.map((c) => [c.name, c] as const))("%s", async (_, c) => {
    const tolerance: Tolerance = c.tolerance[TOLERANCE_KEY[dtype]];
    const result = run(c, dtype);
    const [o, lse] = await Promise.all([result.o.read(), result.lse!.read()]);
    expectClose(lse, golden(c, "lse").data, tolerance.lse_atol, "lse");
    expectClose(o, golden(c, "o").data, tolerance.o_atol, "o");
    const exact = reference(c, EXACT).o;
    expectRms(o, exact, reference(c, plain(dtype)).o);
  });
});

describe("the shapes a batch can be given in", () => {
  const batched = goldenCases("attention").filter((c) => c.params.batch > 1);
  it.each(batched.map((c) => [c.name, c] as const))(
    "%s: a uniform batch and packed rows give the same bits",
    async (_, c) => {
      const { batch, q_len: qLen, kv_len: kvLen, head_dim: headDim } = c.params;
      const { num_q_heads: qHeads, num_kv_heads: kvHeads } = c.params;
      const q = upload(c, "q", "float32");
      const k = upload(c, "k", "float32");
      const v = upload(c, "v", "float32");
      const uniform = attention(q, k, v, callOptions(c));
      expect(uniform.o.shape).toEqual(q.shape);
      const starts = (n: number) => Int32Array.from({ length: batch + 1 }, (_, i) => i * n);
      const packed = attention(
        q.reshape([batch * qLen, qHeads, headDim]),
        k.reshape([batch * kvLen, kvHeads, headDim]),
        v.reshape([batch * kvLen, kvHeads, headDim]),
        { ...callOptions(c), cuSeqlensQ: starts(qLen), cuSeqlensK: starts(kvLen) },
      );
      expect(packed.o.shape).toEqual([batch * qLen, qHeads, headDim]);
      expectSameBits(await packed.o.readBits(), await uniform.o.readBits());
      expectSameBits(await packed.lse!.readBits(), await uniform.lse!.readBits());
    },
  );
});
