// A step's life on a device: what it refuses, what it sends, whose its outputs are, and graphs of it.

import { afterEach, describe, expect, it, vi } from "vitest";
import type { KvCache, KvCacheConfig, Sequence } from "../lib/index";
import { addon } from "../lib/native";
import { testDevice } from "./support/device";
import { caught, expectError, rejected } from "./support/errors";
import { attendAll, HEAD_DIM, meanCache, rows } from "./support/mean-cache";

const device = await testDevice();
const makeCache = (more: Partial<KvCacheConfig> = {}): KvCache => meanCache(device, more);
function grow(cache: KvCache, sequence: Sequence, tokens: number): void {
  const step = cache.plan([[sequence, tokens]]);
  attendAll(device, step, Array<number>(tokens).fill(1));
  step.commit();
  step.dispose();
}

afterEach(() => vi.restoreAllMocks());

describe("commit", () => {
  it("wants every layer, and names those that are missing", () => {
    const cache = makeCache();
    const step = cache.plan([[cache.open(), 1]]);
    const x = rows(device, [0]);
    step.attend(1, x, x, x);
    expectError(() => step.commit(), "INVALID_ARGUMENT", "commit", "1 of 2 layers", /: 0:/);
    step.attend(0, x, x, x);
    step.attend(0, x, x, x);
    step.commit();
    expectError(() => step.attend(0, x, x, x), "INVALID_ARGUMENT", "attend", "next");
    expectError(() => step.commit(), "INVALID_ARGUMENT", "commit");
    cache.dispose();
  });
});

describe("next", () => {
  it("needs the planned tokens out of the way", () => {
    const cache = makeCache();
    const [a, b] = [cache.open(), cache.open()];
    const step = cache.plan([
      [a, 2],
      [b, 1],
    ]);
    expectError(() => step.next(1), "INVALID_ARGUMENT", "next", "commit or roll back");
    step.rollback();
    step.rollback();
    step.next([1, 3]);
    expect([step.qLens, step.totalQ, step.planned]).toEqual([[1, 3], 4, true]);
    attendAll(device, step, [1, 2, 3, 4]);
    step.commit();
    expect([a.length, b.length]).toEqual([1, 3]);
    for (const bad of [0, -1, 1.5, [1], [1, 1, 1], [1, 0], "1", undefined]) {
      expectError(() => step.next(bad as never), "INVALID_ARGUMENT", "next");
    }
    cache.dispose();
  });

  it("takes the sequences as they are by then: truncated, forked, or refused when closed or busy", () => {
    const cache = makeCache();
    const a = cache.open();
    const step = cache.plan([[a, 5]]);
    attendAll(device, step, [1, 2, 3, 4, 5]);
    step.commit();
    const branch = a.fork();
    a.truncate(3);
    step.next(1);
    attendAll(device, step, [6]);
    step.commit();
    expect([a.length, branch.length]).toEqual([4, 5]);
    const other = cache.plan([[a, 1]]);
    expectError(() => step.next(1), "BUSY", `sequence ${a.id}`);
    other.dispose();
    a.close();
    expectError(() => step.next(1), "DISPOSED", `sequence ${a.id}`);
    cache.dispose();
  });

  it("a getter that ends the step has taken nothing", () => {
    using cache = makeCache();
    const a = cache.open();
    const step = cache.plan([[a, 1]]);
    step.rollback();
    const { used } = cache.stats().pages;
    const counts: number[] = [];
    Object.defineProperty(counts, 0, {
      get: () => {
        step.dispose();
        return 1;
      },
    });
    expectError(() => step.next(counts), "DISPOSED", "step.next");
    expect([cache.stats().pages.used, a.inStep]).toEqual([used, false]);
    a.close();
  });
});

describe("outputs", () => {
  it("die at next or dispose, unless kept or the caller's", () => {
    const cache = makeCache();
    const step = cache.plan([[cache.open(), 1]]);
    const x = rows(device, [1]);
    const mine = device.empty([1, 1, HEAD_DIM]);
    const dies = step.attend(0, x, x, x);
    const kept = step.keep(step.attend(1, x, x, x));
    expect(step.attend(0, x, x, x, { o: mine })).toBe(mine);
    step.commit();
    expect(dies.disposed).toBe(false);
    step.next(1);
    expect([dies.disposed, kept.disposed, mine.disposed]).toEqual([true, false, false]);
    const last = step.attend(0, x, x, x);
    step.dispose();
    expect([last.disposed, kept.disposed]).toEqual([true, false]);
    expectError(() => step.keep(last), "DISPOSED", "keep");
    expectError(() => step.keep(3 as never), "INVALID_ARGUMENT", "keep");
    cache.dispose();
  });

  it("a tidy around it all leaves the cache's own memory alone", async () => {
    const { cache, step } = device.tidy(() => {
      const made = makeCache({
        rope: { headDim: HEAD_DIM },
        numQHeads: 1,
        sinkLogits: [-1e9],
      });
      const planned = made.plan([[made.open(), 2]]);
      attendAll(device, planned, [1, 3]);
      return { cache: made, step: planned };
    });
    step.commit();
    step.next(1);
    const [o] = attendAll(device, step, [8]);
    expect((await o!.read())[0]).toBeCloseTo(4, 5);
    cache.dispose();
  });
});

describe("what travels to the device", () => {
  it("next: the lengths, and a table word where a page begins; whatever the length", () => {
    const cache = makeCache({ maxTokens: 4096 });
    const all = Array.from({ length: 8 }, () => cache.open());
    for (const sequence of all) grow(cache, sequence, 6);
    grow(cache, all[0]!, 400);
    const step = cache.plan(all.map((sequence) => [sequence, 1] as const));
    attendAll(device, step, Array<number>(8).fill(1));
    step.commit();
    const scatter = vi.spyOn(addon, "scatter");
    const upload = vi.spyOn(addon, "upload");
    const allocate = vi.spyOn(addon, "allocate");
    const sent = () => scatter.mock.calls.map((call) => call[4]);
    step.next(1);
    expect(sent()).toEqual([8]);
    step.rollback();
    scatter.mockClear();
    step.next(1);
    expect(sent()).toEqual([]); // the device has it all already
    step.rollback();
    step.next(3); // the seven at 7 begin a page, and so do 407 + 3
    expect(sent()).toEqual([8 + 8, 8]);
    expect([upload.mock.calls.length, allocate.mock.calls.length]).toEqual([0, 0]);
    cache.dispose();
  });

  it("fork: nothing but a copy of the row", () => {
    const cache = makeCache();
    const a = cache.open();
    grow(cache, a, 60);
    const scatter = vi.spyOn(addon, "scatter");
    const copy = vi.spyOn(addon, "copy");
    a.fork();
    expect([scatter.mock.calls.length, copy.mock.calls.length]).toEqual([0, 1]);
    expect(copy.mock.calls[0]![4]).toBe(8 * 4);
    cache.dispose();
  });

  it("a plan that fails on the device undoes itself", () => {
    const cache = makeCache();
    const a = cache.open();
    grow(cache, a, 5);
    const b = a.fork();
    const before = cache.stats();
    for (const name of ["allocate", "upload", "scatter", "copyPages"] as const) {
      const spy = vi.spyOn(addon, name).mockImplementation(() => {
        throw new Error(`no ${name}`);
      });
      expect(() =>
        cache.plan([
          [a, 9],
          [b, 1],
        ]),
      ).toThrow(`no ${name}`);
      spy.mockRestore();
      expect({ ...cache.stats(), highWater: before.highWater }).toEqual(before);
    }
    grow(cache, a, 9);
    grow(cache, b, 1);
    cache.dispose();
  });
});

describe("a captured step", () => {
  function captured(cache: KvCache, lengths: readonly number[]) {
    const sequences = lengths.map(() => cache.open());
    const step = cache.plan(sequences.map((sequence, b) => [sequence, lengths[b]!] as const));
    const total = lengths.reduce((sum, n) => sum + n, 0);
    const v = rows(device, Array<number>(total).fill(1));
    const zero = rows(device, Array<number>(total).fill(0));
    const o = device.empty(v.shape);
    const graph = device.capture(() => {
      step.attend(0, zero, zero, v);
      step.attend(1, zero, zero, v, { o });
    });
    return { sequences, step, graph, v, o };
  }

  it("is attended by a replay, not by the capture", async () => {
    const cache = makeCache({ rope: { headDim: HEAD_DIM } });
    const { sequences, step, graph, v, o } = captured(cache, [1, 1]);
    expectError(() => step.commit(), "INVALID_ARGUMENT", "layers");
    for (let i = 0; i < 20; i++, step.next(1)) {
      v.write(rows(device, [i, 2 * i]));
      graph.replay();
      step.commit();
      const values = await o.read();
      expect(values[0]).toBeCloseTo(i / 2, 4);
      expect(values[HEAD_DIM]).toBeCloseTo(i, 4);
    }
    expect(sequences.map((sequence) => sequence.length)).toEqual([20, 20]);
    step.rollback();
    expectError(() => graph.replay(), "INVALID_ARGUMENT", "no planned tokens");
    step.next([1, 2]);
    expectError(() => graph.replay(), "INVALID_ARGUMENT", /\[1, 1\].*\[1, 2\]/);
    step.dispose();
    expectError(() => graph.replay(), "DISPOSED", "step");
    graph.dispose();
    cache.dispose();
  });

  it("forbids the table to move, and maxSequences is the way out", () => {
    const cache = makeCache();
    const { graph } = captured(cache, [1]);
    const open = Array.from({ length: 15 }, () => cache.open());
    expectError(() => cache.open(), "BUSY", "maxSequences", "graph");
    expectError(() => open[0]!.fork(), "BUSY", "maxSequences");
    expect(cache.stats().sequences).toBe(16);
    graph.dispose();
    cache.open();
    cache.dispose();

    const roomy = makeCache({ maxSequences: 40 });
    captured(roomy, [1]);
    for (let i = 1; i < 40; i++) roomy.open();
    expectError(() => roomy.open(), "BUSY", "maxSequences");
    roomy.dispose();
  });

  it("refuses a row of the table in the name of the verb that wants one", async () => {
    const [pinned, full] = [makeCache(), makeCache({ maxSequences: 16 })];
    const { graph } = captured(pinned, [1]);
    for (const [cache, reason] of [
      [pinned, "graph"],
      [full, "maxSequences"],
    ] as const) {
      const first = cache.open();
      while (cache.stats().sequences < 16) cache.open();
      const saved = await cache.save(first);
      const verbs: Record<string, () => unknown> = {
        "cache.open": () => cache.open(),
        "cache.openAsync": () => cache.openAsync(),
        "cache.load": () => cache.load(saved),
        "sequence.fork": () => first.fork(),
      };
      for (const [operation, verb] of Object.entries(verbs)) {
        const error = await rejected((async () => verb())());
        expect([error.operation, error.code]).toEqual([operation, "BUSY"]);
        expect(error.message).toMatch(reason);
      }
    }
    graph.dispose();
    const verb = () => device.capture(() => pinned.open());
    expectError(verb, "BUSY", /^cache\.open: .*capture/);
    for (const cache of [pinned, full]) cache.dispose();
  });

  it("inside a capture nothing is planned, committed or forked", () => {
    const cache = makeCache();
    const a = cache.open();
    grow(cache, a, 3);
    const b = cache.open();
    const step = cache.plan([[b, 1]]);
    for (const [name, verb] of [
      ["plan", () => cache.plan([[a, 1]])],
      ["fork", () => a.fork()],
      ["commit", () => step.commit()],
      ["createCache", () => makeCache()],
    ] as const) {
      expectError(() => device.capture(verb), "BUSY", name);
    }
    expect(cache.stats()).toMatchObject({ sequences: 2, tokens: 3 });
    a.fork();
    cache.dispose();
  });
});

describe("sizes", () => {
  it("maxBytes and memoryFraction hold what they say", () => {
    const page = 2 * 2 * 8 * HEAD_DIM * 4;
    const cache = makeCache({ maxTokens: undefined, maxBytes: 10 * page + 5 });
    expect([cache.stats().pages.total, cache.layout.poolBytes]).toEqual([9, 10 * page]);
    cache.dispose();
    const part = makeCache({ maxTokens: undefined, memoryFraction: 1e-5 });
    const { free, cached } = device.memory();
    expect(part.layout.poolBytes).toBeLessThanOrEqual(
      1.5e-5 * (free + cached + part.layout.poolBytes),
    );
    part.dispose();
  });

  it("OUT_OF_MEMORY names a maxTokens that fits, and the next page does not", () => {
    const { message } = caught(() => makeCache({ numLayers: 60_000, maxTokens: 2 ** 31 - 1 }));
    expect(message).toMatch(/bytes needed .* free/);
    const most = Number(/largest maxTokens that fits is (\d+)/.exec(message)?.[1]);
    expect(most % 8).toBe(0);
    // Somewhat less, because what is free changes while tests run beside this one.
    expect(() => makeCache({ numLayers: 60_000, maxTokens: 2 * most })).toThrow(
      "largest maxTokens",
    );
  });

  it("maxSeqLen: all of the cache without a window, more with one", () => {
    const plain = makeCache();
    expect([plain.layout.maxSeqLen, plain.layout.maxPages]).toEqual([256, 32]);
    const sequence = plain.open();
    expectError(() => plain.plan([[sequence, 257]]), "INVALID_ARGUMENT", "maxSeqLen 256");
    const windowed = makeCache({ window: [8, 16] });
    expect([windowed.layout.maxSeqLen, windowed.layout.window]).toEqual([131_072, 16]);
    plain.dispose();
    windowed.dispose();
  });
});
