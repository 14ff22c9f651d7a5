// The cache's refusals: each leaves everything as it was.

import { describe, expect, it } from "vitest";
import { bytesPerToken, Device, type KvCache, type Sequence } from "../lib/index";
import { testDevice } from "./support/device";
import { caught, expectError, trapped, type Wrong } from "./support/errors";

const device = await testDevice();
const INVALID = "INVALID_ARGUMENT";

const CONFIG = {
  numLayers: 2,
  numKvHeads: 2,
  headDim: 16,
  dtype: "float32" as const,
  maxTokens: 64,
};
const makeCache = (more: object = {}): KvCache => device.createCache({ ...CONFIG, ...more });
const q = (rows: number) => device.zeros([rows, 4, 16]);
const kv = (rows: number) => device.zeros([rows, 2, 16]);

function grow(cache: KvCache, seq: Sequence, n: number): void {
  const step = cache.plan([[seq, n]]);
  for (let layer = 0; layer < CONFIG.numLayers; layer++) {
    step.attend(layer, q(n), kv(n), kv(n)).dispose();
  }
  step.commit();
  step.dispose();
}

describe("createCache refuses", () => {
  const create = (config: Wrong) => () => device.createCache(config);
  const without = (name: string) => {
    const copy: Record<string, unknown> = { ...CONFIG };
    delete copy[name];
    return copy;
  };

  it.each<[string, () => unknown, string, ...(string | RegExp)[]]>([
    ["nothing", create(undefined), INVALID, "config"],
    ["no numLayers", create(without("numLayers")), INVALID, "numLayers"],
    ["no numKvHeads", create(without("numKvHeads")), INVALID, "numKvHeads"],
    ["no headDim", create(without("headDim")), INVALID, "headDim"],
    ["no size", create(without("maxTokens")), INVALID, "maxTokens", "maxBytes", "memoryFraction"],
    ["two sizes", create({ ...CONFIG, maxBytes: 1e6 }), INVALID, "maxTokens", "maxBytes"],
    ["an unknown option", create({ ...CONFIG, pagesize: 16 }), INVALID, "pagesize", "pageSize"],
    ["0 layers", create({ ...CONFIG, numLayers: 0 }), INVALID, "numLayers"],
    ["NaN layers", create({ ...CONFIG, numLayers: NaN }), INVALID, "numLayers"],
    ["headDim 20", create({ ...CONFIG, headDim: 20 }), "UNSUPPORTED", "head_?[dD]im", "24"],
    ["pageSize 12", create({ ...CONFIG, pageSize: 12 }), INVALID, "pageSize"],
    ["int32", create({ ...CONFIG, dtype: "int32" }), INVALID, "dtype"],
    ["a quantised dtype", create({ ...CONFIG, dtype: "fp8" }), INVALID, "dtype"],
    ["a negative window", create({ ...CONFIG, window: -1 }), INVALID, "window"],
    ["windows for other layers", create({ ...CONFIG, window: [4] }), INVALID, "window"],
    ["a NaN window among them", create({ ...CONFIG, window: [4, NaN] }), INVALID, /window\[1\]/],
    ["maxTokens 0", create({ ...CONFIG, maxTokens: 0 }), INVALID, "maxTokens"],
    ["maxTokens -1", create({ ...CONFIG, maxTokens: -1 }), INVALID, "maxTokens"],
    ["maxTokens Infinity", create({ ...CONFIG, maxTokens: Infinity }), INVALID, "maxTokens"],
    [
      "memoryFraction 2",
      create({ ...without("maxTokens"), memoryFraction: 2 }),
      INVALID,
      "memoryFraction",
    ],
    ["maxBytes of nothing", create({ ...without("maxTokens"), maxBytes: 16 }), INVALID, "maxBytes"],
    ["maxSequences 0", create({ ...CONFIG, maxSequences: 0 }), INVALID, "maxSequences"],
    ["heads that do not divide", create({ ...CONFIG, numQHeads: 3 }), INVALID, "heads"],
    ["sinkLogits without heads", create({ ...CONFIG, sinkLogits: [0, 0] }), INVALID, "numQHeads"],
    [
      "sinkLogits of another length",
      create({ ...CONFIG, numQHeads: 4, sinkLogits: [0, 0] }),
      INVALID,
      "sinkLogits",
    ],
    ["a negative softCap", create({ ...CONFIG, softCap: -1 }), INVALID, "softCap"],
    ["a softCap that overflows", create({ ...CONFIG, softCap: 3e38 }), INVALID, "softCap", "1e.30"],
    ["a NaN smScale", create({ ...CONFIG, smScale: NaN }), INVALID, "smScale"],
    ["a smScale that float32 has not", create({ ...CONFIG, smScale: 1e-50 }), INVALID, "smScale"],
    [
      "rope of another head",
      create({ ...CONFIG, rope: { headDim: 32 } }),
      INVALID,
      "rope",
      "16",
      "32",
    ],
    ["rope that is a number", create({ ...CONFIG, rope: 10_000 }), INVALID, "rope"],
    [
      "more memory than there is",
      create({ ...CONFIG, maxTokens: 2 ** 31 - 1, numLayers: 4096 }),
      "OUT_OF_MEMORY",
      "maxTokens",
      "free",
    ],
  ])("%s", (_, call, code, ...names) => {
    expectError(
      call,
      code,
      ...names.map((name) => (typeof name === "string" ? new RegExp(name) : name)),
    );
  });

  it("and bytesPerToken counts", () => {
    expect(bytesPerToken({ numLayers: 32, numKvHeads: 8, headDim: 128, dtype: "bfloat16" })).toBe(
      131_072,
    );
    expectError(() => bytesPerToken({} as never), INVALID, "bytesPerToken", "numLayers");
  });
});

describe("plan refuses", () => {
  const cache = makeCache();
  const seq = cache.open();
  const plan = (entries: Wrong) => () => cache.plan(entries);
  const foreign = makeCache().open();
  const closed = cache.open();
  closed.close();

  it.each<[string, () => unknown, string, ...string[]]>([
    ["nothing", plan(undefined), INVALID],
    ["no sequences", plan([]), INVALID],
    ["a sequence alone", plan([seq]), INVALID],
    ["no tokens", plan([[seq, 0]]), INVALID],
    ["a negative count", plan([[seq, -1]]), INVALID],
    ["NaN tokens", plan([[seq, NaN]]), INVALID],
    ["something else", plan([[{}, 1]]), INVALID],
    [
      "a sequence twice",
      plan([
        [seq, 1],
        [seq, 1],
      ]),
      INVALID,
      "twice",
    ],
    ["a sequence of another cache", plan([[foreign, 1]]), INVALID, "another cache"],
    ["a closed sequence", plan([[closed, 1]]), "DISPOSED", "closed"],
  ])("%s", (_, call, code, ...names) => {
    expectError(call, code, "plan", ...names);
  });
});

describe("out of pages", () => {
  it("plan throws and tryPlan gives null; everything is as before", () => {
    const cache = makeCache({ pageSize: 16, maxTokens: 64, maxSeqLen: 128 });
    const a = cache.open();
    const b = cache.open();
    grow(cache, a, 30);
    grow(cache, b, 5);
    const before = cache.stats();
    const entries: [Sequence, number][] = [
      [a, 10],
      [b, 30],
    ];
    const error = caught(() => cache.plan(entries));
    expect(error.code).toBe("OUT_OF_PAGES");
    expect(error.message).toMatch(/needed|free/);
    expect(cache.tryPlan(entries)).toBeNull();
    expect(cache.stats()).toEqual(before);
    expect([a.length, b.length]).toEqual([30, 5]);
    b.close();
    grow(cache, a, 34);
    expect(a.length).toBe(64);
    expectError(() => cache.plan([[a, 1]]), "OUT_OF_PAGES", "plan");
    cache.dispose();
  });

  it("next() too, and the step can still be ended", () => {
    const cache = makeCache({ pageSize: 16, maxTokens: 32, maxSeqLen: 64 });
    const a = cache.open();
    const b = cache.open();
    grow(cache, a, 16);
    grow(cache, b, 15);
    const step = cache.plan([[b, 1]]);
    for (let layer = 0; layer < 2; layer++) step.attend(layer, q(1), kv(1), kv(1));
    step.commit();
    expectError(() => step.next(1), "OUT_OF_PAGES", "next");
    step.dispose();
    expect(b.length).toBe(16);
    a.close();
    grow(cache, b, 16);
    cache.dispose();
  });
});

describe("BUSY", () => {
  it("a sequence in an open step cannot be planned, forked, truncated or closed", () => {
    const cache = makeCache();
    const seq = cache.open();
    const other = cache.open();
    grow(cache, seq, 4);
    const step = cache.plan([[seq, 1]]);
    for (const call of [
      () => cache.plan([[seq, 1]]),
      () => cache.tryPlan([[seq, 1]]),
      () => seq.fork(),
      () => seq.truncate(1),
      () => seq.close(),
    ]) {
      expectError(call, "BUSY", `sequence ${seq.id}`);
    }
    // Others are free meanwhile.
    grow(cache, other, 3);
    step.rollback();
    step.dispose();
    seq.truncate(1);
    seq.close();
    expect(seq.closed).toBe(true);
    cache.dispose();
  });

  it("more sequences than maxSequences", () => {
    const cache = makeCache({ maxSequences: 2 });
    const a = cache.open();
    cache.open();
    expectError(() => cache.open(), "BUSY", /^cache\.open: .*maxSequences/);
    expectError(() => a.fork(), "BUSY", /^sequence\.fork: .*maxSequences/);
    a.close();
    cache.open();
    cache.dispose();
  });

  it("plan, next and synchronize inside a capture", () => {
    const cache = makeCache();
    const seq = cache.open();
    expectError(() => device.capture(() => cache.plan([[seq, 1]])), "BUSY", "plan");
    const step = cache.plan([[seq, 1]]);
    expectError(() => device.capture(() => step.next(1)), "BUSY");
    step.dispose();
    cache.dispose();
  });
});

describe("a step refuses", () => {
  const cache = makeCache();
  const seq = cache.open();
  const step = cache.plan([[seq, 3]]);
  const attend =
    (...args: Wrong[]) =>
    () =>
      (step as Wrong).attend(...args);

  it.each<[string, () => unknown, string, ...string[]]>([
    ["layer -1", attend(-1, q(3), kv(3), kv(3)), INVALID, "layer"],
    ["layer 2", attend(2, q(3), kv(3), kv(3)), INVALID, "layer"],
    ["layer NaN", attend(NaN, q(3), kv(3), kv(3)), INVALID, "layer"],
    ["no q", attend(0), INVALID, "q"],
    ["q of another length", attend(0, q(2), kv(3), kv(3)), INVALID, "q"],
    ["k of another length", attend(0, q(3), kv(4), kv(3)), INVALID, "k"],
    ["v of another length", attend(0, q(3), kv(3), kv(2)), INVALID, "v"],
    ["k with other heads", attend(0, q(3), q(3), q(3)), INVALID, "k"],
    [
      "heads that do not divide",
      () => attend(0, device.zeros([3, 3, 16]), kv(3), kv(3))(),
      INVALID,
      "heads",
    ],
    [
      "another dtype",
      () => attend(0, device.zeros([3, 4, 16], "float16"), kv(3), kv(3))(),
      INVALID,
      "dtype",
    ],
    ["o of another shape", () => attend(0, q(3), kv(3), kv(3), { o: q(2) })(), INVALID, "o"],
    [
      "o that is q",
      () => {
        const t = q(3);
        attend(0, t, kv(3), kv(3), { o: t })();
      },
      INVALID,
      "o",
    ],
    ["an unknown option", attend(0, q(3), kv(3), kv(3), { out: 1 }), INVALID, "out"],
  ])("%s", (_, call, code, ...names) => {
    expectError(call, code, "attend", ...names);
  });
});

describe("getters that answer otherwise the second time", () => {
  /** An array whose item `i` runs `first` when it is read for the first time, and is gone after. */
  function fickle<T>(items: T[], i: number, first: () => void = () => {}): Wrong {
    const [item] = items.slice(i);
    let reads = 0;
    const get = () => {
      if (reads++ > 0) return undefined;
      first();
      return item;
    };
    return Object.defineProperty([...items], i, { get });
  }

  it("in a request are asked once", () => {
    const cache = makeCache();
    const seq = cache.open();
    const step = cache.plan([fickle<unknown>([seq, 3], 0)]);
    expect(step.sequences).toEqual([seq]);
    step.rollback();
    expectError(() => cache.plan([fickle<unknown>([seq, 3], 1, () => seq.close())]), "DISPOSED");
    expect(cache.stats().pages.used).toBe(0);
    cache.dispose();
  });

  it("in the options of attend cannot write to pages that have been given back", () => {
    const cache = makeCache();
    const step = cache.plan([[cache.open(), 3]]);
    const options = {
      get o() {
        step.rollback();
        return undefined;
      },
    } as Wrong;
    const attend = () => step.attend(0, q(3), kv(3), kv(3), options);
    expectError(attend, INVALID, "step.attend", "no planned tokens");
    cache.dispose();
  });
});

describe("iterators of the user's own", () => {
  it("are not followed", () => {
    const cache = makeCache({ window: trapped(4, 8) });
    const [a, b] = [cache.open(), cache.open()];
    const step = cache.plan(trapped<[Sequence, number]>([a, 2], [b, 3]));
    expect(step.qLens).toEqual([2, 3]);
    step.rollback();
    step.next(trapped(1, 4));
    expect(step.qLens).toEqual([1, 4]);
    cache.dispose();
  });

  it("nor are holes taken for requests", () => {
    const cache = makeCache();
    expectError(() => cache.plan(new Array(2 ** 32 - 1)), INVALID, "cache.plan", /requests\[0\]/);
    cache.dispose();
  });
});

describe("the order in which things end", () => {
  it("a step ends once; afterwards it refuses", () => {
    const cache = makeCache();
    const seq = cache.open();
    const step = cache.plan([[seq, 1]]);
    step.attend(0, q(1), kv(1), kv(1));
    step.attend(1, q(1), kv(1), kv(1));
    step.commit();
    expect(caught(() => step.commit()).code).toMatch(/INVALID_ARGUMENT|BUSY|DISPOSED/);
    step.dispose();
    step.dispose();
    expect(seq.length).toBe(1);
    expectError(() => step.next(1), "DISPOSED");
    expectError(() => step.attend(0, q(1), kv(1), kv(1)), "DISPOSED");
    cache.dispose();
  });

  it("cache first: sequences and steps are dead at once", () => {
    const cache = makeCache();
    const seq = cache.open();
    const step = cache.plan([[seq, 2]]);
    cache.dispose();
    cache.dispose();
    expectError(() => cache.open(), "DISPOSED");
    expectError(() => cache.plan([[seq, 1]]), "DISPOSED");
    expectError(() => step.attend(0, q(2), kv(2), kv(2)), "DISPOSED");
    step.dispose();
    seq.close();
    expectError(() => seq.fork(), "DISPOSED");
    expectError(() => seq.truncate(0), "DISPOSED");
  });

  it("device first: all of it is dead, and dispose() after it does no harm", async () => {
    const other = await Device.open(device.kind);
    const cache = other.createCache(CONFIG);
    const seq = cache.open();
    const step = cache.plan([[seq, 1]]);
    const table = other.rope({ headDim: 16 });
    other.dispose();
    expectError(() => cache.open(), "DISPOSED");
    step.dispose();
    seq.close();
    cache.dispose();
    table.dispose();
  });

  it("all memory goes back", async () => {
    await device.synchronize();
    const before = device.memory().allocated;
    for (let i = 0; i < 10; i++) {
      const cache = makeCache({ rope: { headDim: 16 } });
      const a = cache.open();
      device.tidy(() => grow(cache, a, 20));
      const b = a.fork();
      device.tidy(() => grow(cache, b, 3));
      if (i % 2) a.close();
      cache.dispose();
    }
    await device.synchronize();
    expect(device.memory().allocated).toBeLessThanOrEqual(before);
  });
});
