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

module.exports = { Noise, normals, shuffled };
