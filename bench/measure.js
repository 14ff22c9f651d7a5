// How a time is taken. Kernels on a GPU: serial calls captured in one graph, replayed between two waits, so that no
// host time is in it but one launch per replay. On the CPU: a plain loop between two waits. Nothing is subtracted.

const { flops, isDecode, kvBytes } = require("./cases");

/** Five rounds of at least 20 ms; --quick three of 1 ms. */
const rounds = (quick) => (quick ? { count: 3, seconds: 0.001 } : { count: 5, seconds: 0.02 });

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/**
 * `count` rounds, there and back, so that nobody is always behind the same one; `last` comes behind them all.
 * `take(impl)` times one turn.
 */
async function takeTurns(impls, last, count, take) {
  const turns = impls.filter((impl) => impl !== last);
  for (let round = 0; round < count; round++) {
    for (const impl of turns) await take(impl);
    turns.reverse();
  }
  for (let round = 0; impls.includes(last) && round < count; round++) await take(last);
}

/** Times a kernel row; `round()` gives microseconds per call. */
class KernelTimer {
  #device;
  #call;
  #graph = null;
  #runs = 1;

  constructor(device, call) {
    this.#device = device;
    this.#call = call;
    this.calls = serialCalls(call.row, call.copies);
  }

  /** Captures on CUDA, warms up, and finds how often a round must run to last `seconds`. */
  async prepare(seconds) {
    if (this.#device.kind === "cuda") {
      this.#graph = this.#device.capture(() => this.#enqueue());
    } else {
      this.calls = 1;
    }
    await this.#elapsed();
    for (;;) {
      const elapsed = await this.#elapsed();
      if (elapsed >= seconds) return;
      const wanted = (1.2 * seconds * this.#runs) / Math.max(elapsed, 1e-6);
      this.#runs = Math.max(this.#runs + 1, Math.min(Math.ceil(wanted), 10 * this.#runs));
    }
  }

  /** A prefill runs as long untimed first: when its turn begins, the clock is the one that the turn before has left. */
  async round() {
    if (this.#graph !== null && !isDecode(this.#call.row)) await this.#elapsed();
    return ((await this.#elapsed()) * 1e6) / (this.#runs * this.calls);
  }

  dispose() {
    this.#graph?.dispose();
  }

  #enqueue() {
    for (let i = 0; i < this.calls; i++) this.#call.call(i);
  }

  async #elapsed() {
    await this.#device.synchronize();
    const start = performance.now();
    for (let run = 0; run < this.#runs; run++) {
      if (this.#graph === null) this.#enqueue();
      else this.#graph.replay();
    }
    await this.#device.synchronize();
    return (performance.now() - start) / 1000;
  }
}

/** Calls in one graph: every copy, at least 24 decodes or 8 prefills; 2 of a prefill of milliseconds. */
function serialCalls(row, copies) {
  const least = isDecode(row) ? 24 : flops(row) > 2e12 ? 2 : 8;
  return Math.ceil(least / copies) * copies;
}

/** What a row reaches, and the time that the machine's limits allow: `product`, TFLOP/s, or undefined, of a prefill. */
function result(row, impl, us, readGbps, product) {
  const { suite, params } = row;
  if (isDecode(row)) {
    const bytes = kvBytes(row);
    const floor_us = bytes / readGbps / 1e3;
    return { suite, impl, params, us, gbps: bytes / us / 1e3, floor_us };
  }
  const work = flops(row);
  const rate = { suite, impl, params, us, tflops: work / us / 1e6 };
  if (product === undefined) return { ...rate, floor_us: null };
  return { ...rate, floor_us: work / product / 1e6, ceiling_tflops: product };
}

module.exports = { KernelTimer, median, result, rounds, takeTurns };
