// What a model runner needs around attention.

const nn = require("../../../dist/nn");
const { ATOL, expectClose, numbers } = require("./numbers");

/** Aligned and odd shapes, with everything that can be added. */
async function products(device, dtype) {
  for (const [rows, inFeatures, outFeatures] of [
    [1, 64, 96],
    [7, 33, 65],
    [70, 136, 80],
  ]) {
    const host = {
      x: numbers(rows * inFeatures),
      w: numbers(outFeatures * inFeatures).map((x) => x / 16),
      bias: numbers(outFeatures),
      residual: numbers(rows * outFeatures),
    };
    const exact = Float64Array.from(host.residual);
    for (let at = 0; at < exact.length; at++) {
      const [row, col] = [Math.floor(at / outFeatures), at % outFeatures];
      exact[at] += host.bias[col];
      for (let i = 0; i < inFeatures; i++) {
        exact[at] += host.x[row * inFeatures + i] * host.w[col * inFeatures + i];
      }
    }
    const x = device.tensor(host.x, [rows, inFeatures], { dtype });
    const w = device.tensor(host.w, [outFeatures, inFeatures], { dtype });
    const bias = device.tensor(host.bias, [outFeatures], { dtype });
    const residual = device.tensor(host.residual, [rows, outFeatures], { dtype });
    const what = `linear ${dtype} ${rows} x ${inFeatures} x ${outFeatures}`;
    const wide = nn.linear(x, w, { bias, residual, outDtype: "float32" });
    expectClose(await wide.read(), exact, ATOL.float32, what);
    const out = nn.linear(x, w, { bias, residual });
    expectClose(await out.read(), exact, ATOL[dtype], what);
    const over = nn.linear(x, w, { bias, residual, out: residual });
    expectClose(await over.read(), await out.read(), 0, `${what}, in place`);
    await nn.linear(x, w).read();
    await gatedProduct(device, dtype, host, [rows, inFeatures, outFeatures]);
  }
}

/** The norm before a product and the gate behind it, against the operations that they are short for. */
async function gatedProduct(device, dtype, host, [rows, inFeatures, outFeatures]) {
  const x = device.tensor(host.x, [rows, inFeatures], { dtype });
  const w = device.tensor(host.w, [outFeatures, inFeatures], { dtype });
  const weight = device.tensor(numbers(inFeatures), [inFeatures], { dtype });
  const what = `norm and gate, linear ${dtype} ${rows} x ${inFeatures} x ${outFeatures}`;
  const normed = nn.rmsNorm(x, weight, 1e-5);
  const product = nn.linear(normed, w);
  const given = nn.linear(x, w, { norm: { weight, eps: 1e-5 } });
  expectClose(await given.read(), await product.read(), 4 * ATOL[dtype], what);
  const even = outFeatures - (outFeatures % 2);
  const some = w.slice(0, 0, even);
  const both = nn.linear(x, some);
  const expected = nn.siluMul(both.slice(1, 0, even / 2), both.slice(1, even / 2));
  const gated = nn.linear(x, some, { gated: true });
  expectClose(await gated.read(), await expected.read(), 4 * ATOL[dtype], what);
}

async function elementwise(device, dtype) {
  const [rows, width] = [5, 72];
  const [a, b] = [numbers(rows * width), numbers(rows * width)];
  const weight = numbers(width);
  const tensor = (x, shape) => device.tensor(x, shape, { dtype });
  const [ta, tb, tw] = [
    tensor(a, [rows, width]),
    tensor(b, [rows, width]),
    tensor(weight, [width]),
  ];
  const atol = 2 * ATOL[dtype];

  const normed = a.map((x, i) => {
    const row = a.subarray(i - (i % width), i - (i % width) + width);
    return (x / Math.sqrt(row.reduce((sum, y) => sum + y * y, 0) / width)) * weight[i % width];
  });
  expectClose(await nn.rmsNorm(ta, tw, 1e-6).read(), normed, atol, "rmsNorm");
  const heads = nn.rmsNorm(ta.reshape([rows, 3, 24]), tw.slice(0, 0, 24), 1e-6);
  if ((await heads.read()).some(Number.isNaN)) throw new Error("rmsNorm of heads: NaN");
  expectClose(
    await nn.add(ta, tb).read(),
    a.map((x, i) => x + b[i]),
    atol,
    "add",
  );
  const gated = a.map((x, i) => (x / (1 + Math.exp(-x))) * b[i]);
  expectClose(await nn.siluMul(ta, tb).read(), gated, atol, "siluMul");

  const picked = [...a.subarray(4 * width), ...a.subarray(0, width)];
  expectClose(await nn.embedding(ta, [4, 0]).read(), picked, 0, "embedding");
  expectClose(await nn.gatherRows(ta, [4, 0]).read(), picked, 0, "gatherRows");
  const odd = tensor(a.subarray(0, 33), [11, 3]);
  expectClose(
    await nn.add(odd, odd).read(),
    a.subarray(0, 33).map((x) => 2 * x),
    atol,
    "odd add",
  );
}

/** A row of 70,001 logits is shared among blocks; rows of 1000 have one each. */
async function choices(device, dtype) {
  for (const [rows, vocab] of [
    [3, 1000],
    [1, 70_001],
  ]) {
    const data = numbers(rows * vocab);
    const best = Array.from({ length: rows }, (_, row) => (row * 337 + 501) % vocab);
    for (const [row, id] of best.entries()) data[row * vocab + id] = 9;
    const logits = device.tensor(data, [rows, vocab], { dtype });
    const top = await nn.topK(logits, 5).ids.read();
    expectClose(
      top.filter((_, i) => i % 5 === 0),
      best,
      0,
      "topK",
    );
    expectClose(await nn.sample(logits, { temperature: 0 }).ids.read(), best, 0, "greedy");
    for (const options of [{}, { topK: 40, topP: 0.9, temperature: 0.7 }]) {
      const { ids, logProbs } = nn.sample(logits, { ...options, seed: 5 });
      const drawn = await ids.read();
      if (drawn.some((id) => id < 0 || id >= vocab)) throw new Error(`sample drew ${drawn}`);
      if ((await logProbs.read()).some((x) => !(x <= 0))) throw new Error("sample: logProbs");
    }
  }
}

module.exports = { choices, elementwise, products };
