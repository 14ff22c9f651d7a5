// Host time: what one call costs the event loop, kernels apart. Calls are enqueued in bursts, and only the burst is
// timed; the queue is emptied between.

const { appendKv, attention } = require("flash-gqa");
const { add, linear } = require("flash-gqa/nn");
const { median } = require("./measure");

const BURST = 200;
const SEQUENCES = 64;
const row = (suite, params, us) => ({ suite, impl: "flash-gqa", params, us });

/** Microseconds per call: the median over bursts, after as many that let the compiler settle. */
async function perCall(device, bursts, call) {
  const times = [];
  for (let burst = 0; burst < 2 * bursts; burst++) {
    const start = performance.now();
    for (let i = 0; i < BURST; i++) call();
    const us = ((performance.now() - start) * 1000) / BURST;
    await device.synchronize();
    if (burst >= bursts) times.push(us);
  }
  return median(times);
}

/** One decode token of a 4-query-head model: on the CPU the kernels are shorter than the calls. */
function operations(device) {
  const dtype = "bfloat16";
  const q = device.zeros([1, 4, 64], dtype);
  const k = device.zeros([1, 2, 64], dtype);
  const v = device.zeros([1, 2, 64], dtype);
  const o = device.empty(q.shape, dtype);
  const pages = device.zeros([2, 2, 2, 16, 64], dtype);
  const pageTable = device.tensor(Int32Array.of(0, 1), [1, 2]);
  const kvLens = device.tensor(Int32Array.of(1), [1]);
  const kv = { pages, pageTable, kvLens };
  const x = device.zeros([1, 64], dtype);
  const weight = device.zeros([64, 64], dtype);
  const out = device.empty(x.shape, dtype);
  const words = Int32Array.of(0, 1, 2, 3, 4);
  const ids = device.empty([words.length], "int32");
  const graph = device.capture(() => add(x, x, { out }));
  return {
    attention: () => attention(q, k, v, { o }),
    "attention, paged": () => attention(q, kv, { o }),
    "attention, new output": () => attention(q, k, v).o.dispose(),
    appendKv: () => appendKv(k, v, kv),
    linear: () => linear(x, weight, { out }),
    add: () => add(x, x, { out }),
    "add, new output": () => add(x, x).dispose(),
    "write of 20 bytes": () => ids.write(words),
    "graph replay": () => graph.replay(),
  };
}

/**
 * plan and next of 64 sequences, each with its commit, kernels waited for between; and plan with its rollback, where no
 * kernel empties the caches before. The sequences share their first pages with one that was prefilled, and have a last
 * page of their own: long tables at the price of one prefill.
 */
async function planning(device, length, repeats) {
  const cache = device.createCache({
    numLayers: 1,
    numKvHeads: 1,
    headDim: 8,
    maxTokens: length + SEQUENCES * 16 * 64,
    maxSequences: SEQUENCES + 1,
    maxSeqLen: length + 1024,
  });
  const heads = (rows) => device.zeros([rows, 1, 8], "bfloat16");
  const [chunk, token] = [heads(4096), heads(SEQUENCES)];
  const first = cache.open();
  for (let done = 0; done < length; done += 4096) {
    const rows = Math.min(4096, length - done);
    const part = chunk.slice(0, 0, rows);
    const step = cache.plan([[first, rows]]);
    step.attend(0, part, part, part);
    step.commit();
    step.dispose();
    part.dispose();
  }
  const requests = Array.from({ length: SEQUENCES }, () => [first.fork(), 1]);
  const times = { "plan + rollback": [], "plan + commit": [], "next + commit": [] };
  let step = null;
  const timed = async (name, begin) => {
    const start = performance.now();
    begin();
    const begun = performance.now();
    step.attend(0, token, token, token);
    await device.synchronize(); // kernels on every core would slow commit down
    const attended = performance.now();
    step.commit();
    times[name].push((begun - start + performance.now() - attended) * 1000);
  };
  // First what costs least, so that the compiler has settled by the time of the rest, as in a server that has run for
  // a second; of the rest the second half counts.
  for (let i = 0; i < 8 * repeats; i++) {
    const start = performance.now();
    cache.plan(requests).dispose();
    times["plan + rollback"].push((performance.now() - start) * 1000);
    if (i % 16 === 0) await device.synchronize();
  }
  for (let i = 0; i < 2 * repeats; i++) {
    await timed("plan + commit", () => (step = cache.plan(requests)));
    await timed("next + commit", () => step.next(1));
    step.dispose();
  }
  cache.dispose();
  for (const tensor of [chunk, token]) tensor.dispose();
  return times;
}

async function* hostRows(device, quick) {
  for (const [operation, call] of Object.entries(operations(device))) {
    yield row("host", { operation }, await perCall(device, quick ? 2 : 30, call));
  }
  for (const kvLen of quick ? [100, 1000] : [100, 100_000]) {
    const times = await planning(device, kvLen, quick ? 4 : 24);
    for (const name of Object.keys(times)) {
      const params = { operation: `${name} of ${SEQUENCES}`, batch: SEQUENCES, kvLen };
      yield row("host", params, median(times[name].slice(times[name].length / 2)));
    }
  }
}

module.exports = { hostRows };
