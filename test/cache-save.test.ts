// One sequence as bytes, and back: the same bits, and every damage refused with nothing half loaded.

import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { Device, type KvCache, type KvCacheConfig, type Sequence } from "../lib/index";
import { append, cacheTools } from "./support/cache";
import { testDevice } from "./support/device";
import { rejected, type Wrong } from "./support/errors";
import { fill as fillOn, HEAD_DIM, meanCache, mean as meanOn, range } from "./support/mean-cache";

const device = await testDevice();
const { makeCache, tokens } = cacheTools(device);

const fill = (cache: KvCache, seq: Sequence, ids: readonly number[]) =>
  fillOn(device, cache, seq, ids, seq.prefixLen === 0);
const mean = (cache: KvCache, seq: Sequence, on: Device = device) => meanOn(on, cache, seq);

async function saved(more: Partial<KvCacheConfig> = {}, length = 21): Promise<Buffer> {
  using cache = meanCache(device, more);
  const seq = cache.open();
  fill(cache, seq, range(length, 3));
  return await cache.save(seq); // before the cache ends
}

describe("save and load", () => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    it(`goes on with the same bits, ${dtype}`, async () => {
      using first = makeCache({ dtype, rope: { headDim: 32, theta: 10_000 } });
      using second = makeCache({ dtype, rope: { headDim: 32, theta: 10_000 }, maxTokens: 400 });
      const t = tokens(70, 2, dtype);
      const seq = first.open();
      await append(first, seq, t, 53);
      const bytes = await first.save(seq);
      const want = await append(first, seq, t, 70);
      second.open(); // another id, other pages
      await append(second, second.open(), t, 20);
      const back = await second.load(bytes);
      expect(back.length).toBe(53);
      expect(await append(second, back, t, 70)).toEqual(want);
    });
  }

  it("takes only what is held with a window, and goes on as before", async () => {
    const shape = { window: [9, 12], sinkTokens: 3, rollbackTokens: 4 };
    using cache = meanCache(device, shape);
    const seq = cache.open();
    fill(cache, seq, range(100));
    const bytes = await cache.save(seq);
    expect(bytes.length).toBeLessThan((await saved({}, 100)).length);
    const { used } = cache.stats().pages;
    const back = await cache.load(bytes);
    expect(cache.stats().pages.used).toBe(2 * used);
    expect(await mean(cache, back)).toEqual(await mean(cache, seq));
    expect(() => back.truncate(60)).toThrow("smallest legal length");
    back.truncate(96);
    seq.truncate(96);
    fill(cache, back, range(30));
    fill(cache, seq, range(30));
    expect(await mean(cache, back)).toEqual(await mean(cache, seq));
  });

  it("brings the text along, under the salt of whoever loads it", async () => {
    const bytes = await saved();
    using cache = meanCache(device);
    const back = await cache.load(bytes, { salt: "b", priority: 2 });
    expect([back.told, cache.match(range(30, 3)), cache.match(range(30, 3), "b")]).toEqual([
      21, 0, 16,
    ]);
    back.close();
    expect(cache.stats().pages).toMatchObject({ used: 0, cached: 2 });
  });

  it("loads empty sequences, and prefixes", async () => {
    using cache = meanCache(device);
    const empty = await cache.load(await cache.save(cache.open()));
    expect([empty.length, empty.closed]).toEqual([0, false]);
    const prefix = cache.open({ prefixLen: 5 });
    fill(cache, prefix, range(9));
    const back = await cache.load(await cache.save(prefix));
    expect([back.length, back.prefixLen, back.told]).toEqual([9, 5, 0]);
    expect(await mean(cache, back)).toEqual(await mean(cache, prefix));
  });

  it("holds nothing of what the last page held before", async () => {
    using cache = meanCache(device, { maxTokens: 8 });
    const secret = cache.open();
    fill(cache, secret, range(8, 4000));
    secret.close();
    cache.evict();
    const seq = cache.open();
    fill(cache, seq, [1]);
    const bytes = await cache.save(seq);
    const end = bytes.byteOffset + bytes.length - 32; // the checksum
    const words = new Float32Array(bytes.buffer.slice(end - 8 * HEAD_DIM * 4, end));
    expect(Math.max(...words)).toBeLessThan(2);
    expect(words[0]).toBe(1);
  });

  it("moves from one device to another, of any kind", async () => {
    const cpu = await Device.open("cpu");
    const bytes = await saved();
    using here = meanCache(device);
    using there = meanCache(cpu);
    const [a, b] = [await here.load(bytes), await there.load(bytes)];
    const [want, got] = [await mean(here, a), await mean(there, b, cpu)];
    for (const [i, value] of want.entries()) expect(got[i]).toBeCloseTo(value, 5);
    expect((await there.save(b)).equals(bytes)).toBe(true);
    cpu.dispose();
  });

  it("leaves the sequence BUSY while it is saved, and others alone", async () => {
    using cache = meanCache(device);
    const [seq, other] = [cache.open(), cache.open()];
    fill(cache, seq, range(20));
    const pending = cache.save(seq);
    expect(() => seq.truncate(0)).toThrow("being saved");
    expect(() => seq.close()).toThrow("being saved");
    expect((await rejected(cache.save(seq))).code).toBe("BUSY");
    fill(cache, other, range(9));
    await pending;
    seq.truncate(0);
  });
});

describe("what is refused", () => {
  it("what another cache or model saved, by name", async () => {
    const bytes = await saved({ rope: { headDim: HEAD_DIM, theta: 10_000 } });
    const refused = async (more: Partial<KvCacheConfig>, options: Wrong, reason: string) => {
      using cache = meanCache(device, { rope: { headDim: HEAD_DIM, theta: 10_000 }, ...more });
      const error = await rejected(cache.load(bytes, options));
      expect([error.code, error.message]).toEqual([
        "CORRUPT_DATA",
        expect.stringContaining(reason),
      ]);
      expect(cache.stats()).toMatchObject({ sequences: 0, pages: { used: 0 } });
    };
    await refused({ numLayers: 3 }, {}, "numLayers 2, and this cache has 3");
    await refused({ dtype: "float16" }, {}, 'dtype "float32", and this cache has "float16"');
    await refused({ window: 8 }, {}, 'windows "0,0"');
    await refused({ rope: { headDim: HEAD_DIM, theta: 500_000 } }, {}, "saved with rope");
    await refused({}, { model: "b" }, 'model "", and this cache has "b"');
  });

  it("what does not fit, and what is no data", async () => {
    const bytes = await saved({}, 60);
    using small = meanCache(device, { maxTokens: 32, maxSeqLen: 64 });
    const short = await rejected(small.load(bytes));
    expect([short.code, short.message]).toEqual([
      "OUT_OF_PAGES",
      expect.stringContaining("8 pages needed, 4 free and 0 evictable of 4"),
    ]);
    using narrow = meanCache(device, { maxSeqLen: 32 });
    expect((await rejected(narrow.load(bytes))).message).toContain("maxSeqLen 32");
    expect([small.stats().sequences, narrow.stats().sequences]).toEqual([0, 0]);
    for (const wrong of ["no such file", undefined, [1], new Uint16Array(99)] as Wrong[]) {
      expect((await rejected(small.load(wrong))).code).toBe("INVALID_ARGUMENT");
    }
    const code = "INVALID_ARGUMENT";
    expect((await rejected(small.load(bytes, { model: 3 } as Wrong))).code).toBe(code);
    expect((await rejected(small.load(bytes, { priority: 9 }))).code).toBe(code);
    expect((await rejected(small.save({} as Wrong))).message).toContain("cache.open()");
    const closed = small.open();
    closed.close();
    expect((await rejected(small.save(closed))).code).toBe("DISPOSED");
  });

  it("a header that was written by something else, though its checksum is right", async () => {
    const bytes = await saved({}, 3);
    using cache = meanCache(device);
    const forged = async (from: string, to: string) => {
      const copy = Buffer.from(bytes);
      copy.write(to, copy.indexOf(from), "latin1");
      const header = copy.subarray(48, 48 + copy.readUInt32LE(12));
      createHash("sha256").update(copy.subarray(0, 16)).update(header).digest().copy(copy, 16);
      const error = await rejected(cache.load(copy));
      expect(error.code).toBe("CORRUPT_DATA");
      return error.message;
    };
    expect(await forged('"firstLive":0', '"firstLive":1')).toContain("contradicts itself");
    expect(await forged('"length":3', '"length":2')).toContain("contradicts itself");
    expect(await forged('"length":3', '"length":9')).toContain("pages are not those");
    expect(await forged('"length":3', '"length":[')).toContain("cannot be read");
    expect(await forged('"tokens":3', '"tokens":9')).toContain("contradicts itself");
    expect(await forged('"pageBytes":1', '"pageBytes":2')).toContain("pages are not those");
    expect(await forged('"tokens":3', '"tokens":-')).toContain("cannot be read");
    expect(await forged('{"fingerprint"', '{"fingerprinT"')).toContain("cannot be read");
    expect(cache.stats()).toMatchObject({ sequences: 0, pages: { used: 0 } });
  });

  it("a cache that ends meanwhile", async () => {
    const bytes = await saved();
    const cache = meanCache(device);
    const seq = cache.open();
    fill(cache, seq, range(20));
    const pending = [cache.save(seq), cache.load(bytes)];
    cache.dispose();
    const errors = await Promise.all(pending.map(rejected));
    expect(errors.map(({ code }) => code)).toEqual(["DISPOSED", "DISPOSED"]);
  });
});
