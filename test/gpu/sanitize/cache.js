// The cache: the table's scatter, copies on write, and a captured step. Values are constant, and so are outputs.

const { expectClose, numbers } = require("./numbers");

const HEADS = 4;
const KV_HEADS = 2;
const HEAD_DIM = 64;

function makeCache(device) {
  return device.createCache({
    numLayers: 2,
    numKvHeads: KV_HEADS,
    headDim: HEAD_DIM,
    pageSize: 16,
    maxTokens: 512,
    window: [0, 24],
    rope: { headDim: HEAD_DIM },
    hostBytes: 1 << 20,
  });
}

function inputs(device, rows, value) {
  const tensor = (data, heads) =>
    device.tensor(data, [rows, heads, HEAD_DIM], { dtype: "bfloat16" });
  const size = rows * KV_HEADS * HEAD_DIM;
  return [
    tensor(numbers(rows * HEADS * HEAD_DIM), HEADS),
    tensor(numbers(size), KV_HEADS),
    tensor(new Float32Array(size).fill(value), KV_HEADS),
  ];
}

async function advance(device, cache, counts) {
  const step = cache.plan(counts);
  const rows = counts.reduce((sum, [, n]) => sum + n, 0);
  const given = inputs(device, rows, 2);
  const outputs = await Promise.all([0, 1].map((layer) => step.attend(layer, ...given).read()));
  step.commit();
  step.dispose();
  for (const o of outputs) expectClose(o, new Float32Array(o.length).fill(2), 0.02, "attend");
}

/** A page is full before it is shared, so that its copy has no slot that nobody wrote. */
async function branches(device) {
  const cache = makeCache(device);
  const trunk = cache.open();
  await advance(device, cache, [[trunk, 32]]);
  trunk.truncate(20);
  const branch = trunk.fork();
  await advance(device, cache, [
    [trunk, 1],
    [branch, 30],
  ]);
  await advance(device, cache, [
    [trunk, 1],
    [branch, 1],
  ]);
}

async function replays(device) {
  const cache = makeCache(device);
  const sequences = [cache.open(), cache.open()];
  await advance(device, cache, [[sequences[0], 15]]);
  await advance(device, cache, [[sequences[1], 3]]);
  const step = cache.plan(sequences.map((sequence) => [sequence, 1]));
  const [q, k, v] = inputs(device, 2, 2);
  const o = device.empty(q.shape, "bfloat16");
  const graph = device.capture(() => {
    step.attend(0, q, k, v);
    step.attend(1, q, k, v, { o });
  });
  for (let i = 0; i < 4; i++, step.next(1)) {
    graph.replay();
    step.commit();
    expectClose(await o.read(), new Float32Array(o.size).fill(2), 0.02, "replay");
  }
  step.dispose();
  graph.dispose();
}

/** To the host and back, and through bytes, while another sequence takes steps. Full pages: whole ones are copied. */
async function travels(device) {
  const cache = makeCache(device);
  // Kernels have written every page that comes back: whether a tool counts copies of a batch as writes is its affair.
  const early = cache.open();
  await advance(device, cache, [[early, 160]]);
  early.close();
  const [one, other] = [cache.open(), cache.open()];
  for (let i = 0; i < 3; i++) {
    await advance(device, cache, [[one, 16]]);
    await advance(device, cache, [[other, 16]]); // no two pages of one lie side by side
  }
  for (const verb of ["offload", "restore"]) {
    const moved = cache[verb](one);
    await advance(device, cache, [[other, 16]]);
    await moved;
  }
  const loaded = await cache.load(await cache.save(one));
  await advance(device, cache, [
    [one, 1],
    [loaded, 1],
  ]);
}

module.exports = { branches, replays, travels };
