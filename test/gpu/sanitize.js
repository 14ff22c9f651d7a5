// Touches every CUDA kernel with small shapes, in plain Node, for
//
//   compute-sanitizer --tool memcheck|synccheck|initcheck node test/gpu/sanitize.js [cuda|cuda:N|cpu]
//
// Results are held against float64 loops, loosely: the suite measures precision. Tensors are kept to the end, so that
// each lies in memory of its own that nobody has written before.
//
// Two things are known to read memory that was never written, and are left out here for initcheck's sake: a page copied
// on write is copied whole, and the copy engine of the Hopper kernel loads whole pages, with the slots behind the last
// key. Both ignore what they find there; the suite's NaN in those slots proves it.

const { performance } = require("node:perf_hooks");
const { Device } = require("../../dist");
const attention = require("./sanitize/attention");
const cache = require("./sanitize/cache");
const layout = require("./sanitize/layout");
const nn = require("./sanitize/nn");
const { DTYPES, checks } = require("./sanitize/numbers");

async function main() {
  const started = performance.now();
  const device = await Device.open(process.argv[2] ?? "cuda");
  const info = device.info();
  const kernels = new Set();
  for (const dtype of DTYPES) {
    for (const headDim of [64, 80, 96, 128, 192, 256]) {
      await attention.dense(device, dtype, headDim, kernels);
      await attention.divided(device, dtype, headDim, kernels);
      await attention.ragged(device, dtype, headDim, kernels);
      await attention.paged(device, dtype, headDim, kernels);
    }
    for (const interleaved of [false, true]) await layout.rotations(device, dtype, interleaved);
    await layout.moves(device, dtype);
    await nn.elementwise(device, dtype);
    await nn.products(device, dtype);
    await nn.choices(device, dtype);
  }
  await cache.branches(device);
  await cache.replays(device);
  await cache.travels(device);

  // The plain matrix product, which stands in where cuBLASLt is missing.
  process.env.FLASH_GQA_CUBLASLT = "off";
  const plain = await Device.open(process.argv[2] ?? "cuda");
  for (const dtype of DTYPES) await nn.products(plain, dtype);
  const linears = new Set([info.linear, plain.info().linear]);

  await device.synchronize();
  await plain.synchronize();
  if (info.arch === "sm_90" && info.sharedMemoryBytes > 200_000) {
    const hopper = [...kernels].filter((name) => name.startsWith("sm90"));
    if (hopper.length === 0) throw new Error("no Hopper kernel ran");
  }
  device.dispose();
  plain.dispose();
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(
    `sanitize: ${info.name} (${info.arch}): ${checks()} results right in ${seconds} s; linear by ` +
      `${[...linears].join(", ")}; attention by ${[...kernels].sort().join(", ")}`,
  );
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
