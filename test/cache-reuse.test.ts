// Prefix reuse on a device: what is shared gives the same bits as what is computed, and what the cache tells of it.

import { describe, expect, it, vi } from "vitest";
import type { KvCache, Sequence } from "../lib/index";
import { cacheTools } from "./support/cache";
import { testDevice } from "./support/device";
import { caught, expectError, rejected, type Wrong } from "./support/errors";
import { attendAll, meanCache } from "./support/mean-cache";
import type { Tokens } from "./support/tokens";

const device = await testDevice();
const { makeCache, tokens } = cacheTools(device);

const range = (length: number, first = 0) => Array.from({ length }, (_, i) => first + i);

/** Computes a sequence's tokens from its length to `ids`' end, and tells them. */
async function compute(cache: KvCache, seq: Sequence, t: Tokens, ids: readonly number[]) {
  const start = seq.length;
  using step = cache.plan([[seq, ids.length - start]]);
  const bits = step.attend(0, ...t.qkv(start, ids.length)).readBits();
  step.commit({ tokens: [ids.slice(start)] });
  return bits;
}

/** The same with numbers that do not matter. */
function fill(cache: KvCache, seq: Sequence, ids: readonly number[]): void {
  using step = cache.plan([[seq, ids.length - seq.length]]);
  attendAll(device, step, ids.slice(seq.length));
  step.commit({ tokens: [ids.slice(seq.length)] });
}

describe("prefix reuse", () => {
  it("gives the bits that computing gives", async () => {
    using cache = makeCache({ pageSize: 16, fixedSplits: 64 });
    const t = tokens(80, 1);
    const ids = range(80);
    const cold = cache.open({ tokens: ids });
    expect(cold.length).toBe(0);
    await compute(cache, cold, t, ids.slice(0, 64));
    const want = await compute(cache, cold, t, ids);
    const warm = cache.open({ tokens: ids });
    expect(warm.length).toBe(64);
    expect(cache.stats()).toMatchObject({
      pages: { used: 5, shared: 4, cached: 0 },
      hits: 4,
      misses: 4,
    });
    const got = await compute(cache, warm, t, ids);
    expect(got).toEqual(want);
    cold.close();
    warm.close();
    expect(cache.stats().pages).toMatchObject({ used: 0, cached: 5, shared: 0 });
    const later = cache.open({ tokens: Int32Array.from([...ids.slice(0, 48), 7, 7]) });
    expect(later.length).toBe(48);
  });

  it("finds what generation wrote, and tenants apart", () => {
    using cache = meanCache(device);
    const prompt = range(10);
    const a = cache.open({ tokens: prompt, salt: "a" });
    using step = cache.plan([[a, 10]]);
    attendAll(device, step, prompt);
    step.commit();
    for (let i = 10; i < 24; i++) {
      step.next(1);
      attendAll(device, step, [i]);
      step.commit({ tokens: [[i]] });
    }
    expect(cache.match(range(30), "a")).toBe(24);
    expect(cache.match(range(30), "b")).toBe(0);
    expect(cache.match(range(30))).toBe(0);
    expect(cache.stats()).toMatchObject({ hits: 0, misses: 1 });
  });

  it("shares all full pages under one salt and none under two, however a sequence came to be", async () => {
    using cache = meanCache(device, { maxTokens: 512, hostBytes: 1 << 20 });
    const prompt = range(30);
    const tell = (salt: string) => {
      const seq = cache.open({ tokens: prompt, salt });
      using step = cache.plan([[seq, 30 - seq.length]]);
      attendAll(device, step, prompt.slice(seq.length));
      step.commit();
      return seq;
    };
    const pagesOf = (seq: Sequence) => new Set(seq.pages.entries);
    const common = (one: Sequence, other: Sequence) =>
      [...pagesOf(one)].filter((page) => pagesOf(other).has(page)).length;
    const [a, b, alsoA] = [tell("a"), tell("b"), tell("a")];
    expect([common(a, alsoA), common(a, b)]).toEqual([3, 0]);
    const loaded = await cache.load(await cache.save(a), { salt: "b" });
    expect([common(loaded, a), common(loaded, b)]).toEqual([0, 0]);
    await cache.offload(b);
    expect(await cache.restore(b)).toBe(1); // b's own three full pages were kept for it
    await cache.offload(alsoA);
    await cache.restore(alsoA);
    expect([common(b, a), common(b, alsoA), common(a, alsoA)]).toEqual([0, 0, 3]);
    expect([cache.match(prompt, "a"), cache.match(prompt, "b"), cache.match(prompt)]).toEqual([
      24, 24, 0,
    ]);
  });

  it("takes prompts of any length without holding the loop", async () => {
    const ids = range(8 * 1025 + 1);
    using cache = meanCache(device, { maxTokens: 2 * ids.length });
    expectError(() => cache.open({ tokens: ids }), "INVALID_ARGUMENT", "cache.openAsync");
    expectError(() => cache.match(ids), "INVALID_ARGUMENT", "cache.matchAsync");
    using cold = await cache.openAsync({ tokens: ids });
    expect(cold.length).toBe(0);
    fill(cache, cold, ids);
    expect(await cache.matchAsync(ids)).toBe(8 * 1025);
    using warm = await cache.openAsync({ tokens: ids });
    expect(warm.length).toBe(8 * 1025);
    const pending = cache.matchAsync(ids);
    cache.dispose();
    expect((await rejected(pending)).code).toBe("DISPOSED");
  });

  it("refuses what it cannot take", () => {
    using cache = meanCache(device, { maxSeqLen: 64 });
    const code = "INVALID_ARGUMENT";
    const open = (options: Wrong) => () => cache.open(options);
    expectError(open({ tokens: "text" }), code, "cache.open", "tokens expected an Int32Array");
    expectError(open({ tokens: [1, -1] }), code, /tokens\[1\]/);
    expectError(open({ tokens: range(65) }), code, "maxSeqLen 64");
    expectError(open({ tokens: [1], prefixLen: 1 }), code, "prefixLen 1");
    expectError(open({ salt: 3 }), code, "salt expected a string");
    expectError(open({ priority: 8 }), code, /priority.*\[0, 7\]/);
    expectError(open({ token: [1] }), code, 'did you mean "tokens"');
    expectError(() => cache.match(undefined as Wrong), code, "cache.match", "tokens");
    expectError(() => cache.evict(-1), code, "cache.evict", "count");
    expect(cache.stats()).toMatchObject({ sequences: 0, hits: 0, misses: 0 });
  });

  it("refuses tokens at commit that are not the planned ones, and changes nothing", () => {
    using cache = meanCache(device);
    const [a, b] = [cache.open({ tokens: [1, 2, 3] }), cache.open({ prefixLen: 2 })];
    using step = cache.plan([
      [a, 2],
      [b, 2],
    ]);
    attendAll(device, step, [1, 2, 3, 4]);
    const commit = (given: Wrong) => () => step.commit({ tokens: given });
    const code = "INVALID_ARGUMENT";
    expectError(commit([[1, 2]]), code, "array of 2");
    expectError(commit([[1], null]), code, /tokens\[0\] expected 2 values/);
    expectError(commit([[1, 7], null]), code, /tokens\[0\]\[1\] expected 2.*position 1, got 7/);
    expectError(commit([null, [3, 4]]), code, /tokens\[1\].*prefixLen 2/);
    expectError(() => step.commit({ token: [] } as Wrong), code, "did you mean");
    const ends: Wrong[] = [];
    Object.defineProperty(ends, 0, { get: () => step.rollback(), enumerable: true });
    ends.length = 2;
    expectError(commit(ends), code, "ended the plan");
    expect([a.length, b.length, step.planned]).toEqual([0, 0, false]);
    step.next(2);
    attendAll(device, step, [1, 2, 3, 4]);
    step.commit({ tokens: [[1, 2], null] });
    expect([a.length, b.length]).toEqual([2, 2]);
  });
});

describe("tell", () => {
  it("names pages a step later, in the middle of the next one", () => {
    using cache = meanCache(device, { window: 9 });
    const a = cache.open();
    using step = cache.plan([[a, 20]]);
    attendAll(device, step, range(20));
    step.commit();
    step.next(1);
    expect([a.told, cache.match(range(17))]).toEqual([0, 0]);
    a.tell(0, range(12));
    a.tell(a.told, range(8, 12));
    expect([a.told, cache.match(range(17))]).toEqual([20, 16]);
    expect(cache.match(range(9))).toBe(0); // left the window untold
    const code = "INVALID_ARGUMENT";
    expectError(() => a.tell(19, [1]), code, "sequence.tell", "start expected 20");
    expectError(() => a.tell(20, [1]), code, "tokens end at 21, and 20 are committed");
    expectError(() => a.tell(20, "x" as Wrong), code, "tokens expected");
    const prefix = cache.open({ prefixLen: 3 });
    expectError(() => prefix.tell(0, []), code, "prefixLen 3");
    prefix.close();
    expectError(() => prefix.tell(0, []), "DISPOSED", "sequence.tell");
  });
});

describe("eviction and pins", () => {
  it("makes room for plans, and OUT_OF_PAGES counts what it could", () => {
    using cache = meanCache(device, { maxTokens: 64 });
    const a = cache.open();
    fill(cache, a, range(24));
    a.close();
    const pinned = cache.open({ tokens: range(9) });
    pinned.pin();
    pinned.close();
    expect(cache.stats().pages).toMatchObject({ used: 1, cached: 2, free: 5, pinned: 1 });
    const b = cache.open();
    const before = cache.stats();
    expect(cache.tryPlan([[b, 64]])).toBeNull();
    const error = caught(() => cache.plan([[b, 64]]));
    expect([error.code, error.message]).toEqual([
      "OUT_OF_PAGES",
      expect.stringContaining("8 pages needed, 5 free and 2 evictable of 8"),
    ]);
    expect(cache.stats()).toEqual(before);
    fill(cache, b, range(56, 100));
    expect(cache.stats()).toMatchObject({ pages: { used: 8, cached: 0, free: 0 }, evictions: 2 });
    expect(cache.match(range(9))).toBe(8);
    b.close();
    expect(cache.evict(3)).toBe(3);
    pinned.unpin();
    expect(cache.evict()).toBe(5);
    expectError(() => pinned.pin(), "DISPOSED", "sequence.pin");
  });
});

describe("events", () => {
  it("tell of hits, misses, evictions and closings, when all is done", async () => {
    const cache = meanCache(device, { maxTokens: 32 });
    const heard: unknown[] = [];
    cache.on("hit", ({ sequence, pages, tokens }) =>
      heard.push(["hit", sequence.id, pages, tokens]),
    );
    cache.on("miss", ({ sequence, pages }) => heard.push(["miss", sequence.id, pages]));
    cache.on("evict", ({ pages }) => heard.push(["evict", pages]));
    cache.on("close", ({ sequence }) => heard.push(["close", sequence.id]));
    const a = cache.open({ tokens: range(20) });
    fill(cache, a, range(20));
    a.close();
    const b = cache.open({ tokens: range(30) });
    expect(heard).toEqual([]);
    fill(cache, b, range(30));
    b.close();
    const c = cache.open();
    fill(cache, c, range(16, 50));
    cache.dispose();
    await new Promise(setImmediate);
    expect(heard).toEqual([
      ["miss", 0, 2],
      ["close", 0],
      ["hit", 1, 2, 16],
      ["miss", 1, 1],
      ["close", 1],
      ["evict", 1],
      ["close", 2],
    ]);
  });

  it("a listener that throws breaks nothing off", () => {
    const ticks: (() => void)[] = [];
    const spy = vi
      .spyOn(process, "nextTick")
      .mockImplementation((tick) => void ticks.push(tick as never));
    try {
      using cache = meanCache(device);
      cache.on("close", () => {
        throw new Error("mine");
      });
      const a = cache.open();
      a.close();
      expect([a.closed, cache.stats().sequences]).toEqual([true, 0]);
      expect(ticks).toHaveLength(1);
      expect(ticks[0]).toThrow("mine");
      fill(cache, cache.open(), range(9));
    } finally {
      spy.mockRestore();
    }
  });
});

describe("inspect", () => {
  it("draws each page once", () => {
    using cache = meanCache(device, { maxTokens: 80 * 8 });
    const a = cache.open({ tokens: range(20) });
    fill(cache, a, range(20));
    const b = a.fork();
    const z = cache.open();
    fill(cache, z, range(8, 50));
    z.close();
    const p = cache.open();
    fill(cache, p, range(8, 90));
    p.pin();
    expect(cache.inspect()).toBe(
      [
        "pages 1 to 80: 4 used (3 shared, 1 pinned), 1 cached, 75 free; one cell is 1 page",
        `       1  222oP${".".repeat(59)}`,
        `      65  ${".".repeat(16)}`,
        ". free  o cached  1-9 owners  + more  P pinned",
        "sequence 0: 20 tokens, pages 1 2 3 (3)",
        `sequence ${b.id}: 20 tokens, pages 1 2 3 (3)`,
        `sequence ${p.id}: 8 tokens, pages 5 (1), pinned`,
      ].join("\n"),
    );
  });

  it("stays small for a large pool", () => {
    using cache = meanCache(device, { maxTokens: 8 * 5000, pageSize: 8 });
    const a = cache.open();
    fill(cache, a, range(8 * 11));
    const lines = cache.inspect().split("\n");
    expect(lines[0]).toContain("one cell is 5 pages");
    expect(lines.slice(1, 17).join("").replaceAll(/[^1.]/g, "")).toContain("111.");
    expect(lines.length).toBeLessThan(25);
    expect(lines.at(-1)).toBe("sequence 0: 88 tokens, pages 1 2 3 4 5 6 … 11 (11)");
  });
});
