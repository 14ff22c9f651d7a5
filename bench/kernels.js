// Kernel rows: ours, what it is held against, and the peers take turns, round by round, because clocks move with heat.
// The product that is a prefill's ceiling comes behind them all: nothing else makes the device as hot, and whoever
// had its turn next would pay for that. (The next row is prepared, and not timed at first, behind it.)

const { kernelRows, plainRow } = require("./cases");
const { KernelCall } = require("./kernel-call");
const { KernelTimer, median, result, rounds, takeTurns } = require("./measure");

/** PyTorch's SDPA has neither window nor pages, and the peers run on the GPU only. */
const peersTake = ({ params }) => params.window === 0 && params.pageSize === 0;

async function timed(device, noise, row, seconds) {
  const call = new KernelCall(device, noise, row);
  const timer = new KernelTimer(device, call);
  await call.check();
  await timer.prepare(seconds);
  return { call, timer };
}

/** What the peers can measure of a row: themselves, and of a prefill the product that is its ceiling. */
async function askPeers(peers, row, { call, timer }, seconds) {
  const { params } = row;
  const { impls, failed } = await peers.ask({
    do: "prepare",
    params,
    attention: peersTake(row),
    product: params.seqLen !== undefined,
    copies: call.copies,
    calls: timer.calls,
    seconds,
  });
  for (const [impl, reason] of Object.entries(failed)) console.error(`${impl}: ${reason}`);
  return impls;
}

/** For each row the results of all who ran it. */
async function* kernelResults(device, suite, noise, peers, ceilings, args) {
  const { count, seconds } = rounds(args.quick);
  for (const row of kernelRows(suite, device.kind, args.quick).slice(0, args.rows)) {
    const own = { "flash-gqa": await timed(device, noise, row, seconds) };
    const plain = plainRow(row);
    if (plain !== null) own["flash-gqa-plain"] = await timed(device, noise, plain, seconds);
    const others = peers === null ? [] : await askPeers(peers, row, own["flash-gqa"], seconds);
    const times = new Map([...Object.keys(own), ...others].map((impl) => [impl, []]));
    await takeTurns([...times.keys()], "product", count, async (impl) =>
      times.get(impl).push(await (own[impl]?.timer.round() ?? peers.measure(impl))),
    );
    if (peers !== null) await peers.ask({ do: "release" });
    for (const { call, timer } of Object.values(own)) {
      timer.dispose();
      call.dispose();
    }
    const product = times.has("product")
      ? (2 * 8192 ** 3) / median(times.get("product")) / 1e6
      : ceilings[row.params.dtype];
    times.delete("product");
    yield Array.from(times, ([impl, taken]) =>
      result(row, impl, median(taken), ceilings.readGbps, product),
    );
  }
}

module.exports = { kernelResults };
