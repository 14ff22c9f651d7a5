// Attention as the conventions state it (docs/conventions.md), in float64: three loops and one predicate. Shares no
// line with the implementation, so that a wrong idea there cannot be right here too.

export interface AttentionOptions {
  causal?: boolean;
  window?: number;
  sinkTokens?: number;
  prefixLen?: number;
  softCap?: number;
  smScale?: number;
  sinkLogits?: ArrayLike<number> | null;
}

export interface Shape {
  qLen: number;
  kvLen: number;
  numQHeads: number;
  numKvHeads: number;
  headDim: number;
}

/** One sequence: q [qLen, numQHeads, headDim], k and v [kvLen, numKvHeads, headDim]. */
export interface Problem extends Shape, AttentionOptions {
  q: ArrayLike<number>;
  k: ArrayLike<number>;
  v: ArrayLike<number>;
}

/** o [qLen, numQHeads, headDim], lse [qLen, numQHeads]. */
export interface States {
  o: Float64Array;
  lse: Float64Array;
}

/** How the arithmetic rounds: EXACT in float64; the others are what a plain computation of that precision does. */
export interface Precision {
  /** Logits in units of 1 / scale: flash kernels everywhere work in base 2, and a large logit loses bits by it. */
  scale: number;
  /** After every multiply-add, exponential and difference. */
  step: (x: number) => number;
  /** Probabilities before they meet V. */
  p: (x: number) => number;
  /** The stored result. */
  out: (x: number) => number;
}

const same = (x: number): number => x;
export const EXACT: Precision = { scale: 1, step: same, p: same, out: same };

/** May the query at `position` see `key`? */
export function visible(position: number, key: number, options: AttentionOptions): boolean {
  const { causal = true, window = 0, sinkTokens = 0, prefixLen = 0 } = options;
  if (!causal) return true;
  if (key >= Math.max(position + 1, prefixLen)) return false;
  return window === 0 || key > position - window || key < sinkTokens;
}

export function referenceAttention(problem: Problem, precision: Precision = EXACT): States {
  const { q, k, v, qLen, kvLen, numQHeads, numKvHeads, headDim } = problem;
  const { softCap = 0, smScale = 1 / Math.sqrt(headDim), sinkLogits = null } = problem;
  const { scale, step, p: roundP, out } = precision;
  const exp = (x: number) => step(Math.exp(x / scale));
  const groupSize = numQHeads / numKvHeads;
  const o = new Float64Array(qLen * numQHeads * headDim);
  const lse = new Float64Array(qLen * numQHeads);
  for (let row = 0; row < qLen; row++) {
    const position = kvLen - qLen + row;
    for (let head = 0; head < numQHeads; head++) {
      const kvHead = Math.floor(head / groupSize);
      const qAt = (row * numQHeads + head) * headDim;
      const keys: number[] = [];
      const logits: number[] = [];
      for (let key = 0; key < kvLen; key++) {
        if (!visible(position, key, problem)) continue;
        const kAt = (key * numKvHeads + kvHead) * headDim;
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot = step(dot + q[qAt + d]! * k[kAt + d]!);
        let logit = step(dot * step(smScale * (softCap > 0 ? 1 : scale)));
        if (softCap > 0) logit = step(softCap * scale * Math.tanh(logit / softCap));
        keys.push(key);
        logits.push(logit);
      }
      const sink = sinkLogits ? step(sinkLogits[head]! * scale) : -Infinity;
      const max = logits.reduce((a, b) => Math.max(a, b), sink);
      let sum = sinkLogits ? exp(step(sink - max)) : 0;
      const acc = new Float64Array(headDim);
      for (const [i, key] of keys.entries()) {
        const p = exp(step(logits[i]! - max));
        sum = step(sum + p);
        const vAt = (key * numKvHeads + kvHead) * headDim;
        const weight = roundP(p);
        for (let d = 0; d < headDim; d++) acc[d] = step(acc[d]! + weight * v[vAt + d]!);
      }
      lse[row * numQHeads + head] = sum > 0 ? max / scale + Math.log(sum) : -Infinity;
      for (let d = 0; d < headDim; d++) o[qAt + d] = sum > 0 ? out(acc[d]! / sum) : 0;
    }
  }
  return { o, lse };
}

/** Runs each sequence of a ragged batch by itself and packs the results. */
export function referenceRagged(
  batch: Omit<Problem, "qLen" | "kvLen">,
  qLens: readonly number[],
  kvLens: readonly number[],
  perSequence: (b: number) => AttentionOptions = () => ({}),
  precision: Precision = EXACT,
): States {
  const qWidth = batch.numQHeads * batch.headDim;
  const kvWidth = batch.numKvHeads * batch.headDim;
  const totalQ = qLens.reduce((sum, n) => sum + n, 0);
  const o = new Float64Array(totalQ * qWidth);
  const lse = new Float64Array(totalQ * batch.numQHeads);
  let qRow = 0;
  let kvRow = 0;
  for (const [b, qLen] of qLens.entries()) {
    const kvLen = kvLens[b]!;
    const rows = (x: ArrayLike<number>, first: number, count: number, width: number) =>
      Array.prototype.slice.call(x, first * width, (first + count) * width) as number[];
    const part = referenceAttention(
      {
        ...batch,
        ...perSequence(b),
        q: rows(batch.q, qRow, qLen, qWidth),
        k: rows(batch.k, kvRow, kvLen, kvWidth),
        v: rows(batch.v, kvRow, kvLen, kvWidth),
        qLen,
        kvLen,
      },
      precision,
    );
    o.set(part.o, qRow * qWidth);
    lse.set(part.lse, qRow * batch.numQHeads);
    qRow += qLen;
    kvRow += kvLen;
  }
  return { o, lse };
}
