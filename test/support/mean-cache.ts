// Caches whose attention can be told by hand. With k = 0 every visible key weighs the same, so o is the mean of the
// visible v: a page lost, doubled or swapped shows as a wrong number.

import type { Device, KvCache, KvCacheConfig, Sequence, Step, Tensor } from "../../lib/index";

export const HEAD_DIM = 8;

/** Two layers, one head, float32, pages of 8 tokens. */
export function meanCache(device: Device, more: Partial<KvCacheConfig> = {}): KvCache {
  return device.createCache({
    numLayers: 2,
    numKvHeads: 1,
    headDim: HEAD_DIM,
    dtype: "float32",
    pageSize: 8,
    maxTokens: 256,
    ...more,
  });
}

/** [values.length, 1, HEAD_DIM]: each row one value. */
export function rows(device: Device, values: readonly number[]): Tensor {
  const data = values.flatMap((value) => Array<number>(HEAD_DIM).fill(value));
  return device.tensor(data, [values.length, 1, HEAD_DIM]);
}

/** Attends both layers with k = 0 and these values; the outputs of each. */
export function attendAll(device: Device, step: Step, values: readonly number[]): Tensor[] {
  const zero = rows(
    device,
    values.map(() => 0),
  );
  const v = rows(device, values);
  const outputs = [0, 1].map((layer) => step.attend(layer, zero, zero, v));
  zero.dispose();
  v.dispose();
  return outputs;
}

/** 0, 1, 2 … from `first` on. */
export const range = (length: number, first: number = 0): number[] =>
  Array.from({ length }, (_, i) => first + i);

/** Values that are their own token ids. */
export function fill(
  device: Device,
  cache: KvCache,
  seq: Sequence,
  ids: readonly number[],
  tell: boolean = true,
): void {
  using step = cache.plan([[seq, ids.length]]);
  attendAll(device, step, ids);
  step.commit(tell ? { tokens: [ids] } : {});
}

/** What the next token sees, layer by layer: the mean of the values, its own being 0. */
export async function mean(device: Device, cache: KvCache, seq: Sequence): Promise<number[]> {
  using step = cache.plan([[seq, 1]]);
  const outputs = attendAll(device, step, [0]);
  return Promise.all(outputs.map(async (o) => (await o.read())[0]!));
}
