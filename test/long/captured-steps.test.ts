// A graph captured once and replayed for 10,000 tokens, while the sequences grow from nothing, gives
// the bits of steps that are enqueued anew.

import { expect, it } from "vitest";
import { cacheTools, HEADS } from "../support/cache";
import { testDevice } from "../support/device";
import { Random } from "../support/random";

const STEPS = 10_000;
const POOL = 509; // rows of made-up tokens, read from another place at each step
const BATCH = 3;

const device = await testDevice();
const { makeCache } = cacheTools(device);

it.each([
  ["one layer sees everything", [0, 100], BATCH * (STEPS + 16)],
  ["pages come free all the way", [64, 100], BATCH * 160],
])("10,000 replays where %s", async (_, window, maxTokens) => {
  const random = new Random(3);
  const { numQHeads, numKvHeads, headDim } = HEADS;
  const pool = (heads: number) =>
    device.tensor(random.normal((POOL + BATCH) * heads * headDim), [POOL + BATCH, heads, headDim]);
  const pools = [pool(numQHeads), pool(numKvHeads), pool(numKvHeads)] as const;
  const at = (i: number) => pools.map((rows) => rows.slice(0, i % POOL, (i % POOL) + BATCH));

  const make = () => {
    const cache = makeCache({
      numLayers: 2,
      window,
      maxTokens,
      maxSeqLen: STEPS,
      rope: { headDim, theta: 10_000 },
    });
    return { cache, step: cache.plan(Array.from({ length: BATCH }, () => [cache.open(), 1])) };
  };
  const captured = make();
  const plain = make();
  const [q, k, v] = at(0).map((rows) => rows.clone());
  const out = [device.empty(q!.shape), device.empty(q!.shape)];
  const graph = device.capture(() => {
    for (const [layer, o] of out.entries()) captured.step.attend(layer, q!, k!, v!, { o });
  });

  for (let i = 0; i < STEPS; i++) {
    const rows = at(i);
    for (const [j, tensor] of [q, k, v].entries()) tensor!.write(rows[j]!);
    graph.replay();
    const want = [0, 1].map((layer) => plain.step.attend(layer, rows[0]!, rows[1]!, rows[2]!));
    const bits = await Promise.all([...out, ...want].map((tensor) => tensor.readBits()));
    for (const layer of [0, 1]) {
      const same = Buffer.compare(bytes(bits[layer]!), bytes(bits[2 + layer]!)) === 0;
      if (!same) expect(bits[layer], `layer ${layer}, token ${i}`).toEqual(bits[2 + layer]);
    }
    for (const tensor of rows) tensor.dispose();
    for (const { step } of [captured, plain]) {
      step.commit();
      if (i + 1 < STEPS) step.next(1);
    }
  }
  expect(captured.step.sequences.map((sequence) => sequence.length)).toEqual([STEPS, STEPS, STEPS]);
  graph.dispose();
  for (const { cache, step } of [captured, plain]) {
    step.dispose();
    cache.dispose();
  }
  for (const tensor of [...pools, ...out, q!, k!, v!]) tensor.dispose();
});

function bytes(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
