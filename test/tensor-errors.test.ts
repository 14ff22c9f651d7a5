// What device.tensor and the methods of a tensor refuse.

import { describe, expect, it } from "vitest";
import { attention, Device, Graph, KvCache, RopeTable, repeatKv, Tensor } from "../lib/index";
import { testDevice } from "./support/device";
import { caught, expectError, trapped, type Wrong } from "./support/errors";

const device = await testDevice();

describe("wrong arguments", () => {
  const detached = () => {
    const data = new Float32Array(4);
    structuredClone(data.buffer, { transfer: [data.buffer] });
    return data;
  };
  const shared = () => new Float32Array(new SharedArrayBuffer(16));
  const proxied = () => Object.create(Float32Array.prototype);
  const tensor =
    (...args: Wrong[]) =>
    () =>
      (device.tensor as Wrong)(...args);

  it.each<[string, () => unknown, string, ...(string | RegExp)[]]>([
    ["too few values", tensor(new Float32Array(3), [4]), "INVALID_ARGUMENT", "data", "4", "3"],
    ["too many values", tensor([1, 2, 3], [2]), "INVALID_ARGUMENT", "data"],
    ["no data", tensor(undefined, [1]), "INVALID_ARGUMENT", "data"],
    ["null data", tensor(null, [1]), "INVALID_ARGUMENT", "data"],
    ["a string", tensor("abcd", [4]), "INVALID_ARGUMENT", "data"],
    ["a Float64Array", tensor(new Float64Array(4), [4]), "INVALID_ARGUMENT", "data"],
    ["a BigInt64Array", tensor(new BigInt64Array(4), [4]), "INVALID_ARGUMENT", "data"],
    ["a DataView", tensor(new DataView(new ArrayBuffer(16)), [4]), "INVALID_ARGUMENT", "data"],
    ["a fake typed array", tensor(proxied(), [4]), "INVALID_ARGUMENT", "data"],
    ["a number in quotes", tensor([1, "2"], [2]), "INVALID_ARGUMENT", /data\[1\]/],
    ["a hole", tensor(new Array(2), [2]), "INVALID_ARGUMENT", /data\[0\]/],
    ["a detached buffer", tensor(detached(), [4]), "INVALID_ARGUMENT", "data", "detached"],
    ["a detached buffer and shape 0", tensor(detached(), [0]), "INVALID_ARGUMENT", "detached"],
    ["shared memory", tensor(shared(), [4]), "INVALID_ARGUMENT", "data", "SharedArrayBuffer"],
    ["raw bits without dtype", tensor(new Uint16Array(4), [4]), "INVALID_ARGUMENT", "dtype"],
    [
      "raw bits as float32",
      tensor(new Uint16Array(4), [4], { dtype: "float32" }),
      "INVALID_ARGUMENT",
      "bits",
    ],
    [
      "an unknown dtype",
      tensor([1], [1], { dtype: "float64" }),
      "INVALID_ARGUMENT",
      "dtype",
      "float16",
    ],
    [
      "an unknown option",
      tensor([1], [1], { dtpe: "float32" }),
      "INVALID_ARGUMENT",
      "dtpe",
      "dtype",
    ],
    [
      "a fraction as int32",
      tensor([1.5], [1], { dtype: "int32" }),
      "INVALID_ARGUMENT",
      /data\[0\]/,
    ],
    ["int32 too big", tensor([2 ** 31], [1], { dtype: "int32" }), "INVALID_ARGUMENT", /data\[0\]/],
    [
      "NaN as int32",
      tensor(Float32Array.of(NaN), [1], { dtype: "int32" }),
      "INVALID_ARGUMENT",
      "data",
    ],
    ["no shape", tensor([1]), "INVALID_ARGUMENT", "shape"],
    ["an empty shape", tensor([1], []), "INVALID_ARGUMENT", "shape"],
    ["a negative size", tensor([1], [-1]), "INVALID_ARGUMENT", "shape"],
    ["a fractional size", tensor([1], [1.5]), "INVALID_ARGUMENT", "shape"],
    ["a NaN size", tensor([1], [NaN]), "INVALID_ARGUMENT", "shape"],
    ["nine axes", tensor([1], [1, 1, 1, 1, 1, 1, 1, 1, 1]), "INVALID_ARGUMENT", "shape"],
    [
      "a product that overflows",
      () => device.empty([2 ** 31 - 1, 2 ** 31 - 1]),
      "INVALID_ARGUMENT",
      "shape",
    ],
    [
      "more than there is",
      () => device.empty([2 ** 24, 2 ** 20]),
      "OUT_OF_MEMORY",
      "needed",
      "free",
    ],
    [
      "slice of no axis",
      () => device.zeros([2, 2]).slice(2, 0, 1),
      "INVALID_ARGUMENT",
      "Tensor.slice",
      "axis",
    ],
    [
      "slice backwards",
      () => device.zeros([4]).slice(0, 3, 2),
      "INVALID_ARGUMENT",
      "Tensor.slice",
      "start",
    ],
    [
      "slice beyond",
      () => device.zeros([4]).slice(0, 0, 5),
      "INVALID_ARGUMENT",
      "Tensor.slice",
      "end",
    ],
    [
      "slice of a deep axis",
      () => device.zeros([2, 2, 2]).slice(2, 0, 1),
      "INVALID_ARGUMENT",
      "axis 2",
    ],
    [
      "reshape to another size",
      () => device.zeros([4]).reshape([5]),
      "INVALID_ARGUMENT",
      "Tensor.reshape",
    ],
    [
      "write of another size",
      () => device.zeros([4]).write([1]),
      "INVALID_ARGUMENT",
      "Tensor.write",
    ],
    ["to int32", () => device.zeros([4]).to("int32"), "INVALID_ARGUMENT", "Tensor.to", "dtype"],
    [
      "tidy without a function",
      () => device.tidy(1 as never),
      "INVALID_ARGUMENT",
      "Device.tidy",
      "fn",
    ],
    [
      "capture without a function",
      () => device.capture(1 as never),
      "INVALID_ARGUMENT",
      "Device.capture",
      "fn",
    ],
  ])("%s", (_, call, code, ...names) => {
    expectError(call, code, ...names);
  });

  it("have no iterator that is followed", () => {
    const t = device.zeros(trapped(2, 3));
    expect(t.shape).toEqual([2, 3]);
    expect(t.reshape(trapped(6)).shape).toEqual([6]);
    expect(device.tensor(trapped(1, 2), [2]).size).toBe(2);
  });

  it("do not shrink under a length getter that lies", () => {
    const data = Array.from({ length: 4 }, () => 1);
    const liar = new Proxy(data, {
      get: (target, key) => (key === "length" ? 1 << 28 : Reflect.get(target, key)),
    });
    expectError(() => device.tensor(liar, [4]), "INVALID_ARGUMENT", "data");
  });

  it("claim more values than any host holds", () => {
    const [q, k] = [device.zeros([2, 2, 8]), device.zeros([2, 2, 8])];
    const cuSeqlensQ = new Proxy([0, 2], {
      get: (target, key) => (key === "length" ? 2 ** 40 : Reflect.get(target, key)),
    });
    const call = () => attention(q, k, k, { cuSeqlensQ, cuSeqlensK: [0, 2] });
    expectError(call, "OUT_OF_MEMORY", "attention", "cuSeqlensQ", String(2 ** 40));
    const rows: Int32Array[] = Array(100_000).fill(new Int32Array(0));
    rows[5] = new Int32Array(1_000_000);
    const pages = device.zeros([2, 2, 2, 4, 8]);
    const table = { pages, pageTable: rows, kvLens: [0], tableRows: [0] };
    expectError(() => attention(q, table), "OUT_OF_MEMORY", "attention", "pageTable");
  });

  it("leave no memory behind", () => {
    const liar = new Float32Array(4);
    Object.defineProperty(liar, "length", { value: 1 << 20 });
    const { allocated } = device.memory();
    expectError(() => device.tensor(liar, [1 << 20]), "INVALID_ARGUMENT");
    expect(device.memory().allocated).toBe(allocated);
  });
});

describe("out of memory", () => {
  const most = 2 ** 31 - 1;
  it.each<[string, () => unknown]>([
    ["Device.empty", () => device.empty([most, 1 << 16])],
    ["Device.zeros", () => device.zeros([most, 1 << 16])],
    ["repeatKv", () => repeatKv(device.empty([1 << 12, 1, 256]), 1 << 28)],
  ])("%s is named, with what there is and the way out", (operation, call) => {
    const error = caught(call);
    expect([error.code, error.operation]).toEqual(["OUT_OF_MEMORY", operation]);
    expect(error.message).toMatch(new RegExp(`^${operation}: needed .*free .*: dispose tensors`));
  });
});

describe("constructors", () => {
  const cache = device.createCache({ numLayers: 1, numKvHeads: 1, headDim: 8, maxTokens: 16 });
  const sequence = cache.open();
  const step = cache.plan([[sequence, 1]]);

  it.each<[string, Wrong, string]>([
    ["Device", Device, "Device.open"],
    ["Tensor", Tensor, "device.tensor"],
    ["RopeTable", RopeTable, "device.rope"],
    ["Graph", Graph, "device.capture"],
    ["KvCache", KvCache, "device.createCache"],
    ["Sequence", sequence.constructor, "cache.open"],
    ["Step", step.constructor, "cache.plan"],
  ])("new %s is refused and the factory named", (name, Class, factory) => {
    for (const args of [[], [device], ["cpu", 0], [{}, null], [Symbol("flash-gqa"), device]]) {
      expectError(() => new Class(...args), "INVALID_ARGUMENT", `new ${name}`, factory);
    }
  });
});
