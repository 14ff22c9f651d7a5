// What goes wrong around a cache: memory runs out, processes and threads end with work in flight. Each leaves the
// sequences as they were, or the process in order.

import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { Worker } from "node:worker_threads";
import { describe, expect, it, vi } from "vitest";
import { HostMemory } from "../lib/cache/host-memory";
import { addon } from "../lib/native";
import { deviceName, testDevice } from "./support/device";
import { caught, rejected } from "./support/errors";
import { fill, mean, meanCache, range } from "./support/mean-cache";

const device = await testDevice();
const built = join(__dirname, "..", "dist", "index.js");
const run = promisify(execFile);

/** A cache at work in a process or thread of its own: a step in flight, and moves and saves beside it. */
const AT_WORK = `
  const { Device } = require(${JSON.stringify(built)});
  const { PassThrough } = require("node:stream");
  const start = async () => {
    const device = await Device.open(${JSON.stringify(deviceName)});
    const cache = device.createCache({
      numLayers: 2, numKvHeads: 8, headDim: 128, maxTokens: 16384, hostBytes: 256 << 20,
    });
    const [q, kv] = [32, 8].map((heads) => device.zeros([1024, heads, 128], "bfloat16"));
    const grow = (seq) => {
      const step = cache.plan([[seq, 1024]]);
      for (const layer of [0, 1]) step.attend(layer, q, kv, kv);
      return step;
    };
    const [a, b, c, d] = Array.from({ length: 4 }, () => cache.open());
    for (const seq of [a, b, c]) grow(seq).commit();
    await cache.offload(b);
    const step = grow(d);
    const sink = new PassThrough();
    sink.resume();
    const pending = [
      cache.offload(a), cache.restore(b), cache.save(c, { stream: sink }), step.attend(0, q, kv, kv).read(),
    ];
    for (const promise of pending) promise.catch(() => {});
    return { device, cache, step, pending };
  };
`;

/**
 * As if the device had less memory than `bytes` free. Really to take it all would be felt by every other process on the
 * device; that the back ends answer so is tested in lifecycle.test.ts.
 */
function withoutMemory<T>(bytes: number, act: () => T): T {
  const { allocate } = addon;
  const full = vi.spyOn(addon, "allocate").mockImplementation((id, size) => {
    if (size < bytes) return allocate(id, size);
    const message = `needed ${size} bytes, free ${bytes} bytes`;
    throw Object.assign(new Error(message), { code: "OUT_OF_MEMORY" });
  });
  try {
    return act();
  } finally {
    full.mockRestore();
  }
}

describe("memory that runs out", () => {
  it("on the device, for a cache: what is needed, what is free, what would fit", () => {
    const tooLarge = Math.ceil((2 * device.memory().total) / 128);
    const refused = caught(() =>
      meanCache(device, { maxTokens: tooLarge, maxSeqLen: 1024, maxSequences: 4 }),
    );
    expect(refused.code).toBe("OUT_OF_MEMORY");
    expect(refused.message).toMatch(
      /\d+ bytes needed for \d+ tokens, \d+ free: the largest maxTokens that fits is \d+/,
    );
  });

  it("on the device, in mid-step: the step is rolled back and the sequence goes on", async () => {
    using cache = meanCache(device, { maxTokens: 8192 });
    const [seq, twin] = [cache.open(), cache.open()];
    for (const one of [seq, twin]) fill(device, cache, one, range(21));
    const want = await mean(device, cache, twin);
    const before = cache.stats();
    const q = device.zeros([300, 64, 8]);
    const kv = device.zeros([300, 1, 8]);
    const step = cache.plan([[seq, 300]]);
    const error = withoutMemory(q.byteLength, () => caught(() => step.attend(0, q, kv, kv)));
    expect([error.code, error.operation]).toEqual(["OUT_OF_MEMORY", "step.attend"]);
    expect(() => step.commit()).toThrow("2 of 2 layers have no keys");
    step.attend(0, q, kv, kv);
    expect(() => step.commit()).toThrow("1 of 2 layers have no keys");
    step.dispose();
    const planned = withoutMemory(0, () => caught(() => cache.plan([[seq, 300]])));
    expect([planned.code, planned.operation]).toEqual(["OUT_OF_MEMORY", "cache.plan"]);
    for (const tensor of [q, kv]) tensor.dispose();
    const { highWater: _, ...same } = before;
    expect(cache.stats()).toMatchObject(same);
    expect(await mean(device, cache, seq)).toEqual(want);
  });

  it("on the host: the sequence stays where it is", async () => {
    const { chunkBytes } = HostMemory;
    HostMemory.chunkBytes = 2 ** 44; // one chunk, which no machine has
    try {
      using cache = meanCache(device, { hostBytes: 2 ** 40 });
      const seq = cache.open();
      fill(device, cache, seq, range(21));
      const before = cache.stats();
      const error = await rejected(cache.offload(seq));
      expect([error.code, error.message]).toEqual([
        "OUT_OF_MEMORY",
        expect.stringMatching(/^cache\.offload: the host has not got \d+ bytes .*hostBytes/),
      ]);
      expect(cache.stats()).toEqual(before);
      expect((await mean(device, cache, seq))[0]).toBeCloseTo(210 / 22, 3);
    } finally {
      HostMemory.chunkBytes = chunkBytes;
    }
  });
});

describe("a process with a cache at work", () => {
  it.each([
    ["exits at once", "process.exit(0);"],
    ["exits without waiting for anything", ""],
    ["exits with everything alive", "globalThis.kept = all; await Promise.all(all.pending);"],
    ["exits with the cache disposed under its work", "all.cache.dispose();"],
    ["exits with the device disposed under its work", "all.device.dispose();"],
    ["exits when all is done", "await Promise.all(all.pending); all.device.dispose();"],
  ])("%s: code 0, nothing on stderr", async (_, end) => {
    const script = `${AT_WORK} start().then(async (all) => { ${end} });`;
    const { stderr } = await run(process.execPath, ["-e", script]);
    expect(stderr).toBe("");
  });
});

describe("a worker with a cache at work", () => {
  it("can be terminated in mid-step, again and again", async () => {
    for (let i = 0; i < 6; i++) {
      const worker = new Worker(
        `${AT_WORK}
        const { parentPort } = require("node:worker_threads");
        start().then((all) => {
          globalThis.kept = all;
          parentPort.postMessage("at work");
          setInterval(() => {}, 1000);
        });`,
        { eval: true },
      );
      await new Promise((resolve, reject) => {
        worker.on("message", resolve);
        worker.on("error", reject);
      });
      await worker.terminate();
    }
    // This thread's device is untouched by it.
    expect(await device.tensor([3], [1]).read()).toEqual(Float32Array.of(3));
  });
});
