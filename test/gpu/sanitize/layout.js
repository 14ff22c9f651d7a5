// RoPE, the operations that move rows, and conversions.

const { appendKv, attention, mergeStates, repeatKv, rope, sliceWindow } = require("../../../dist");
const { ATOL, DTYPES, expectClose, numbers } = require("./numbers");

/** x [rows, heads, headDim] rotated in its first rotaryDim numbers. */
function rotated(x, heads, headDim, rotaryDim, start, interleaved) {
  const out = Float64Array.from(x);
  const half = rotaryDim / 2;
  for (let head = 0; head < x.length / headDim; head++) {
    const position = start + Math.floor(head / heads);
    for (let i = 0; i < half; i++) {
      const angle = position * 10_000 ** ((-2 * i) / rotaryDim);
      const a = head * headDim + (interleaved ? 2 * i : i);
      const b = head * headDim + (interleaved ? 2 * i + 1 : i + half);
      out[a] = x[a] * Math.cos(angle) - x[b] * Math.sin(angle);
      out[b] = x[b] * Math.cos(angle) + x[a] * Math.sin(angle);
    }
  }
  return out;
}

/** rope(), and appendKv that rotates on the way, which must come to the same. */
async function rotations(device, dtype, interleaved) {
  const [rows, heads, kvHeads, headDim, rotaryDim] = [37, 4, 2, 64, 48];
  const table = device.rope({ headDim, rotaryDim, interleaved });
  const tensor = (count) =>
    device.tensor(numbers(rows * count * headDim), [rows, count, headDim], { dtype });
  const [q, k, v] = [tensor(heads), tensor(kvHeads), tensor(kvHeads)];
  const exact = rotated(await q.read(), heads, headDim, rotaryDim, 3, interleaved);
  const shifted = await rope(q, table, { start: 3 }).read();
  expectClose(shifted, exact, ATOL[dtype], `rope ${dtype}`);

  const kv = {
    pages: device.empty([3, 2, kvHeads, 16, headDim], dtype),
    pageTable: [[2, 0, 1]],
    kvLens: [rows],
  };
  const appended = appendKv(k, v, kv, { q, rope: table });
  const direct = attention(rope(q, table), rope(k, table), v).o;
  const through = attention(appended.q, kv).o;
  expectClose(await through.read(), await direct.read(), ATOL[dtype], `appendKv ${dtype}`);
}

/** Width 64 moves by vectors of 16 bytes; width 3 does not. */
async function moves(device, dtype) {
  const x = numbers(12 * 2 * 64);
  const tensor = device.tensor(x, [12, 2, 64], { dtype });
  const repeated = await repeatKv(tensor, 3).read();
  for (let row = 0; row < 24; row++) {
    for (let copy = 0; copy < 3; copy++) {
      const at = (row * 3 + copy) * 64;
      const from = x.subarray(row * 64, row * 64 + 64);
      expectClose(repeated.subarray(at, at + 64), from, 0, "repeatKv");
    }
  }
  const kept = await sliceWindow(tensor, 4, { sinkTokens: 2 }).read();
  const rows = [...x.subarray(0, 2 * 128), ...x.subarray(8 * 128)];
  expectClose(kept, rows, 0, "sliceWindow");

  const narrow = device.tensor(x, [(12 * 2 * 64) / 6, 6], { dtype }).slice(1, 1, 4);
  const columns = x.filter((_, i) => i % 6 >= 1 && i % 6 < 4);
  expectClose(await narrow.read(), columns, 0, "a view with gaps");
  for (const to of DTYPES) {
    expectClose(await tensor.to(to).read(), x, 0, `${dtype} to ${to}`);
    const odd = device.tensor(x.subarray(0, 7), [7], { dtype }).to(to);
    expectClose(await odd.read(), x.subarray(0, 7), 0, `7 of ${dtype} to ${to}`);
  }

  const q = device.tensor(numbers(2 * 4 * 64), [2, 4, 64], { dtype });
  const whole = attention(q, tensor, tensor, { causal: false, lse: true });
  const parts = [
    [0, 5],
    [5, 12],
  ].map(([from, to]) => {
    const some = tensor.slice(0, from, to);
    return attention(q, some, some, { causal: false, lse: true });
  });
  const merged = mergeStates(parts);
  expectClose(await merged.o.read(), await whole.o.read(), ATOL[dtype], "mergeStates: o");
  expectClose(await merged.lse.read(), await whole.lse.read(), 1e-3, "mergeStates: lse");
}

module.exports = { moves, rotations };
