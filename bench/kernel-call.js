// One attention call of a row, with its tensors.

const { attention } = require("flash-gqa");
const { isDecode, keysSeen, kvBytes } = require("./cases");
const { shuffled } = require("./noise");

/** More than the L2 of any GPU so far: consecutive calls must not find their keys there. */
const ROTATED_BYTES = 300e6;

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
    this.copies = rotate ? Math.ceil(ROTATED_BYTES / kvBytes(row)) : 1;
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
    // Copies of one windowed sequence may overlap where no window looks.
    const apart = batch === 1 ? keysSeen(this.row) : total;
    const shape = [total + (this.copies - 1) * apart, numKvHeads, headDim];
    const k = noise.tensor(shape, dtype);
    const v = noise.tensor(shape, dtype);
    const starts = Array.from({ length: batch + 1 }, (_, b) => b * this.keys);
    const cuSeqlensK = device32(starts, [batch + 1]);
    const views = Array.from({ length: this.copies }, (_, i) =>
      [k, v].map((tensor) => tensor.slice(0, i * apart, i * apart + total)),
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

module.exports = { KernelCall };
