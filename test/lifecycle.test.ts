// Nothing leaks, nothing blocks the event loop, and no way to end a process or a thread takes it down.

import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { attention, Device, type GqaError } from "../lib/index";
import { addon } from "../lib/native";
import { deviceName, testDevice } from "./support/device";
import { rejected } from "./support/errors";

const device = await testDevice();
const built = join(__dirname, "..", "dist", "index.js");
const run = promisify(execFile);

/** Work that takes a while, so that something is in flight when the end comes. */
const BUSY = `
  const { Device, attention } = require(${JSON.stringify(built)});
  const start = async () => {
    const device = await Device.open(${JSON.stringify(deviceName)});
    const q = device.zeros([1024, 16, 128]);
    const kv = device.zeros([1024, 4, 128]);
    const work = () => {
      const { o } = attention(q, kv, kv);
      const reads = [o.read(), device.synchronize(), o.readBits()];
      o.dispose();
      for (const read of reads) read.catch(() => {});
      return reads;
    };
    return { device, q, kv, work };
  };
`;

describe("memory", () => {
  it("is flat over 1,000 cycles of everything", async () => {
    const cycle = () =>
      device.tidy(() => {
        const q = device.tensor(new Float32Array(2 * 4 * 16), [2, 4, 16]);
        const kv = device.zeros([3, 2, 16]);
        attention(q, kv, kv, {
          lse: true,
          cuSeqlensQ: Int32Array.of(0, 2),
          cuSeqlensK: Int32Array.of(0, 3),
        });
        const cache = device.createCache({
          numLayers: 1,
          numKvHeads: 2,
          headDim: 16,
          dtype: "float32",
          maxTokens: 32,
          rope: { headDim: 16 },
        });
        const seq = cache.open();
        const step = cache.plan([[seq, 2]]);
        step.attend(0, q, kv.slice(0, 0, 2), kv.slice(0, 0, 2));
        step.commit();
        seq.fork();
        cache.dispose();
        const graph = device.capture(() => q.write(q.clone()));
        graph.replay();
        graph.dispose();
      });
    for (let i = 0; i < 20; i++) cycle();
    await device.synchronize();
    const before = { buffers: addon.liveBuffers(), bytes: device.memory().allocated };
    const external = process.memoryUsage().external;
    for (let i = 0; i < 1000; i++) {
      cycle();
      if (i % 100 === 0) await device.synchronize();
    }
    await device.synchronize();
    // Less is possible: the garbage collector takes what earlier tests left behind.
    expect(addon.liveBuffers()).toBeLessThanOrEqual(before.buffers);
    expect(device.memory().allocated).toBeLessThanOrEqual(before.bytes);
    expect(process.memoryUsage().external - external).toBeLessThan(8 << 20);
  });

  it("of devices that come and go goes with them", async () => {
    const before = addon.liveBuffers();
    for (let i = 0; i < 20; i++) {
      const other = await Device.open(device.kind);
      other.zeros([1024]);
      const pending = other.zeros([16]).read();
      other.dispose();
      await pending.catch(() => {});
    }
    expect(addon.liveBuffers()).toBeLessThanOrEqual(before);
  });

  it("of attention grows by the tile, not by the square of the length", async () => {
    const [length, heads] = [4096, 4];
    const q = device.zeros([length, heads, 64]);
    const kv = device.zeros([length, 1, 64]);
    await device.synchronize();
    const before = device.memory();
    let peak = 0;
    const { o } = attention(q, kv, kv, { window: 256 });
    peak = Math.max(peak, device.memory().allocated - before.allocated);
    await o.read();
    const after = device.memory();
    peak = Math.max(peak, after.allocated + after.cached - before.allocated - before.cached);
    // o itself, and what the kernel needs besides; the square would be 268 MB.
    expect(peak).toBeLessThanOrEqual(o.byteLength + (16 << 20));
    o.dispose();
  });
});

describe("the event loop", () => {
  it("turns while a big operation runs", async () => {
    const q = device.zeros([2048, 16, 128]);
    const kv = device.zeros([2048, 4, 128]);
    const events: string[] = [];
    let turns = 0;
    let done = false;
    const turn = () => {
      if (turns++ === 0) events.push("turn");
      if (!done) setImmediate(turn);
    };
    setImmediate(turn);
    const { o } = attention(q, kv, kv);
    events.push("enqueued");
    await o.read();
    done = true;
    events.push("read");
    expect(events).toEqual(["enqueued", "turn", "read"]);
    expect(turns).toBeGreaterThan(1);
    for (const tensor of [q, kv, o]) tensor.dispose();
  });

  it("gets reads in the order of the queue", async () => {
    const t = device.zeros([1]);
    const order: number[] = [];
    const reads = Array.from({ length: 50 }, (_, i) => {
      t.write([i]);
      return t.read().then((value) => order.push(value[0]!));
    });
    await Promise.all(reads);
    expect(order).toEqual(Array.from({ length: 50 }, (_, i) => i));
  });

  it("is let go when nothing is under way", async () => {
    const { stdout } = await run(process.execPath, [
      "-e",
      `${BUSY}
      start().then(async ({ work }) => { await Promise.all(work()); console.log("done"); });
    `,
    ]);
    expect(stdout).toBe("done\n");
  });
});

describe("a failed wait", () => {
  it("leaves no promise pending and the device in order", async () => {
    const bad = attention(
      device.zeros([1, 1, 16]),
      {
        pages: device.zeros([1, 2, 1, 8, 16]),
        pageTable: device.tensor(Int32Array.of(77), [1, 1]),
        kvLens: device.tensor(Int32Array.of(3), [1]),
      },
      {},
    );
    const waits = [bad.o.read(), device.synchronize(), bad.o.readBits()];
    const outcomes = await Promise.allSettled(waits);
    const failed = outcomes.filter((outcome) => outcome.status === "rejected");
    expect(failed.length).toBeGreaterThanOrEqual(1);
    for (const { reason } of failed) expect((reason as GqaError).code).toBe("INVALID_ARGUMENT");
    await device.synchronize();
  });
});

describe("processes", () => {
  it.each([
    ["process.exit with work in flight", "work(); process.exit(0);"],
    ["exit without waiting for anything", "work();"],
    ["exit with a device disposed under its work", "work(); device.dispose();"],
    [
      "exit with everything alive",
      "globalThis.kept = { device, q, kv }; await Promise.all(work());",
    ],
    ["exit inside a capture", "device.capture(() => process.exit(0));"],
  ])("%s: code 0, nothing on stderr", async (_, end) => {
    const script = `${BUSY} start().then(async ({ device, q, kv, work }) => { work(); ${end} });`;
    const { stderr } = await run(process.execPath, ["-e", script]);
    expect(stderr).toBe("");
  });

  it("an uncaught error of the user's ends the process as ever", async () => {
    const script = `${BUSY} start().then(({ work }) => { work(); setTimeout(() => { throw new Error("mine"); }); });`;
    const failure = await run(process.execPath, ["-e", script]).catch((error) => error);
    expect(failure.code).toBe(1);
    expect(failure.stderr).toContain("mine");
  });

  it("garbage collection frees what nobody disposed", async () => {
    const script = `${BUSY} start().then(async ({ device, q, kv }) => {
      await device.synchronize();
      const before = device.memory().allocated;
      for (let i = 0; i < 200; i++) device.zeros([1 << 18]);
      for (let i = 0; i < 20; i++) { global.gc(); await new Promise((r) => setImmediate(r)); }
      await device.synchronize();
      if (device.memory().allocated - before > 4 << 20) throw new Error("leaked " + (device.memory().allocated - before));
    });`;
    await run(process.execPath, ["--expose-gc", "-e", script]);
  });
});

describe("a forgotten step", () => {
  it("is rolled back when it is collected, and one that is held is not", async () => {
    const script = `${BUSY} start().then(async ({ device }) => {
      const cache = device.createCache({ numLayers: 1, numKvHeads: 1, headDim: 8, maxTokens: 64 });
      const [forgotten, held] = [cache.open(), cache.open()];
      const step = cache.plan([[held, 20]]);
      (() => { cache.plan([[forgotten, 20]]); })();
      const used = [cache.stats().pages.used];
      for (let i = 0; i < 20; i++) { global.gc(); await new Promise((r) => setImmediate(r)); }
      used.push(cache.stats().pages.used);
      cache.plan([[forgotten, 1]]).dispose();
      forgotten.close();
      try { held.close(); } catch (error) { used.push(error.code); }
      step.dispose();
      used.push(cache.stats().pages.used);
      console.log(used.join());
    });`;
    const { stdout } = await run(process.execPath, ["--expose-gc", "-e", script]);
    expect(stdout.trim()).toBe("4,2,BUSY,0");
  });
});

describe("worker threads", () => {
  const inWorker = (body: string) =>
    new Worker(`${BUSY} const { parentPort } = require("node:worker_threads"); ${body}`, {
      eval: true,
    });
  const exit = (worker: Worker) =>
    new Promise<number>((resolve, reject) => {
      worker.on("exit", resolve);
      worker.on("error", reject);
    });

  it("have devices of their own, and end by themselves", async () => {
    const workers = [1, 2].map((n) =>
      inWorker(`start().then(async ({ device, work }) => {
        await Promise.all(work());
        const x = await device.tensor([${n}], [1]).read();
        parentPort.postMessage(x[0]);
      });`),
    );
    const messages = workers.map((w) => new Promise((resolve) => w.on("message", resolve)));
    expect(await Promise.all(workers.map(exit))).toEqual([0, 0]);
    expect(await Promise.all(messages)).toEqual([1, 2]);
  });

  it("can be terminated with work in flight, again and again", async () => {
    for (let i = 0; i < 8; i++) {
      const worker = inWorker(`start().then(({ work }) => {
        for (let i = 0; i < 20; i++) work();
        parentPort.postMessage("started");
        setInterval(work, 1);
      });`);
      await new Promise((resolve) => worker.on("message", resolve));
      await worker.terminate();
    }
    // This thread's device is untouched by it.
    expect(await device.tensor([3], [1]).read()).toEqual(Float32Array.of(3));
  });

  it("can be terminated at once", async () => {
    for (let i = 0; i < 5; i++) {
      const worker = inWorker("start().then(({ work }) => work());");
      await worker.terminate();
    }
  });

  it("cannot pass tensors to each other", async () => {
    const worker = inWorker("parentPort.on('message', () => {});");
    const t = device.zeros([1]);
    try {
      // A clone has no handle in it: no operation takes it for a tensor.
      const clone = structuredClone({ ...t });
      expect(() => attention(clone as never, t, t)).toThrow(/tensor/);
    } catch (error) {
      expect((error as Error).name).toBe("DataCloneError");
    }
    await worker.terminate();
  });
});

describe("a process with little address space", () => {
  // AddressSanitizer reserves terabytes of it.
  const sanitized = process.env.LD_PRELOAD?.includes("asan") ?? false;
  it.skipIf(sanitized)("is told that a read is too large, and lives on", async () => {
    const script = `
      const { Device } = require(${JSON.stringify(built)});
      Device.open("cpu")
        .then((device) => device.empty([2 ** 30 - 1]).read())
        .catch((error) => console.log(error.code));
    `;
    // Room for the tensor and not for a copy of it. V8 would end the process instead of throwing.
    const limited = 'ulimit -v 8000000; exec "$0" -e "$1"';
    const { stdout } = await run("sh", ["-c", limited, process.execPath, script]);
    expect(stdout.trim()).toBe("OUT_OF_MEMORY");
  });
});

describe("a disposed device", () => {
  it("rejects what is enqueued after it and leaves the rest of the process alone", async () => {
    const other = await Device.open(device.kind);
    const t = other.zeros([4]);
    other.dispose();
    other.dispose();
    expect((await rejected(t.read())).code).toBe("DISPOSED");
    expect(await device.zeros([2]).read()).toEqual(Float32Array.of(0, 0));
  });
});
