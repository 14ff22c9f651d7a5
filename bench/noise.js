// Values to measure with: the same on every run.

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

/** No multiple of a vector's length: no vector of one tensor is one of another's, but for the 16th after it. */
const SHIFT = 7919;
const SHIFTS = 16;

/**
 * Fills tensors with normal numbers: a block from the host, then doubled on the device. Each begins elsewhere in the
 * block: a key that is one of the queries has a logit of sqrt(head_dim), which no two vectors of noise have.
 */
class Noise {
  #block;
  #elements;
  #device;
  #made = 0;

  constructor(device, elements) {
    this.#device = device;
    this.#elements = elements;
    this.#block = normals(elements + SHIFT * SHIFTS);
  }

  tensor(shape, dtype) {
    const tensor = this.#device.empty(shape, dtype);
    // One axis holds fewer elements than the largest tensors have.
    const width = tensor.size < 2 ** 31 ? 1 : shape.at(-1);
    const total = tensor.size / width;
    const flat = tensor.reshape([total, width]);
    const start = SHIFT * (this.#made++ % SHIFTS);
    let filled = Math.min(Math.floor(this.#elements / width), total);
    write(flat, 0, filled, this.#block.subarray(start, start + filled * width));
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

module.exports = { Noise, normals, shuffled };
