// Seeded numbers, float64 attention and loose comparison.

const DTYPES = ["float32", "bfloat16", "float16"];
/** What a wrong result exceeds by far, and rounding never. */
const ATOL = { float32: 1e-4, bfloat16: 0.05, float16: 0.01 };

let state = 1;
let compared = 0;

function uniform() {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
}

/** Multiples of 1/32 in [-2, 2), which every float type holds exactly. */
function numbers(count) {
  return Float32Array.from({ length: count }, () => Math.floor(128 * uniform() - 64) / 32);
}

function expectClose(actual, expected, atol, what) {
  if (actual.length !== expected.length) throw new Error(`${what}: length ${actual.length}`);
  for (let i = 0; i < expected.length; i++) {
    const same = Object.is(actual[i], expected[i]) || Math.abs(actual[i] - expected[i]) <= atol;
    if (!same) throw new Error(`${what}: element ${i} is ${actual[i]}, expected ${expected[i]}`);
  }
  compared++;
}

function starts(lengths) {
  const offsets = new Int32Array(lengths.length + 1);
  for (const [b, length] of lengths.entries()) offsets[b + 1] = offsets[b] + length;
  return offsets;
}

const total = (lengths) => lengths.reduce((sum, n) => sum + n, 0);

function sees(position, key, { window = 0, sinkTokens = 0, prefixLen = 0 }) {
  if (key >= Math.max(position + 1, prefixLen)) return false;
  return window === 0 || key > position - window || key < sinkTokens;
}

/** o and lse of a ragged batch of dense q, k and v. */
function reference({ q, k, v, qLens, kvLens, heads, kvHeads, headDim }, options = {}) {
  const { softCap = 0, smScale = 1 / Math.sqrt(headDim), sinkLogits } = options;
  const o = new Float64Array(q.length);
  const lse = new Float64Array(total(qLens) * heads);
  const [qStarts, kvStarts] = [starts(qLens), starts(kvLens)];
  for (const [b, qLen] of qLens.entries()) {
    for (let i = 0; i < qLen * heads; i++) {
      const position = kvLens[b] - qLen + Math.floor(i / heads);
      const row = qStarts[b] * heads + i;
      const kvHead = Math.floor(((i % heads) * kvHeads) / heads);
      const sink = sinkLogits?.[i % heads];
      let sum = sink === undefined ? 0 : Math.exp(sink);
      for (let key = 0; key < kvLens[b]; key++) {
        if (!sees(position, key, options)) continue;
        const at = ((kvStarts[b] + key) * kvHeads + kvHead) * headDim;
        let logit = 0;
        for (let d = 0; d < headDim; d++) logit += q[row * headDim + d] * k[at + d];
        logit *= smScale;
        if (softCap > 0) logit = softCap * Math.tanh(logit / softCap);
        const weight = Math.exp(logit);
        sum += weight;
        for (let d = 0; d < headDim; d++) o[row * headDim + d] += weight * v[at + d];
      }
      lse[row] = Math.log(sum);
      for (let d = 0; d < headDim; d++) if (sum > 0) o[row * headDim + d] /= sum;
    }
  }
  return { o, lse };
}

module.exports = {
  ATOL,
  DTYPES,
  checks: () => compared,
  expectClose,
  numbers,
  reference,
  starts,
  total,
};
