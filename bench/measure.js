// How a time is taken. Kernels on a GPU: serial calls captured in one graph, replayed between two waits, so that no
// host time is in it but one launch per replay. On the CPU: a plain loop between two waits. Nothing is subtracted.

const { attention } = require("flash-gqa");
const { elementBytes, flops, isDecode, kvBytes } = require("./cases");

/** More than the L2 of any GPU so far: consecutive calls must not find their keys there. */
const ROTATED_BYTES = 300e6;

/** Five rounds of at least 20 ms; --quick three of 1 ms. */
const rounds = (quick) => (quick ? { count: 3, seconds: 0.001 } : { count: 5, seconds: 0.02 });

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** The same numbers on every run (mulberry32), normally distributed (Box-Muller). */
function normals(count) {
  let state = 1;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  return Float32Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
}

/** Fills tensors with normal numbers: a block from the host, then doubled on the device. */
class Noise {
  #block;
  #device;

  constructor(device, elements) {
    this.#device = device;
    this.#block = normals(elements);
  }

  tensor(shape, dtype) {
    const tensor = this.#device.empty(shape, dtype);
    // One axis holds fewer elements than the largest tensors have.
    const width = tensor.size < 2 ** 31 ? 1 : shape.at(-1);
    const total = tensor.size / width;
    const flat = tensor.reshape([total, width]);
    let filled = Math.min(Math.floor(this.#block.length / width), total);
    write(flat, 0, filled, this.#block.subarray(0, filled * width));
    while (filled < total) {
      const more = Math.min(filled, total - filled);
      const source = flat.slice(0, 0, more);
      write(flat, filled, filled + more, source);
      source.dispose();
      filled += more;
    }
    flat.dispose();
    return tensor;
  }
}

function write(tensor, start, end, data) {
  const part = tensor.slice(0, start, end);
  part.write(data);
  part.dispose();
}

/** 0 … count - 1 in an order without pattern: pages as an old cache has them. */
function shuffled(count) {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  let state = 12345;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = state % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/**
 * One row, ready to run: `call(i)` enqueues attention on the i-th copy of its keys and values. Decode finds the lengths
 * on the device, where a captured graph would find the next step's; dense prefill is a uniform batch.
 */
class KernelCall {
  constructor(device, noise, row) {
    const { batch, numQHeads, headDim, kvLen, seqLen, window, pageSize, dtype } = row.params;
    this.row = row;
    this.keys = kvLen ?? seqLen;
    const rotate = device.kind === "cuda" && isDecode(row);
    this.copies = rotate ? Math.ceil(ROTATED_BYTES / this.#storedBytes()) : 1;
    const device32 = (values, shape) => device.tensor(Int32Array.from(values), shape);
    const uniform = !isDecode(row) && pageSize === 0;
    const rows = uniform ? [batch, seqLen] : [batch * (isDecode(row) ? 1 : seqLen)];
    const q = noise.tensor([...rows, numQHeads, headDim], dtype);
    const o = device.empty(q.shape, dtype);
    this.options = { o, window };
    this.q = q;
    this.tensors = [q, o];
    if (uniform) this.#uniform(noise);
    else if (pageSize > 0) this.#pages(noise, device32);
    else this.#ragged(noise, device32);
  }

  #storedBytes() {
    const { batch, numKvHeads, headDim } = this.row.params;
    return 2 * batch * this.keys * numKvHeads * headDim * elementBytes(this.row);
  }

  #uniform(noise) {
    const { batch, numKvHeads, headDim, dtype } = this.row.params;
    const shape = [batch, this.keys, numKvHeads, headDim];
    const k = noise.tensor(shape, dtype);
    const v = noise.tensor(shape, dtype);
    this.tensors.push(k, v);
    this.call = () => attention(this.q, k, v, this.options);
  }

  #ragged(noise, device32) {
    const { batch, numKvHeads, headDim, dtype } = this.row.params;
    const total = batch * this.keys;
    const shape = [this.copies * total, numKvHeads, headDim];
    const k = noise.tensor(shape, dtype);
    const v = noise.tensor(shape, dtype);
    const starts = Array.from({ length: batch + 1 }, (_, b) => b * this.keys);
    const cuSeqlensK = device32(starts, [batch + 1]);
    const views = Array.from({ length: this.copies }, (_, i) =>
      [k, v].map((tensor) => tensor.slice(0, i * total, (i + 1) * total)),
    );
    this.tensors.push(k, v, cuSeqlensK, ...views.flat());
    const options = { ...this.options, cuSeqlensK };
    this.call = (i) => {
      const [keys, values] = views[i % this.copies];
      return attention(this.q, keys, values, options);
    };
  }

  #pages(noise, device32) {
    const { batch, numKvHeads, headDim, pageSize, dtype } = this.row.params;
    const width = Math.ceil(this.keys / pageSize);
    const numPages = this.copies * batch * width;
    const pages = noise.tensor([numPages, 2, numKvHeads, pageSize, headDim], dtype);
    const table = device32(shuffled(numPages), [this.copies * batch, width]);
    const kvLens = device32(Array(batch).fill(this.keys), [batch]);
    const tables = Array.from({ length: this.copies }, (_, i) =>
      table.slice(0, i * batch, (i + 1) * batch),
    );
    this.tensors.push(pages, table, kvLens, ...tables);
    this.call = (i) => {
      const kv = { pages, pageTable: tables[i % this.copies], kvLens };
      return attention(this.q, kv, this.options);
    };
  }

  /** A time of garbage is no time: the last row must be finite and not all zero. */
  async check() {
    this.call(0);
    const { o } = this.options;
    const rows = o.reshape([o.size / this.row.params.headDim, this.row.params.headDim]);
    const last = rows.slice(0, rows.shape[0] - 1);
    const values = await last.read();
    for (const view of [rows, last]) view.dispose();
    if (values.every(Number.isFinite) && values.some((value) => value !== 0)) return;
    throw new Error("the output is not finite, or all zero");
  }

  dispose() {
    for (const tensor of this.tensors) tensor.dispose();
  }
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

  async round() {
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

/** What a row reaches, and the time that the machine's limits allow. */
function result(row, impl, us, ceilings) {
  const { suite, params } = row;
  if (isDecode(row)) {
    const bytes = kvBytes(row);
    const floor_us = bytes / ceilings.readGbps / 1e3;
    return { suite, impl, params, us, gbps: bytes / us / 1e3, floor_us };
  }
  const work = flops(row);
  const ceiling = ceilings[params.dtype];
  const floor_us = ceiling === undefined ? null : work / ceiling / 1e6;
  return { suite, impl, params, us, tflops: work / us / 1e6, floor_us };
}

module.exports = { KernelCall, KernelTimer, Noise, median, result, rounds };
