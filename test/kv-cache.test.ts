// The cache against dense attention() on the same tokens: what a sequence gives does not depend on how its tokens came
// in, on which pages they lie, or on what other sequences do.

import { describe, expect, it } from "vitest";
import { attention, type KvCacheConfig, type RopeConfig, rope, type Tensor } from "../lib/index";
import { append, cacheTools, HEADS, Q_WIDTH } from "./support/cache";
import { expectSameBits } from "./support/compare";
import { testDevice } from "./support/device";
import { plainRope } from "./support/rope";
import { FLOAT_TYPES } from "./support/rounding";
import { type MaskOptions, packed } from "./support/tokens";

const device = await testDevice();
const { makeCache, tokens } = cacheTools(device);

describe.each(FLOAT_TYPES)("a sequence in %s", (dtype) => {
  it.each<[string, MaskOptions, Partial<KvCacheConfig>]>([
    ["plain", {}, {}],
    ["in pages of 8", {}, { pageSize: 8 }],
    ["in pages of 64", {}, { pageSize: 64 }],
    ["with a window", { window: 20 }, { window: 20 }],
    ["with a window and sinks", { window: 20, sinkTokens: 5 }, { window: 20, sinkTokens: 5 }],
    ["with a window of 1", { window: 1 }, { window: 1 }],
    ["with soft cap and scale", { softCap: 3, smScale: 0.5 }, { softCap: 3, smScale: 0.5 }],
    ["with fixed splits", { fixedSplits: 32 }, { fixedSplits: 32 }],
  ])("in odd pieces, %s: every piece as dense attention gives it", async (_, mask, config) => {
    const cache = makeCache({ dtype, ...config });
    const t = tokens(150, 1, dtype);
    const seq = cache.open();
    for (const end of [7, 44, 45, 46, 101, 102, 149, 150]) {
      const start = seq.length;
      const bits = await append(cache, seq, t, end);
      expectSameBits(bits, await t.expected(start, end, mask), `tokens ${start}..${end}`);
    }
    expect(seq.length).toBe(150);
    cache.dispose();
  });

  it("with RoPE rotates q and k at their own positions", async () => {
    const table = device.rope(plainRope(HEADS.headDim));
    const cache = makeCache({ dtype, rope: table });
    const t = tokens(70, 2, dtype);
    const seq = cache.open();
    for (const end of [33, 34, 35, 70]) {
      const start = seq.length;
      const bits = await append(cache, seq, t, end);
      expectSameBits(bits, await t.expected(start, end, {}, table), `tokens ${start}..${end}`);
    }
    cache.dispose();
  });

  it("with sink logits", async () => {
    const sinkLogits = Float32Array.of(0.5, -1, 2, 0, 1, -3);
    const cache = makeCache({ dtype, sinkLogits, numQHeads: HEADS.numQHeads });
    const t = tokens(40, 3, dtype);
    const seq = cache.open();
    const mask = { sinkLogits: device.tensor(sinkLogits, [6]) };
    for (const end of [30, 31, 40]) {
      const start = seq.length;
      expectSameBits(await append(cache, seq, t, end), await t.expected(start, end, mask));
    }
    cache.dispose();
  });
});

describe("RoPE that follows the sequence's length", () => {
  const long = Array.from({ length: 16 }, (_, i) => 1 + i);
  it.each<[string, RopeConfig["scaling"]]>([
    ["dynamic", { type: "dynamic", factor: 4 }],
    ["longrope", { type: "longrope", shortFactor: long.map(() => 1), longFactor: long, factor: 4 }],
  ])("%s: a key keeps the angles of the length at which it was appended", async (_, scaling) => {
    const config = { headDim: HEADS.headDim, scaling, maxPositionEmbeddings: 16 };
    const table = device.rope(config);
    const cache = makeCache({ rope: table });
    const t = tokens(45, 4);
    const seq = cache.open();
    const branch = cache.open();
    const keys: Tensor[] = [];
    for (const [i, end] of [10, 16, 17, 40, 41].entries()) {
      const start = seq.length;
      // Another sequence in the same step, of another length: each follows its own.
      const step = cache.plan([
        [branch, i + 1],
        [seq, end - start],
      ]);
      const other = t.qkv(0, i + 1);
      const own = t.qkv(start, end);
      const [q, k, v] = await Promise.all(own.map((x, n) => packed(device, [other[n]!, x])));
      const o = await step.attend(0, q!, k!, v!).readBits();
      step.commit();
      step.dispose();
      const positions = Int32Array.from({ length: end - start }, (_, n) => start + n);
      const turn = (x: Tensor) => rope(x, table, { positions, seqLen: end });
      keys.push(turn(own[1]));
      const all = await packed(device, keys);
      const want = await attention(turn(own[0]), all, t.rows("v", 0, end)).o.readBits();
      expectSameBits(o.subarray((i + 1) * Q_WIDTH), want, `tokens ${start}..${end}`);
    }
    cache.dispose();
  });
});

describe("a batch", () => {
  it("of prefill, decode and forked sequences gives each what it gives alone", async () => {
    const cache = makeCache({ fixedSplits: 32, pageSize: 8, maxTokens: 4096 });
    const all = [tokens(90, 10), tokens(90, 11), tokens(90, 12), tokens(90, 13)];
    const seqs = all.map(() => cache.open());
    const pieces = [
      [5, 40, 1, 16],
      [1, 1, 1, 1],
      [20, 1, 37, 1],
      [1, 1, 1, 1],
    ];
    for (const lengths of pieces) {
      const starts = seqs.map((seq) => seq.length);
      const step = cache.plan(seqs.map((seq, b) => [seq, lengths[b]!]));
      const parts = all.map((t, b) => t.qkv(starts[b]!, starts[b]! + lengths[b]!));
      const [q, k, v] = await Promise.all(
        [0, 1, 2].map((i) =>
          packed(
            device,
            parts.map((part) => part[i]!),
          ),
        ),
      );
      const bits = await step.attend(0, q!, k!, v!).readBits();
      step.commit();
      step.dispose();
      let row = 0;
      for (const [b, t] of all.entries()) {
        const end = starts[b]! + lengths[b]!;
        const want = await t.expected(starts[b]!, end, { fixedSplits: 32 });
        const got = bits.subarray(row * Q_WIDTH, (row + lengths[b]!) * Q_WIDTH);
        expectSameBits(got, want, `sequence ${b}, tokens ${starts[b]}..${end}`);
        row += lengths[b]!;
      }
    }
    cache.dispose();
  });

  it("next() plans one more token for the same sequences", async () => {
    const cache = makeCache();
    const a = tokens(60, 20);
    const b = tokens(60, 21);
    const [sa, sb] = [cache.open(), cache.open()];
    await append(cache, sa, a, 13);
    await append(cache, sb, b, 30);
    const step = cache.plan([
      [sa, 1],
      [sb, 1],
    ]);
    for (let i = 0; i < 25; i++) {
      const [from, to] = [sa.length, sb.length];
      const [qa, ka, va] = a.qkv(from, from + 1);
      const [qb, kb, vb] = b.qkv(to, to + 1);
      const q = await packed(device, [qa, qb]);
      const k = await packed(device, [ka, kb]);
      const v = await packed(device, [va, vb]);
      const bits = await step.attend(0, q, k, v).readBits();
      step.commit();
      expectSameBits(bits.subarray(0, Q_WIDTH), await a.expected(from, from + 1), `a ${from}`);
      expectSameBits(bits.subarray(Q_WIDTH), await b.expected(to, to + 1), `b ${to}`);
      step.next(1);
    }
    step.dispose();
    expect([sa.length, sb.length]).toEqual([38, 55]);
    cache.dispose();
  });
});

describe("layers", () => {
  it("keep their keys apart and have windows of their own; pages go by the widest", async () => {
    const windows = [8, 40, 24];
    const cache = makeCache({ numLayers: 3, window: windows, pageSize: 8, maxTokens: 128 });
    const layers = windows.map((_, i) => tokens(300, 30 + i));
    const seq = cache.open();
    let most = 0;
    for (let end = 20; end <= 300; end += end % 3 === 0 ? 1 : 7) {
      const start = seq.length;
      const step = cache.plan([[seq, end - start]]);
      const outs = layers.map((t, layer) => step.attend(layer, ...t.qkv(start, end)).readBits());
      step.commit();
      step.dispose();
      for (const [layer, t] of layers.entries()) {
        const want = await t.expected(start, end, { window: windows[layer]! });
        expectSameBits(await outs[layer]!, want, `layer ${layer}, tokens ${start}..${end}`);
      }
      most = Math.max(most, cache.stats().pages.used);
    }
    expect(most * 8).toBeLessThanOrEqual(40 + 20 + 2 * 8);
    cache.dispose();
  });

  it("one without a window keeps every page", async () => {
    const cache = makeCache({ numLayers: 2, window: [8, 0], pageSize: 8, maxTokens: 128 });
    const t = tokens(100, 40);
    const seq = cache.open();
    const step = cache.plan([[seq, 100]]);
    step.attend(0, ...t.qkv(0, 100));
    step.attend(1, ...t.qkv(0, 100));
    step.commit();
    step.dispose();
    expect(cache.stats().pages.used).toBe(13);
    cache.dispose();
  });
});

describe("a window", () => {
  it("keeps memory flat however long the conversation", async () => {
    const cache = makeCache({
      window: 32,
      sinkTokens: 4,
      pageSize: 8,
      maxTokens: 64,
      maxSeqLen: 100_000,
    });
    const t = tokens(1, 50);
    const [q, k, v] = t.qkv(0, 1);
    const seq = cache.open();
    const step = cache.plan([[seq, 1]]);
    let most = 0;
    for (let i = 0; i < 2000; i++) {
      step.attend(0, q, k, v).dispose();
      step.commit();
      most = Math.max(most, cache.stats().pages.used);
      step.next(1);
      if (i % 500 === 0) await device.synchronize();
    }
    step.dispose();
    expect(seq.length).toBe(2000);
    // The sinks' page, the window, and what does not fill a page at either end.
    expect(most).toBeLessThanOrEqual(1 + 32 / 8 + 2);
    cache.dispose();
  });

  it("with rollbackTokens can be truncated that far, and no further", async () => {
    const config = { window: 16, pageSize: 8, maxTokens: 256 };
    const cache = makeCache({ ...config, rollbackTokens: 20 });
    const t = tokens(120, 51);
    const seq = cache.open();
    for (let end = 10; end <= 100; end += 10) await append(cache, seq, t, end);
    seq.truncate(80);
    const other = tokens(120, 52).branchOf(t, 80);
    for (const end of [81, 99, 120]) {
      const start = seq.length;
      const bits = await append(cache, seq, other, end);
      expectSameBits(bits, await other.expected(start, end, { window: 16 }), `after, ${end}`);
    }
    const least = Number(
      /smallest legal length is (\d+)/.exec(message(() => seq.truncate(30)))?.[1],
    );
    expect(least).toBeGreaterThan(30);
    expect(least).toBeLessThanOrEqual(100);
    seq.truncate(least);
    expect(seq.length).toBe(least);
    expectSameBits(
      await append(cache, seq, other, least + 1),
      await other.expected(least, least + 1, { window: 16 }),
    );
    cache.dispose();
  });
});

function message(fn: () => unknown): string {
  try {
    fn();
  } catch (error) {
    return (error as Error).message;
  }
  return "";
}

describe("a captured decode step", () => {
  it("replays as the sequences grow, with the bits of the uncaptured path", async () => {
    const cache = makeCache({ pageSize: 8, window: 24, maxSequences: 4, maxSeqLen: 512 });
    const a = tokens(100, 100);
    const seq = cache.open();
    await append(cache, seq, a, 10);
    const [q, k, v] = a.qkv(10, 11);
    const out = device.zeros([1, HEADS.numQHeads, HEADS.headDim]);
    const step = cache.plan([[seq, 1]]);
    const graph = device.capture(() => {
      step.attend(0, q, k, v, { o: out });
    });
    for (let at = 10; at < 90; at++) {
      const [nq, nk, nv] = a.qkv(at, at + 1);
      q.write(nq);
      k.write(nk);
      v.write(nv);
      graph.replay();
      const bits = await out.readBits();
      step.commit();
      expectSameBits(bits, await a.expected(at, at + 1, { window: 24 }), `token ${at}`);
      step.next(1);
    }
    step.dispose();
    graph.dispose();
    cache.dispose();
  });
});

describe("a prefix", () => {
  it("sees itself both ways, and is seen by all that follows", async () => {
    const cache = makeCache();
    const t = tokens(60, 110);
    const seq = cache.open({ prefixLen: 20 });
    for (const end of [33, 34, 60]) {
      const start = seq.length;
      const bits = await append(cache, seq, t, end);
      expectSameBits(bits, await t.expected(start, end, { prefixLen: 20 }), `${end}`);
    }
    cache.dispose();
  });
});
