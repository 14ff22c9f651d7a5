// What a shared prefix saves: prompts that agree in nine tenths of their tokens, through a model with random weights.

const { linear, rmsNorm, siluMul } = require("flash-gqa/nn");
const { median } = require("./measure");
const { Noise } = require("./noise");

const LLAMA_8B = { numQHeads: 32, numKvHeads: 8, headDim: 128, hidden: 4096, ffn: 14336 };
const SHAPES = {
  cuda: { ...LLAMA_8B, numLayers: 8, tokens: 16384, name: "8 layers of Llama 3 8B" },
  cpu: {
    numQHeads: 8,
    numKvHeads: 2,
    headDim: 64,
    hidden: 512,
    ffn: 1024,
    numLayers: 2,
    tokens: 2048,
    name: "2 layers 8/2 D64",
  },
  quick: {
    numQHeads: 4,
    numKvHeads: 2,
    headDim: 32,
    hidden: 128,
    ffn: 256,
    numLayers: 2,
    tokens: 256,
    name: "2 layers 4/2 D32",
  },
};
const PAGE = 16;

class Model {
  #layers;
  #tensors;
  #device;

  constructor(device, shape) {
    const { numQHeads, numKvHeads, headDim, hidden, ffn, numLayers, tokens } = shape;
    this.shape = shape;
    this.#device = device;
    const noise = new Noise(device, 2 ** 18);
    const matrix = (rows, columns) => noise.tensor([rows, columns], "bfloat16");
    this.#layers = Array.from({ length: numLayers }, () => ({
      norm: matrix(1, hidden).reshape([hidden]),
      qkv: matrix((numQHeads + 2 * numKvHeads) * headDim, hidden),
      out: matrix(hidden, numQHeads * headDim),
      gateUp: matrix(2 * ffn, hidden),
      down: matrix(hidden, ffn),
    }));
    this.x = matrix(tokens, hidden);
    this.q = noise.tensor([tokens, numQHeads, headDim], "bfloat16");
    this.kv = noise.tensor([tokens, numKvHeads, headDim], "bfloat16");
    this.#tensors = [this.x, this.q, this.kv, ...this.#layers.flatMap(Object.values)];
  }

  /** Every layer of the step's rows. */
  forward(step) {
    this.#device.tidy(() => {
      let x = this.x.slice(0, 0, step.totalQ);
      for (const [i, layer] of this.#layers.entries()) {
        x = this.#device.tidy(() => this.#layer(step, i, layer, x));
      }
    });
  }

  /** Its attention alone. */
  attention(step) {
    const [q, kv] = [this.q, this.kv].map((rows) => rows.slice(0, 0, step.totalQ));
    // Given back at once, as a model does.
    for (let i = 0; i < this.shape.numLayers; i++) step.attend(i, q, kv, kv).dispose();
    for (const view of [q, kv]) view.dispose();
  }

  dispose() {
    for (const tensor of this.#tensors) tensor.dispose();
  }

  #layer(step, i, { norm, qkv, out, gateUp, down }, x) {
    const { numQHeads, numKvHeads, headDim, ffn } = this.shape;
    const rows = x.shape[0];
    const heads = numQHeads + 2 * numKvHeads;
    const all = linear(rmsNorm(x, norm, 1e-5), qkv).reshape([rows, heads, headDim]);
    const q = all.slice(1, 0, numQHeads);
    const k = all.slice(1, numQHeads, numQHeads + numKvHeads);
    const v = all.slice(1, numQHeads + numKvHeads, heads);
    const o = step.attend(i, q, k, v).reshape([rows, numQHeads * headDim]);
    const attended = linear(o, out, { residual: x });
    const both = linear(rmsNorm(attended, norm, 1e-5), gateUp);
    const gated = siluMul(both.slice(1, 0, ffn), both.slice(1, ffn, 2 * ffn));
    return linear(gated, down, { residual: attended });
  }
}

/** µs until its last row is done: of everything, from opening the prompt on, and of what `run` enqueues. */
async function prefill(device, cache, tokens, salt, run) {
  await device.synchronize();
  const start = performance.now();
  const sequence = cache.open({ tokens, salt });
  const found = sequence.length;
  const step = cache.plan([[sequence, tokens.length - found]]);
  const planned = performance.now();
  run(step);
  step.commit();
  await device.synchronize();
  const end = performance.now();
  step.dispose();
  return { all: (end - start) * 1000, alone: (end - planned) * 1000, found, sequence };
}

async function* prefixRows(device, quick, row) {
  const shape = SHAPES[quick ? "quick" : device.kind];
  const { numLayers, numKvHeads, headDim, tokens: length, name } = shape;
  const model = new Model(device, shape);
  const cache = device.createCache({
    numLayers,
    numKvHeads,
    headDim,
    pageSize: PAGE,
    rope: { headDim, theta: 500_000 },
    maxTokens: 3 * length,
    maxSequences: 8,
  });
  const prompt = Int32Array.from({ length }, (_, i) => (i * 7919) % 32_000);
  const shared = Math.floor((0.9 * length) / PAGE) * PAGE;
  const parts = { "whole prefill": ["forward", "all"], "attention alone": ["attention", "alone"] };
  let salt = 0;
  for (const [what, [method, time]] of Object.entries(parts)) {
    const run = (step) => model[method](step);
    const times = { cold: [], shared: [] };
    for (let round = 0; round < (quick ? 2 : 8); round++) {
      salt++;
      const cold = await prefill(device, cache, prompt, `${salt}`, run);
      const other = prompt.slice();
      for (let i = shared; i < length; i++) other[i] = 32_000 + round;
      const warm = await prefill(device, cache, other, `${salt}`, run);
      if (cold.found !== 0 || warm.found !== shared) {
        throw new Error(`expected ${shared} shared tokens, got ${warm.found}`);
      }
      for (const { sequence } of [cold, warm]) sequence.close();
      cache.evict();
      if (round === 0) continue;
      times.cold.push(cold[time]);
      times.shared.push(warm[time]);
    }
    const [cold, warm] = [median(times.cold), median(times.shared)];
    yield row(`${what} of ${length}, ${name}`, cold);
    yield row(`${what}, 90 % shared`, warm, {
      note: `${((100 * warm) / cold).toFixed(1)} % of cold`,
    });
  }
  cache.dispose();
  model.dispose();
}

module.exports = { prefixRows };
