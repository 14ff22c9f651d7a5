// A sequence to the host and back, beside the same bytes in linear copies: pages of one layer that lie side by side.

const { median } = require("./measure");

const LLAMA_8B = { numLayers: 8, numKvHeads: 8, headDim: 128, pageSize: 16 };
const SHAPES = {
  cuda: { ...LLAMA_8B, tokens: 32768 },
  cpu: { ...LLAMA_8B, tokens: 2048 },
  quick: { numLayers: 2, numKvHeads: 2, headDim: 64, pageSize: 16, tokens: 256 },
};

/** A cache with as many bytes, all of them in one layer, in the largest pages. */
function linearShape({ numLayers, numKvHeads, headDim, tokens }) {
  const pageSize = 256;
  return { numLayers: 1, numKvHeads, headDim, pageSize, tokens: numLayers * tokens };
}

/** Untold tokens, so that every page is copied back. `scattered`: no two pages lie side by side. */
function grow(device, cache, { numLayers, numKvHeads, headDim, pageSize, tokens }, scattered) {
  const one = cache.open();
  const other = scattered ? cache.open() : null;
  const rows = device.zeros([scattered ? pageSize : 2048, numKvHeads, headDim], "bfloat16");
  const append = (sequence, count) => {
    const part = rows.slice(0, 0, count);
    const step = cache.plan([[sequence, count]]);
    for (let layer = 0; layer < numLayers; layer++) step.attend(layer, part, part, part);
    step.commit();
    step.dispose();
    part.dispose();
  };
  while (one.length < tokens) {
    append(one, Math.min(rows.shape[0], tokens - one.length));
    if (other !== null) append(other, pageSize);
  }
  rows.dispose();
  return one;
}

/** µs of each direction, the host's memory being there already. */
async function timeMoves(device, shape, scattered, rounds) {
  const { tokens, ...layers } = shape;
  const elements = layers.numLayers * layers.numKvHeads * layers.headDim;
  const bytes = 2 * 2 * tokens * elements;
  const cache = device.createCache({
    ...layers,
    maxTokens: (scattered ? 2 : 1) * tokens,
    hostBytes: bytes,
  });
  const sequence = grow(device, cache, shape, scattered);
  await device.synchronize();
  const times = { offload: [], restore: [] };
  for (let round = 0; round <= rounds; round++) {
    for (const verb of ["offload", "restore"]) {
      const start = performance.now();
      const pages = await cache[verb](sequence);
      const us = (performance.now() - start) * 1000;
      if (pages * layers.pageSize !== tokens) throw new Error(`${pages} pages were moved`);
      if (round > 0) times[verb].push(us);
    }
  }
  cache.dispose();
  return { bytes, offload: median(times.offload), restore: median(times.restore) };
}

async function* offloadRows(device, quick, row) {
  const shape = SHAPES[quick ? "quick" : device.kind];
  const rounds = quick ? 2 : 8;
  const linear = await timeMoves(device, linearShape(shape), false, rounds);
  const of = `${(linear.bytes / 2 ** 20).toFixed(0)} MiB`;
  for (const scattered of [false, true]) {
    const moved = await timeMoves(device, shape, scattered, rounds);
    for (const verb of ["offload", "restore"]) {
      const name = `${verb} of ${of}, pages ${scattered ? "scattered" : "side by side"}`;
      yield row(name, moved[verb], {
        gbps: moved.bytes / moved[verb] / 1e3,
        floor_us: linear[verb],
      });
    }
  }
}

module.exports = { offloadRows };
