// Sequences that go to host memory and come back: the same bits, and whatever goes wrong leaves everything as it was.

import { afterAll, describe, expect, it } from "vitest";
import { HostMemory } from "../lib/cache/host-memory";
import { Device, type KvCache, type KvCacheConfig, type Sequence } from "../lib/index";
import { addon, movePages } from "../lib/native";
import { append, cacheTools } from "./support/cache";
import { testDevice } from "./support/device";
import { expectError, rejected, type Wrong } from "./support/errors";
import { attendAll, fill as fillOn, meanCache, mean as meanOn, range } from "./support/mean-cache";

const device = await testDevice();
const { makeCache, tokens } = cacheTools(device);

// Small chunks: a sequence of a few pages lies in several.
const { chunkBytes } = HostMemory;
HostMemory.chunkBytes = 4 << 10;
afterAll(() => {
  HostMemory.chunkBytes = chunkBytes;
});

const PAGE = 1024; // of meanCache, in both layers
const hosted = (more: Partial<KvCacheConfig> = {}) =>
  meanCache(device, { hostBytes: 64 * PAGE, ...more });

const fill = (cache: KvCache, seq: Sequence, ids: readonly number[], tell = true) =>
  fillOn(device, cache, seq, ids, tell);
const mean = (cache: KvCache, seq: Sequence) => meanOn(device, cache, seq);

describe("offload and restore", () => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    it(`go on with the same bits, ${dtype}, while other sequences take the pages`, async () => {
      const shape = { dtype, rope: { headDim: 32, theta: 10_000 }, maxTokens: 80 };
      using cache = makeCache({ ...shape, hostBytes: 8 << 20 });
      using reference = makeCache(shape);
      const t = tokens(70, 2, dtype);
      const [seq, same] = [cache.open(), reference.open()];
      await append(cache, seq, t, 53);
      await append(reference, same, t, 53);
      await cache.offload(seq);
      expect([seq.offloaded, seq.length]).toEqual([true, 53]);
      const other = cache.open();
      await append(cache, other, tokens(70, 9, dtype), 70);
      other.close();
      await cache.restore(seq);
      expect(seq.offloaded).toBe(false);
      expect(await append(cache, seq, t, 70)).toEqual(await append(reference, same, t, 70));
    });
  }

  it("give the room back, and count what lies where", async () => {
    using cache = hosted({ maxTokens: 80 });
    const seq = cache.open();
    fill(cache, seq, range(78), false);
    expect(cache.tryPlan([[cache.open(), 20]])).toBeNull();
    const events: unknown[] = [];
    for (const name of ["offload", "restore"] as const) {
      cache.on(name, ({ sequence, pages }) => events.push([name, sequence.id, pages]));
    }
    expect(await cache.offload(seq)).toBe(10);
    expect(cache.stats()).toMatchObject({
      pages: { used: 0, cached: 0, free: 10 },
      bytes: { used: 0, host: { total: 64 * PAGE, held: 12 * PAGE, used: 10 * PAGE } },
      tokens: 78,
      sequences: 2,
      offloaded: 1,
    });
    expect(cache.inspect()).toContain("sequence 0: 78 tokens, offloaded, 10 pages on the host");
    expect(cache.inspect()).toContain("on the host: 10 of 64 pages");
    const other = cache.open();
    fill(cache, other, range(20, 500));
    other.close();
    expect(await cache.restore(seq)).toBe(10);
    const want = (77 * 78) / 2 / 79;
    expect(await mean(cache, seq)).toEqual([want, want].map((n) => expect.closeTo(n, 3)));
    const { pages, bytes } = cache.stats();
    expect([pages.used, bytes.host.used, bytes.host.held]).toEqual([10, 0, 12 * PAGE]);
    await new Promise(setImmediate);
    expect(events).toEqual([
      ["offload", 0, 10],
      ["restore", 0, 10],
    ]);
  });

  it("take with a window what is held, and keep the text, the sinks and rollbackTokens", async () => {
    const shape = { window: [9, 12], sinkTokens: 3, rollbackTokens: 4 };
    using cache = hosted(shape);
    const [seq, twin] = [cache.open(), cache.open()];
    for (const one of [seq, twin]) fill(cache, one, range(100), one === seq);
    const { used } = cache.stats().pages;
    expect(2 * (await cache.offload(seq))).toBe(used);
    cache.evict();
    await cache.restore(seq);
    expect([seq.told, cache.stats().pages.used]).toEqual([100, used]);
    expect(await mean(cache, seq)).toEqual(await mean(cache, twin));
    expect(() => seq.truncate(60)).toThrow("smallest legal length");
    for (const one of [seq, twin]) {
      one.truncate(96);
      fill(cache, one, range(30));
    }
    expect(await mean(cache, seq)).toEqual(await mean(cache, twin));
  });

  it("leave shared pages where others hold them, and find what is cached again", async () => {
    using cache = hosted();
    const trunk = cache.open();
    fill(cache, trunk, range(21));
    const branch = trunk.fork();
    const want = await mean(cache, trunk);
    expect(await cache.offload(trunk)).toBe(3);
    expect(cache.stats().pages).toMatchObject({ used: 3, shared: 0 });
    expect(await mean(cache, branch)).toEqual(want);
    // The two full pages have keys: they are shared again, and the third is copied.
    expect(await cache.restore(trunk)).toBe(1);
    expect(cache.stats().pages).toMatchObject({ used: 4, shared: 2 });
    branch.close();
    await cache.offload(trunk);
    expect(cache.stats().pages).toMatchObject({ used: 0, cached: 2 });
    cache.evict();
    expect(await cache.restore(trunk)).toBe(3);
    expect(await mean(cache, trunk)).toEqual(want);
    // And named again: another prompt finds them.
    expect(cache.match(range(30))).toBe(16);
  });

  it("leave pinned pages on the device, and take empty sequences and prefixes", async () => {
    using cache = hosted();
    const pinned = cache.open();
    fill(cache, pinned, range(16));
    pinned.pin();
    expect(await cache.offload(pinned)).toBe(2);
    expect(cache.evict()).toBe(0);
    expect(() => pinned.pin()).toThrow("cache.restore(sequence)");
    expect(await cache.restore(pinned)).toBe(0);
    pinned.unpin();
    const [empty, prefix] = [cache.open(), cache.open({ prefixLen: 5 })];
    expect([await cache.offload(empty), await cache.restore(empty)]).toEqual([0, 0]);
    fill(cache, prefix, range(9), false);
    const want = await mean(cache, prefix);
    await cache.offload(prefix);
    await cache.restore(prefix);
    expect(await mean(cache, prefix)).toEqual(want);
  });

  it("run side by side, and beside steps of other sequences", async () => {
    using cache = hosted();
    const all = range(6).map(() => cache.open());
    for (const [i, seq] of all.entries()) fill(cache, seq, range(20, 100 * i), false);
    await Promise.all(all.slice(0, 4).map((seq) => cache.offload(seq)));
    const moves = [
      cache.restore(all[0]!),
      cache.offload(all[4]!),
      cache.restore(all[1]!),
      cache.restore(all[2]!),
    ];
    fill(cache, all[5]!, range(9, 520), false);
    await Promise.all(moves);
    for (const i of [0, 1, 2, 5]) {
      const length = i === 5 ? 29 : 20;
      const value = (length * (100 * i) + (length * (length - 1)) / 2) / (length + 1);
      expect((await mean(cache, all[i]!))[0]).toBeCloseTo(value, 3);
    }
  });

  it("tells tokens while it is away", async () => {
    using cache = hosted();
    const seq = cache.open();
    fill(cache, seq, range(20), false);
    await cache.offload(seq);
    seq.tell(0, range(20));
    expect(cache.match(range(30))).toBe(0);
    await cache.restore(seq);
    expect(cache.match(range(30))).toBe(16);
  });
});

describe("what is refused leaves everything as it was", () => {
  it("an offload beyond hostBytes, and any where there are none", async () => {
    using cache = hosted({ hostBytes: 2 * PAGE + 1000 });
    const seq = cache.open();
    fill(cache, seq, range(20));
    const before = cache.stats();
    const error = await rejected(cache.offload(seq));
    expect([error.code, error.message]).toEqual([
      "OUT_OF_MEMORY",
      expect.stringContaining("3 pages, and the host has room for 2 of 2"),
    ]);
    expect(cache.stats()).toEqual(before);
    fill(cache, seq, [1]);
    using none = meanCache(device);
    const other = none.open();
    fill(none, other, [1]);
    const refused = await rejected(none.offload(other));
    expect([refused.code, refused.message]).toEqual([
      "OUT_OF_MEMORY",
      expect.stringContaining("createCache({ hostBytes })"),
    ]);
  });

  it("a restore that finds too few pages", async () => {
    using cache = hosted({ maxTokens: 48 });
    const [seq, other] = [cache.open(), cache.open()];
    fill(cache, seq, range(33));
    await cache.offload(seq);
    fill(cache, other, range(30, 99));
    const before = cache.stats();
    const error = await rejected(cache.restore(seq));
    expect([error.code, error.message]).toEqual([
      "OUT_OF_PAGES",
      // Two of its four full pages are cached yet, and no room for the other three.
      expect.stringContaining("3 pages needed, 0 free and 0 evictable of 6"),
    ]);
    expect(cache.stats()).toEqual(before);
    other.close();
    await cache.restore(seq);
    expect((await mean(cache, seq))[0]).toBeCloseTo((33 * 16) / 34, 3);
  });

  it("an abort, before, in the middle and at the last moment", async () => {
    using cache = hosted();
    const seq = cache.open();
    fill(cache, seq, range(60));
    const verbs = [(s?: AbortSignal) => cache.offload(seq, { signal: s })];
    verbs.push((s) => cache.restore(seq, { signal: s }));
    for (const verb of verbs) {
      cache.evict();
      const before = cache.stats();
      expect((await rejected(verb(AbortSignal.abort()))).code).toBe("ABORTED");
      for (const turns of [0, 1]) {
        const controller = new AbortController();
        const moved = verb(controller.signal);
        expect(() => seq.close()).toThrow("being saved, offloaded or restored");
        for (let i = 0; i < turns; i++) await Promise.resolve();
        controller.abort(new Error("mine"));
        const error = await rejected(moved);
        expect([error.code, (error.cause as Error).message]).toEqual(["ABORTED", "mine"]);
        const { bytes, ...after } = cache.stats();
        const { bytes: bytesBefore, ...rest } = before;
        expect(after).toEqual(rest);
        expect(bytes.host.used).toBe(bytesBefore.host.used);
      }
      await verb();
    }
    expect((await mean(cache, seq))[0]).toBeCloseTo((60 * 29.5) / 61, 3);
  });

  it("verbs of a sequence that is away, by name", async () => {
    using cache = hosted();
    const seq = cache.open();
    fill(cache, seq, range(20));
    expect((await rejected(cache.restore(seq))).message).toContain("is not offloaded");
    await cache.offload(seq);
    for (const verb of [
      () => cache.plan([[seq, 1]]),
      () => seq.fork(),
      () => seq.truncate(3),
      () => seq.pin(),
    ]) {
      expect(verb).toThrow(
        "is offloaded: its pages lie on the host: await cache.restore(sequence)",
      );
    }
    expect((await rejected(cache.save(seq))).code).toBe("INVALID_ARGUMENT");
    expect((await rejected(cache.offload(seq))).code).toBe("INVALID_ARGUMENT");
    seq.close();
    expect(cache.stats()).toMatchObject({ sequences: 0, bytes: { host: { used: 0 } } });
    expect((await rejected(cache.restore(seq))).code).toBe("DISPOSED");
  });

  it("a step that goes on when its sequence has left meanwhile", async () => {
    using cache = hosted();
    const seq = cache.open();
    using step = cache.plan([[seq, 3]]);
    expect((await rejected(cache.offload(seq))).code).toBe("BUSY");
    attendAll(device, step, [1, 2, 3]);
    step.commit();
    await cache.offload(seq);
    expect(() => step.next(1)).toThrow("is offloaded");
    await cache.restore(seq);
    step.next(1);
    step.rollback();
  });

  it("wrong arguments, and a capture", async () => {
    using cache = hosted();
    const seq = cache.open();
    const wrong = async (promise: Promise<unknown>, text: string) => {
      const error = await rejected(promise);
      expect([error.code, error.message]).toEqual([
        "INVALID_ARGUMENT",
        expect.stringContaining(text),
      ]);
    };
    await wrong(cache.offload({} as Wrong), "cache.open()");
    await wrong(cache.restore(null as Wrong), "cache.open()");
    await wrong(cache.offload(seq, { signal: 3 } as Wrong), "signal expected an AbortSignal");
    await wrong(cache.offload(seq, { timeout: 3 } as Wrong), 'no "timeout"');
    using other = hosted();
    await wrong(other.offload(seq), "another cache");
    for (const bytes of [-1, 1.5, Number.NaN, "1"] as Wrong[]) {
      expect(() => hosted({ hostBytes: bytes })).toThrow("hostBytes expected");
    }
    let refused: Promise<unknown> = Promise.resolve();
    const capture = () => {
      refused = rejected(cache.offload(seq));
    };
    device.capture(capture).dispose();
    expect(await refused).toMatchObject({ code: "BUSY" });
  });
});

describe("the addon", () => {
  it("refuses what no cache asks for: other memory, other sizes, runs that reach outside", () => {
    const pool = addon.allocate(device.handle, 2 * 4 * 64).id;
    const host = addon.allocateHost(device.handle, 2 * 3 * 64).id;
    const shape = { pageBytes: 64, numLayers: 2, numPages: 4, hostPages: 3, toHost: true };
    const move =
      (runs: number[], more: Partial<Parameters<typeof movePages>[1]> = {}) =>
      () =>
        movePages(device.handle, {
          ...shape,
          pool: { id: pool, offset: 0 },
          host: { id: host, offset: 0 },
          runs: Int32Array.from(runs),
          ...more,
        });
    const refused: [() => unknown, string][] = [
      [move([3, 0, 2]), "behind the pool"],
      [move([0, 2, 2]), "behind the host memory"],
      [move([-1, 0, 1]), "below 0"],
      [move([0, 0, -1]), "below 0"],
      [move([2 ** 31 - 1, 0, 1]), "behind the pool"],
      [move([0, 0, 1], { hostPages: 4 }), "host needs 512 bytes, its buffer has 384"],
      [move([0, 0, 1], { numPages: 5 }), "pool needs 640 bytes"],
      [move([0, 0, 1], { pool: { id: host, offset: 0 } }), "pool is host memory"],
      [move([0, 0, 1], { host: { id: pool, offset: 0 } }), "host is device memory"],
      [move([0, 0, 1], { host: { id: host, offset: 8 } }), "host needs 384 bytes"],
      [move([0, 0, 1], { host: { id: 2 ** 50, offset: 0 } }), "host is disposed"],
      [() => addon.read(host, 0, 0, 0, 4), "it is host memory"],
      [() => addon.fill(host, 0, 0, 4), "it is host memory"],
    ];
    for (const [call, text] of refused) {
      expectError(call, text.includes("disposed") ? "DISPOSED" : "INVALID_ARGUMENT", text);
    }
    addon.free(pool);
    addon.free(host);
  });
});

describe("what ends meanwhile", () => {
  it("a cache, and a device: DISPOSED, and nothing is left behind", async () => {
    await device.synchronize();
    const before = addon.liveBuffers();
    for (const end of ["cache", "device"]) {
      const here = await Device.open(device.kind);
      const cache = meanCache(here, { hostBytes: 64 * PAGE });
      const [away, stays] = [cache.open(), cache.open()];
      for (const seq of [away, stays]) {
        using step = cache.plan([[seq, 40]]);
        for (const o of attendAll(here, step, range(40))) o.dispose();
        step.commit();
      }
      await cache.offload(away);
      const pending = [cache.restore(away), cache.offload(stays)];
      if (end === "cache") cache.dispose();
      else here.dispose();
      const codes = (await Promise.all(pending.map(rejected))).map(({ code }) => code);
      expect(codes).toEqual(["DISPOSED", "DISPOSED"]);
      cache.dispose();
      here.dispose();
    }
    expect(addon.liveBuffers()).toBeLessThanOrEqual(before);
  });
});
