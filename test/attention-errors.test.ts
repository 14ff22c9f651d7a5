// Wrong arguments of attention(): each gives a GqaError with the right code that names the operation and the argument.

import { describe, expect, it } from "vitest";
import { attention, Device, type GqaError } from "../lib/index";
import { testDevice } from "./support/device";
import { expectError, type Wrong } from "./support/errors";

const device = await testDevice();

const Q = [4, 4, 64];
const KV = [8, 2, 64];
const q = () => device.zeros(Q);
const kv = () => device.zeros(KV);
const ints = (...x: number[]) => Int32Array.from(x);

const call =
  (...args: Wrong[]) =>
  () =>
    (attention as Wrong)(...args);
const withOptions = (options: unknown) => () => call(q(), kv(), kv(), options)();

/** Two sequences of 5 and 3 tokens on pages of 4. */
const pages = () => device.zeros([6, 2, 2, 4, 64]);
const paged =
  (source: Record<string, unknown>, options: Record<string, unknown> = {}) =>
  () =>
    call(
      device.zeros([2, 4, 64]),
      { pages: pages(), pageTable: table(0, 1, 2, -1), kvLens: ints(5, 3), ...source },
      { cuSeqlensQ: ints(0, 1, 2), ...options },
    )();
const table = (...x: number[]) => device.tensor(ints(...x), [2, x.length / 2]);

type Row = [string, () => unknown, GqaError["code"], ...(string | RegExp)[]];
const INVALID = "INVALID_ARGUMENT";

const tensors: Row[] = [
  ["no arguments", call(), INVALID, "q"],
  ["q is no tensor", call({}, kv(), kv()), INVALID, "q"],
  ["q is null", call(null, kv(), kv()), INVALID, "q"],
  ["k is a typed array", call(q(), new Float32Array(4), kv()), INVALID, "k"],
  ["no v", call(q(), kv()), INVALID, "v"],
  ["q of two axes", () => call(device.zeros([4, 64]), kv(), kv())(), INVALID, "q"],
  ["q of int32", () => call(device.zeros(Q, "int32"), kv(), kv())(), INVALID, "q", "dtype"],
  [
    "k of another dtype",
    () => call(q(), device.zeros(KV, "float16"), kv())(),
    INVALID,
    "k",
    "dtype",
  ],
  [
    "v of another dtype",
    () => call(q(), kv(), device.zeros(KV, "bfloat16"))(),
    INVALID,
    "v",
    "dtype",
  ],
  ["v shorter than k", () => call(q(), kv(), device.zeros([7, 2, 64]))(), INVALID, "v"],
  ["k with another head_dim", () => call(q(), device.zeros([8, 2, 32]), kv())(), INVALID, "k"],
  [
    "heads that do not divide",
    () => call(device.zeros([4, 3, 64]), kv(), kv())(),
    INVALID,
    "q",
    "heads",
  ],
  ["no KV heads", () => call(q(), device.zeros([8, 0, 64]), device.zeros([8, 0, 64]))(), INVALID],
  [
    "head_dim 12",
    () => {
      const t = device.zeros([2, 2, 12]);
      call(t, t, t)();
    },
    "UNSUPPORTED",
    "headDim",
    "16",
  ],
  [
    "head_dim 264",
    () => {
      const t = device.zeros([2, 2, 264]);
      call(t, t, t)();
    },
    "UNSUPPORTED",
    "headDim",
    "256",
  ],
  [
    "a batch of another size",
    () =>
      call(device.zeros([2, 4, 4, 64]), device.zeros([3, 8, 2, 64]), device.zeros([3, 8, 2, 64]))(),
    INVALID,
  ],
];

const options: Row[] = [
  ["an unknown option", withOptions({ windwo: 4 }), INVALID, "windwo", "window"],
  ["options that are an array", withOptions([]), INVALID, "options"],
  ["a negative window", withOptions({ window: -1 }), INVALID, "window", "-1", "no limit"],
  ["a fractional window", withOptions({ window: 1.5 }), INVALID, "window"],
  ["a NaN window", withOptions({ window: NaN }), INVALID, "window"],
  ["a window beyond int32", withOptions({ window: 2 ** 31 }), INVALID, "window"],
  ["a window in quotes", withOptions({ window: "4" }), INVALID, "window"],
  ["a bigint window", withOptions({ window: 4n }), INVALID, "window"],
  ["negative sinkTokens", withOptions({ window: 4, sinkTokens: -1 }), INVALID, "sinkTokens"],
  ["huge sinkTokens", withOptions({ window: 4, sinkTokens: 1e10 }), INVALID, "sinkTokens"],
  ["a NaN smScale", withOptions({ smScale: NaN }), INVALID, "smScale"],
  ["an infinite smScale", withOptions({ smScale: Infinity }), INVALID, "smScale"],
  ["a smScale beyond float32", withOptions({ smScale: 1e300 }), INVALID, "smScale"],
  ["a negative softCap", withOptions({ softCap: -1 }), INVALID, "softCap"],
  ["a NaN softCap", withOptions({ softCap: NaN }), INVALID, "softCap"],
  ["an infinite softCap", withOptions({ softCap: Infinity }), INVALID, "softCap"],
  ["a softCap that overflows", withOptions({ softCap: 1e31 }), INVALID, "softCap", /1e\+30/],
  ["a softCap of almost 0", withOptions({ softCap: 1e-31 }), INVALID, "softCap", /1e-30/],
  ["causal that is no boolean", withOptions({ causal: 1 }), INVALID, "causal"],
  [
    "a window without causal",
    withOptions({ causal: false, window: 4 }),
    "UNSUPPORTED",
    "causal",
    "window",
  ],
  [
    "sinks without causal",
    withOptions({ causal: false, sinkTokens: 4 }),
    "UNSUPPORTED",
    "causal",
    "sinkTokens",
  ],
  [
    "a prefix without causal",
    withOptions({ causal: false, prefixLen: 4 }),
    "UNSUPPORTED",
    "causal",
    "prefixLen",
  ],
  ["a negative prefixLen", withOptions({ prefixLen: -1 }), INVALID, "prefixLen"],
  ["prefixLens of another length", withOptions({ prefixLen: ints(1, 2) }), INVALID, "prefixLen"],
  ["negative fixedSplits", withOptions({ fixedSplits: -1 }), INVALID, "fixedSplits"],
  ["lse that is a string", withOptions({ lse: "yes" }), INVALID, "lse"],
  ["lse of another shape", () => withOptions({ lse: device.zeros([4, 3]) })(), INVALID, "lse"],
  [
    "lse of another dtype",
    () => withOptions({ lse: device.zeros([4, 4], "float16") })(),
    INVALID,
    "lse",
  ],
  ["o of another shape", () => withOptions({ o: device.zeros([4, 4, 32]) })(), INVALID, "o"],
  ["o of another dtype", () => withOptions({ o: device.zeros(Q, "float16") })(), INVALID, "o"],
  [
    "sinkLogits of another length",
    withOptions({ sinkLogits: Float32Array.of(1) }),
    INVALID,
    "sinkLogits",
  ],
  [
    "NaN sinkLogits",
    withOptions({ sinkLogits: Float32Array.of(1, NaN, 0, 0) }),
    INVALID,
    "sinkLogits",
  ],
];

const overlaps: Row[] = [
  [
    "o overlaps q",
    () => {
      const t = q();
      call(t, kv(), kv(), { o: t })();
    },
    INVALID,
    "o",
    "q",
  ],
  [
    "o overlaps k",
    () => {
      const t = device.zeros([8, 4, 64]);
      call(q(), t, kvLike(t), { o: t.slice(0, 2, 6) })();
    },
    INVALID,
    "o",
    "k",
  ],
  [
    "o is a strided view",
    () => withOptions({ o: device.zeros([4, 8, 64]).slice(1, 0, 4) })(),
    INVALID,
    "o",
    "contiguous",
  ],
  [
    "lse overlaps o",
    () => {
      const memory = device.zeros([4 * 4 * 64]);
      call(q(), kv(), kv(), {
        o: memory.reshape(Q),
        lse: memory.slice(0, 0, 16).reshape([4, 4]),
      })();
    },
    INVALID,
    "overlap",
  ],
];
const kvLike = (t: { shape: readonly number[] }) => device.zeros(t.shape);

const ragged: Row[] = [
  ["cuSeqlensQ of one", withOptions({ cuSeqlensQ: ints(0) }), INVALID, "cuSeqlensQ"],
  [
    "cuSeqlensQ that starts late",
    withOptions({ cuSeqlensQ: ints(1, 4), cuSeqlensK: ints(0, 8) }),
    INVALID,
    "cuSeqlensQ",
  ],
  [
    "cuSeqlensQ that falls",
    withOptions({ cuSeqlensQ: ints(0, 3, 2, 4), cuSeqlensK: ints(0, 1, 2, 8) }),
    INVALID,
    "cuSeqlensQ",
  ],
  [
    "cuSeqlensQ that ends early",
    withOptions({ cuSeqlensQ: ints(0, 3), cuSeqlensK: ints(0, 8) }),
    INVALID,
    "cuSeqlensQ",
  ],
  [
    "cuSeqlensQ that ends late",
    withOptions({ cuSeqlensQ: ints(0, 5), cuSeqlensK: ints(0, 8) }),
    INVALID,
    "cuSeqlensQ",
  ],
  [
    "cuSeqlensK beyond k",
    withOptions({ cuSeqlensQ: ints(0, 4), cuSeqlensK: ints(0, 9) }),
    INVALID,
    "cuSeqlensK",
  ],
  [
    "offsets of different batches",
    withOptions({ cuSeqlensQ: ints(0, 2, 4), cuSeqlensK: ints(0, 8) }),
    INVALID,
    "cuSeqlensK",
  ],
  [
    "offsets with a fraction",
    withOptions({ cuSeqlensQ: [0, 3.5], cuSeqlensK: ints(0, 8) }),
    INVALID,
    "cuSeqlensQ",
  ],
  [
    "offsets of float32",
    () => withOptions({ cuSeqlensQ: device.zeros([2]), cuSeqlensK: ints(0, 8) })(),
    INVALID,
    "cuSeqlensQ",
  ],
  ["no cuSeqlensK", withOptions({ cuSeqlensQ: ints(0, 4) }), INVALID, "cuSeqlensK"],
  ["rows that do not divide", withOptions({ cuSeqlensK: ints(0, 2, 4, 8) }), INVALID, "cuSeqlensK"],
  [
    "offsets in shared memory",
    withOptions({ cuSeqlensQ: new Int32Array(new SharedArrayBuffer(8)) }),
    INVALID,
    "cuSeqlensQ",
  ],
];

const tables: Row[] = [
  ["no pages", paged({ pages: undefined }), INVALID, "pages"],
  ["no pageTable", paged({ pageTable: undefined }), INVALID, "pageTable"],
  ["no kvLens", paged({ kvLens: undefined }), INVALID, "kvLens"],
  ["an unknown field", paged({ pagetable: 1 }), INVALID, "pagetable", "pageTable"],
  ["pages of four axes", () => paged({ pages: device.zeros([6, 2, 4, 64]) })(), INVALID, "pages"],
  ["pages without v", () => paged({ pages: device.zeros([6, 1, 2, 4, 64]) })(), INVALID, "pages"],
  [
    "pages of another dtype",
    () => paged({ pages: device.zeros([6, 2, 2, 4, 64], "float16") })(),
    INVALID,
    "pages",
  ],
  [
    "a page size that is no power of two",
    () => paged({ pages: device.zeros([6, 2, 2, 3, 64]) })(),
    INVALID,
    "page",
  ],
  [
    "a table of float32",
    () => paged({ pageTable: device.zeros([2, 2]) })(),
    INVALID,
    "pageTable",
    "dtype",
  ],
  [
    "a table of one axis",
    () => paged({ pageTable: device.zeros([4], "int32") })(),
    INVALID,
    "pageTable",
  ],
  [
    "a table of fewer rows",
    () => paged({ pageTable: device.zeros([1, 2], "int32") })(),
    INVALID,
    "pageTable",
  ],
  ["kvLens of another length", paged({ kvLens: ints(5) }), INVALID, "kvLens"],
  ["a negative kvLen", paged({ kvLens: ints(5, -1) }), INVALID, "kvLens"],
  ["a kvLen beyond the table", paged({ kvLens: ints(5, 9) }), INVALID, "kvLens"],
  ["cuSeqlensK with pages", paged({}, { cuSeqlensK: ints(0, 5, 8) }), INVALID, "cuSeqlensK"],
];

describe.each([
  ["tensors", tensors],
  ["options", options],
  ["overlaps", overlaps],
  ["ragged batches", ragged],
  ["page tables", tables],
])("attention refuses wrong %s", (_, rows) => {
  it.each(rows)("%s", (_, wrong, code, ...names) => {
    expectError(wrong, code, "attention", ...names);
  });
});

describe("attention", () => {
  it("refuses tensors of two devices, and disposed ones", async () => {
    const other = await Device.open(device.kind);
    expectError(call(q(), other.zeros(KV), kv()), INVALID, "attention", "k", "device");
    other.dispose();
    const dead = kv();
    dead.dispose();
    expectError(call(q(), kv(), dead), "DISPOSED", "attention", "v");
  });

  it("works after every refusal as before", async () => {
    const one = device.tensor(new Float32Array(8 * 2 * 64).fill(1), KV);
    const { o } = attention(q(), kv(), one);
    expect(await o.read()).toEqual(new Float32Array(4 * 4 * 64).fill(1));
  });

  it.each([1e-30, 1e30])("takes a softCap of %s", async (softCap) => {
    const one = device.tensor(new Float32Array(8 * 2 * 64).fill(1), KV);
    const { o } = attention(q(), one, one, { softCap });
    expect(await o.read()).toEqual(new Float32Array(4 * 4 * 64).fill(1));
  });

  it("explains which kernel it runs", () => {
    const { kernel } = attention(q(), kv(), kv(), { explain: true });
    expect(kernel).toMatch(device.kind === "cpu" ? /cpu/ : /./);
    expect(attention(q(), kv(), kv()).kernel).toBeUndefined();
  });
});
