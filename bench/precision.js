// How right prefill is, and how steady: its error against float64 beside the peers' on the same inputs, and whether it
// gives the same bits every time. The inputs and our output reach the peers' process as files.

const fs = require("node:fs/promises");
const os = require("node:os");
const path = require("node:path");
const { attention } = require("flash-gqa");
const { precisionRows } = require("./cases");
const { normals } = require("./noise");

const RUNS = 100;

/** A prime: where the numbers begin again no row does, so that no two rows are the same. */
const PERIOD = 2 ** 22 - 3;

/** q, k and v of normal numbers. */
function inputs(device, noise, { batch, seqLen, numQHeads, numKvHeads, headDim, dtype }) {
  let start = 0;
  return [numQHeads, numKvHeads, numKvHeads].map((heads) => {
    const shape = [batch, seqLen, heads, headDim];
    const values = new Float32Array(shape.reduce((a, b) => a * b));
    for (let at = 0; at < values.length; ) {
      const part = noise.subarray(start, start + values.length - at);
      values.set(part, at);
      at += part.length;
      start = (start + part.length) % noise.length;
    }
    return device.tensor(values, shape, { dtype });
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
  const noise = normals(PERIOD);
  for (const { suite, params } of precisionRows(args.quick).slice(0, args.rows)) {
    const [q, k, v] = inputs(device, noise, params);
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
