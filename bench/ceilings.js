// The machine's limits, as far as this package's own operations show them: a large copy and, on a GPU, a large
// product. Where peers run, theirs replace them (a sum reads faster than a copy copies). What limits a product on this
// CPU is not known: its `linear` is no faster than its attention.

const { linear } = require("flash-gqa/nn");
const { median } = require("./measure");

/** { readGbps, bfloat16: TFLOP/s, from }; without bfloat16 on the CPU. */
async function ownCeilings(device, noise, quick) {
  const cuda = device.kind === "cuda";
  const bytes = quick ? 2 ** 24 : cuda ? 2 ** 31 : 2 ** 28;
  const loops = cuda ? 10 : 1;
  const source = device.zeros([bytes / 4]);
  const target = device.empty(source.shape);
  const copy = await seconds(device, loops, () => target.write(source));
  for (const tensor of [source, target]) tensor.dispose();
  const readGbps = (2 * bytes) / copy / 1e9;
  if (!cuda) return { readGbps, from: "own copy, read and written" };

  const side = 8192;
  const x = noise.tensor([side, side], "bfloat16");
  const weight = noise.tensor(x.shape, "bfloat16");
  const out = device.empty(x.shape, "bfloat16");
  const product = await seconds(device, loops, () => linear(x, weight, { out }));
  for (const tensor of [x, weight, out]) tensor.dispose();
  return { readGbps, bfloat16: (2 * side ** 3) / product / 1e12, from: "own copy and linear" };
}

async function seconds(device, loops, enqueue) {
  const times = [];
  for (let round = 0; round < 6; round++) {
    await device.synchronize();
    const start = performance.now();
    for (let i = 0; i < loops; i++) enqueue();
    await device.synchronize();
    if (round > 0) times.push((performance.now() - start) / 1000 / loops);
  }
  return median(times);
}

module.exports = { ownCeilings };
