// Attention: decode, short and prefill rows; dense, ragged and paged keys; whole and split.

const { appendKv, attention } = require("../../../dist");
const { ATOL, expectClose, numbers, reference, starts, total } = require("./numbers");

const HEADS = { heads: 4, kvHeads: 2 };
/** With fixed splits, by boxes of the copy engine, which want whole pages, and row by row. */
const PAGED = [
  { pageSize: 16, kvLens: [70, 33, 144, 9], fixedSplits: 64 },
  { pageSize: 16, kvLens: [64, 32, 144, 16] },
  { pageSize: 8, kvLens: [70, 33, 144, 9] },
];
const GARBAGE_ID = 2_147_480_000;

function problem(device, dtype, headDim, qLens, kvLens) {
  const { heads, kvHeads } = HEADS;
  const q = numbers(total(qLens) * heads * headDim);
  const k = numbers(total(kvLens) * kvHeads * headDim);
  const v = numbers(total(kvLens) * kvHeads * headDim);
  const host = { q, k, v, qLens, kvLens, ...HEADS, headDim };
  const tensor = (x, rows, count) => device.tensor(x, [rows, count, headDim], { dtype });
  return {
    host,
    q: tensor(q, total(qLens), heads),
    k: tensor(k, total(kvLens), kvHeads),
    v: tensor(v, total(kvLens), kvHeads),
  };
}

async function check({ o, lse, kernel }, expected, dtype, what, kernels) {
  kernels.add(kernel);
  expectClose(await o.read(), expected.o, ATOL[dtype], `${what}: o`);
  if (lse) expectClose(await lse.read(), expected.lse, 1e-3, `${what}: lse`);
}

/** One sequence, one row: decode, its keys divided among blocks. */
async function dense(device, dtype, headDim, kernels) {
  const { host, q, k, v } = problem(device, dtype, headDim, [1], [200]);
  const result = attention(q, k, v, { explain: true });
  await check(result, reference(host), dtype, `dense ${dtype} ${headDim}`, kernels);
}

/** Few queries against many keys: kernels that give their blocks rows divide the keys too. */
async function divided(device, dtype, headDim, kernels) {
  const { host, q, k, v } = problem(device, dtype, headDim, [40], [2500]);
  const result = attention(q, k, v, { lse: true, explain: true });
  await check(result, reference(host), dtype, `divided ${dtype} ${headDim}`, kernels);
}

/** Decode, short and prefill sequences and an empty one in one call, with every option of the mask but a prefix. */
async function ragged(device, dtype, headDim, kernels) {
  const { host, q, k, v } = problem(device, dtype, headDim, [1, 20, 40, 0], [170, 13, 150, 9]);
  const options = {
    window: 140,
    sinkTokens: 5,
    softCap: 20,
    sinkLogits: numbers(HEADS.heads),
  };
  const result = attention(q, k, v, {
    ...options,
    cuSeqlensQ: starts(host.qLens),
    cuSeqlensK: starts(host.kvLens),
    lse: true,
    explain: true,
  });
  const what = `ragged ${dtype} ${headDim}`;
  await check(result, reference(host, options), dtype, what, kernels);
}

/**
 * Pages that appendKv fills and nothing else has written; page ids and lengths that only the device reads. The one
 * sequence that the Hopper kernel takes fills its pages.
 */
async function paged(device, dtype, headDim, kernels) {
  for (const each of PAGED) await pagedOnce(device, dtype, headDim, each, kernels);
}

async function pagedOnce(device, dtype, headDim, { pageSize, kvLens, fixedSplits }, kernels) {
  const { host, q, k, v } = problem(device, dtype, headDim, [1, 20, 40, 0], kvLens);
  const maxPages = 24;
  const table = new Int32Array(kvLens.length * maxPages).fill(GARBAGE_ID);
  let numPages = 0;
  for (const [b, kvLen] of kvLens.entries()) {
    const count = Math.ceil(kvLen / pageSize);
    // Descending, so that no page lies behind its predecessor.
    for (let i = 0; i < count; i++) table[b * maxPages + i] = numPages + count - 1 - i;
    numPages += count;
  }
  const kv = {
    pages: device.empty([numPages, 2, HEADS.kvHeads, pageSize, headDim], dtype),
    pageTable: device.tensor(table, [kvLens.length, maxPages]),
    kvLens: device.tensor(Int32Array.from(kvLens), [kvLens.length]),
  };
  appendKv(k, v, kv, { cuSeqlensQ: starts(kvLens) });
  const result = attention(q, kv, {
    prefixLen: 60,
    cuSeqlensQ: starts(host.qLens),
    lse: true,
    ...(fixedSplits && { fixedSplits }),
    explain: true,
  });
  const what = `paged ${pageSize} ${dtype} ${headDim}`;
  await check(result, reference(host, { prefixLen: 60 }), dtype, what, kernels);
}

module.exports = { dense, divided, paged, ragged };
