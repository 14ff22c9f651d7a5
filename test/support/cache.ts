// A small cache and made-up tokens that go through it.

import type { Device, KvCache, KvCacheConfig, Sequence } from "../../lib/index";
import type { FloatType } from "./rounding";
import { Tokens } from "./tokens";

export const HEADS = { numQHeads: 6, numKvHeads: 2, headDim: 32 };
/** Numbers in one row of q and of o. */
export const Q_WIDTH: number = HEADS.numQHeads * HEADS.headDim;

export function cacheTools(device: Device) {
  const makeCache = (more: Partial<KvCacheConfig> = {}): KvCache =>
    device.createCache({
      numLayers: 1,
      numKvHeads: HEADS.numKvHeads,
      headDim: HEADS.headDim,
      dtype: "float32",
      maxTokens: 1024,
      ...more,
    });
  const tokens = (count: number, seed: number, dtype: FloatType = "float32") =>
    new Tokens(device, { ...HEADS, dtype }, count, seed);
  return { makeCache, tokens };
}

/** One step of one sequence of a cache with one layer, committed; gives the bits of o. */
export async function append(cache: KvCache, seq: Sequence, t: Tokens, end: number) {
  const start = seq.length;
  const step = cache.plan([[seq, end - start]]);
  try {
    const o = step.attend(0, ...t.qkv(start, end));
    const bits = o.readBits();
    step.commit();
    return await bits;
  } finally {
    step.dispose();
  }
}
