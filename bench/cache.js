// The cache: what its books cost, how long its life stays even, and what moving a sequence to the host takes.

const { setFlagsFromString } = require("node:v8");
const { runInNewContext } = require("node:vm");
const { Device } = require("flash-gqa");
const { PagePool } = require("../dist/cache/page-pool");
const { median } = require("./measure");
const { prefixRows } = require("./prefix");
const { offloadRows } = require("./offload");

const row = (operation, us, more) => ({
  suite: "cache",
  impl: "flash-gqa",
  params: { operation },
  us,
  ...more,
});

/** The smallest pages there are: the books are measured, not the bytes. */
const BOOKS = { numLayers: 1, numKvHeads: 1, headDim: 8, pageSize: 8 };

/**
 * The pool alone, all its pages in use: some at random are given back, and as many taken. With keys they are cached
 * when they are given back, so that each one taken is evicted, and gets the next key.
 */
function* poolRows(quick) {
  const [pages, rounds, some] = quick ? [1000, 20, 10] : [100_000, 4000, 64];
  for (const keyed of [false, true]) {
    const random = randomNumbers();
    const pool = new PagePool(pages + 1);
    let keys = 0;
    const take = () => {
      const page = pool.allocate();
      if (keyed) pool.name(page, `key ${keys++}`, 0);
      return page;
    };
    const held = Int32Array.from({ length: pages }, take);
    const times = [];
    for (let round = 0; round < rounds; round++) {
      const from = random(pages - some);
      const start = performance.now();
      for (let i = from; i < from + some; i++) pool.release(held[i]);
      for (let i = from; i < from + some; i++) held[i] = take();
      times.push(((performance.now() - start) * 1000) / some);
    }
    const how = keyed ? "evicted and named" : "free";
    yield row(
      `page alloc + free, pool of ${named(pages)}, ${how}`,
      median(times.slice(rounds / 2)),
    );
  }
}

/**
 * Pages taken and given back by plans that are rolled back, µs per page: a plan of one page is most of all a plan, with
 * memory of its own, its batch and its table words on their way to the device. The first half lets the compiler settle.
 */
async function* planRows(device, quick) {
  for (const pages of [1, 1024]) {
    const cache = device.createCache({ ...BOOKS, maxTokens: 16384 });
    const sequence = cache.open();
    const times = [];
    for (let i = 0; i < (quick ? 20 : 8000 / Math.sqrt(pages)); i++) {
      const start = performance.now();
      cache.plan([[sequence, 8 * pages]]).dispose();
      times.push(((performance.now() - start) * 1000) / pages);
      if (i % 10 === 0) await device.synchronize();
    }
    yield row(`page alloc + free, ${pages} in a plan`, median(times.slice(times.length / 2)), {
      note: "with two operations enqueued: its batch is written, its table words are scattered",
    });
    cache.dispose();
  }
}

const named = (count) => count.toLocaleString("en");

/** Numbers without pattern, the same on every run. */
function randomNumbers() {
  let state = 7;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const TEXTS = 64;
const LONGEST = 4096;

/** A crowd of sequences that live at random in a pool that is nearly full. */
class Crowd {
  #random = randomNumbers();
  #alive = [];
  #texts;
  #rows;
  #cache;
  #most;

  constructor(device, pages) {
    this.#most = Math.min(2000, pages / 50);
    this.#cache = device.createCache({
      ...BOOKS,
      maxTokens: 8 * pages,
      maxSequences: 2048,
      maxSeqLen: LONGEST,
    });
    this.#rows = device.zeros([64, 1, 8], "bfloat16");
    const random = this.#random;
    this.#texts = Array.from({ length: TEXTS }, () =>
      Int32Array.from({ length: 512 }, () => random(1000)),
    );
  }

  /** One verb. */
  live() {
    const verb = this.#random(1000);
    const { free, cached, total } = this.#cache.stats().pages;
    const crowded = free + cached < total / 20 || this.#alive.length >= this.#most;
    const one = this.#alive[this.#random(this.#alive.length)];
    if (crowded) this.#close();
    else if (one === undefined || verb < 10) this.#open();
    else if (verb < 16) this.#alive.push(one.fork());
    else if (verb < 60) one.truncate(Math.max(0, one.length - this.#random(64)));
    else if (verb < 260) this.#grow(one);
    else this.#cache.plan([[one, 1 + this.#random(64)]]).dispose();
  }

  get used() {
    return this.#cache.stats().pages.used;
  }

  dispose() {
    this.#cache.dispose();
    this.#rows.dispose();
  }

  #open() {
    const text = this.#texts[this.#random(TEXTS)];
    this.#alive.push(this.#cache.open({ tokens: text.subarray(0, 1 + this.#random(512)) }));
  }

  #close() {
    const at = this.#random(this.#alive.length);
    this.#alive[at].close();
    this.#alive[at] = this.#alive.at(-1);
    this.#alive.pop();
  }

  #grow(sequence) {
    if (sequence.length > LONGEST / 2) sequence.truncate(64);
    const tokens = 1 + this.#random(64);
    const step = this.#cache.plan([[sequence, tokens]]);
    const rows = this.#rows.slice(0, 0, tokens);
    step.attend(0, rows, rows, rows);
    step.commit();
    step.dispose();
    rows.dispose();
  }
}

/** After a collection, when the device is idle: what stays. */
async function memory(device) {
  await device.synchronize();
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc");
  for (let i = 0; i < 2; i++) {
    gc();
    await new Promise(setImmediate);
  }
  const { heapUsed, external } = process.memoryUsage();
  return { heapUsed, external, device: device.memory().allocated };
}

/** From the median of the first half to that of the second: a map that makes room moves single numbers by megabytes. */
function growth(tenths) {
  const half = (name, from) => median(tenths.slice(from, from + 5).map((tenth) => tenth[name]));
  const names = ["heapUsed", "external", "device"];
  return Object.fromEntries(names.map((name) => [name, half(name, 5) - half(name, 0)]));
}

const inKib = (bytes) => `${bytes < 0 ? "−" : "+"}${Math.abs(Math.round(bytes / 1024))} KiB`;

/**
 * A million verbs on one pool: the last tenth beside the first. Half a million before fill the pool, so that all find
 * the same crowd, and let the compiler settle. On the CPU back end whatever the device: the books are the same, and
 * launches would be most of the time.
 */
async function* lifeRows(quick) {
  const device = await Device.open("cpu");
  const [pages, verbs] = quick ? [1000, 4000] : [100_000, 1_000_000];
  const crowd = new Crowd(device, pages);
  const tenth = verbs / 10;
  const times = new Float64Array(tenth); // one for all: it is not to show as growth
  const run = async () => {
    for (let i = 0; i < tenth; i++) {
      const start = performance.now();
      crowd.live();
      times[i] = (performance.now() - start) * 1000;
      if (i % 100 === 99) await device.synchronize();
    }
    return median(times);
  };
  for (let i = 0; i < 5; i++) await run();
  const tenths = [];
  for (let i = 0; i < 10; i++) {
    tenths.push({ us: await run(), used: crowd.used, ...(await memory(device)) });
  }
  const [first, last] = [tenths[0], tenths[9]];
  const grown = growth(tenths);
  const kib = Object.entries(grown).map(([name, bytes]) => `${name} ${inKib(bytes)}`);
  const name = `of ${named(verbs)} verbs on ${named(pages)} pages`;
  yield row(`first tenth ${name}`, first.us, { note: `${named(first.used)} pages used` });
  yield row(`last tenth ${name}`, last.us, {
    note: `× ${(last.us / first.us).toFixed(2)}; ${named(last.used)} used; ${kib.join(", ")}`,
    growth: grown,
  });
  crowd.dispose();
  device.dispose();
}

async function* cacheRows(device, quick) {
  yield* poolRows(quick);
  yield* planRows(device, quick);
  yield* lifeRows(quick);
  yield* prefixRows(device, quick, row);
  yield* offloadRows(device, quick, row);
}

module.exports = { cacheRows };
