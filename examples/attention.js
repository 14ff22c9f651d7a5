// Attention on plain data: 8 query heads share 2 key/value heads, each query sees the last 64 keys.
//   node examples/attention.js

const { Device, attention } = require("flash-gqa");

const tokens = 300;
const [numQHeads, numKvHeads, headDim] = [8, 2, 64];
const noise = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);

async function main() {
  const device = await Device.open();
  const q = device.tensor(noise(tokens * numQHeads * headDim), [tokens, numQHeads, headDim]);
  const k = device.tensor(noise(tokens * numKvHeads * headDim), [tokens, numKvHeads, headDim]);
  const v = device.tensor(noise(tokens * numKvHeads * headDim), [tokens, numKvHeads, headDim]);

  const { o, lse } = attention(q, k, v, { window: 64, lse: true });
  console.log(`on ${device.reason}`);
  console.log("o  ", o.shape, (await o.read()).subarray(0, 4));
  console.log("lse", lse.shape, (await lse.read()).subarray(0, 4));
  device.dispose();
}

main();
