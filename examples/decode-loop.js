// The life of a KV cache in one loop: a prompt, tokens one by one, a fork, a rollback, and the pages that a window
// gives back. Random vectors stand for a model's projections; lib/llama/ has the same loop around a real one.
//   node examples/decode-loop.js

const { Device } = require("flash-gqa");

const model = { numLayers: 4, numQHeads: 8, numKvHeads: 2, headDim: 64 };

/** What a layer's projections would give for `rows` tokens: q, k and v before RoPE. */
function project(device, rows) {
  const make = (heads) =>
    device.tensor(
      Float32Array.from({ length: rows * heads * model.headDim }, () => Math.random() - 0.5),
      [rows, heads, model.headDim],
    );
  return [make(model.numQHeads), make(model.numKvHeads), make(model.numKvHeads)];
}

function runLayers(device, step, rows) {
  device.tidy(() => {
    for (let layer = 0; layer < model.numLayers; layer++) {
      step.attend(layer, ...project(device, rows));
    }
  });
}

async function main() {
  const device = await Device.open();
  const cache = device.createCache({
    ...model,
    dtype: "float32",
    rope: { headDim: model.headDim, theta: 10_000 },
    window: 128,
    maxTokens: 4096,
  });

  const chat = cache.open();
  const step = cache.plan([[chat, 300]]); // reserves the pages of the prompt
  runLayers(device, step, 300);
  step.commit(); // counts them, and gives back what the window has left behind
  for (let token = 0; token < 200; token++) {
    step.next(1); // the same device buffers, one token further
    runLayers(device, step, 1);
    step.commit();
  }
  step.dispose();
  console.log(`${chat.length} tokens`, cache.stats());

  const branch = chat.fork(); // shares every page; the last one is copied when either writes to it
  const tried = cache.plan([[branch, 1]]);
  runLayers(device, tried, 1);
  tried.rollback(); // as if it had never been planned
  tried.dispose();
  console.log(`branch: ${branch.length} tokens`, cache.stats());

  await device.synchronize();
  device.dispose();
}

main();
