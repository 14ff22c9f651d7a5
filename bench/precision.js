// How right prefill is, and how steady: its error against float64 beside the peers' on the same inputs, and whether it
// gives the same bits every time. The inputs and our output reach the peers' process as files.

const fs = require("node:fs/promises");
const os = require("node:os");
const path = require("node:path");
const { attention } = require("flash-gqa");
const { precisionRows } = require("./cases");
const { normals } = require("./noise");

const RUNS = 100;

/** Fresh normal numbers for q, k and v: repeated rows would make the softmax's sums too regular. */
function inputs(device, { batch, seqLen, numQHeads, numKvHeads, headDim, dtype }) {
  const shapes = [numQHeads, numKvHeads, numKvHeads].map((heads) => [
    batch,
    seqLen,
    heads,
    headDim,
  ]);
  const sizes = shapes.map((shape) => shape.reduce((a, b) => a * b));
  const values = normals(sizes[0] + sizes[1] + sizes[2]);
  let start = 0;
  return shapes.map((shape, i) => {
    const part = values.subarray(start, start + sizes[i]);
    start += sizes[i];
    return device.tensor(part, shape, { dtype });
  });
}

const bytes = (bits) => Buffer.from(bits.buffer, bits.byteOffset, bits.byteLength);

/** The output's bytes, and how many of the runs gave the first one's. */
async function repeat(device, q, k, v, runs) {
  const o = device.empty(q.shape, q.dtype);
  const blank = device.zeros(q.shape, q.dtype);
  let first = null;
  let equal = 0;
  for (let run = 0; run < runs; run++) {
    o.write(blank); // what a run does not write must not pass for its result
    attention(q, k, v, { o });
    const bits = bytes(await o.readBits());
    first ??= bits;
    if (bits.equals(first)) equal++;
  }
  for (const tensor of [o, blank]) tensor.dispose();
  return { bits: first, equal };
}

/** What the peers' process says of these bytes. */
async function judge(peers, params, files) {
  const folder = await fs.mkdtemp(path.join(os.tmpdir(), "flash-gqa-precision-"));
  try {
    for (const [name, bits] of Object.entries(files)) {
      await fs.writeFile(path.join(folder, `${name}.bin`), bits);
    }
    return await peers.ask({ do: "precision", params, folder });
  } finally {
    await fs.rm(folder, { recursive: true });
  }
}

/** For each row the results of all: { suite, impl, params, rms, max }, and of ours { runs, equal_runs }. */
async function* precisionResults(device, peers, args) {
  const runs = args.quick ? 3 : RUNS;
  for (const { suite, params } of precisionRows(args.quick).slice(0, args.rows)) {
    const [q, k, v] = inputs(device, params);
    const { bits, equal } = await repeat(device, q, k, v, runs);
    const files = { q: await q.readBits(), k: await k.readBits(), v: await v.readBits(), o: bits };
    for (const tensor of [q, k, v]) tensor.dispose();
    const { errors, failed } = await judge(peers, params, files);
    for (const [impl, reason] of Object.entries(failed)) console.error(`${impl}: ${reason}`);
    yield Object.entries(errors).map(([impl, error]) => {
      const steady = impl === "flash-gqa" ? { runs, equal_runs: equal } : {};
      return { suite, impl, params, ...error, ...steady };
    });
  }
}

module.exports = { precisionResults };
