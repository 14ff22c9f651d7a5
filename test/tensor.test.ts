// Tensor and Device: values in and out, views, lifetimes, wrong arguments.

import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { attention, Device, GqaError, type Tensor } from "../lib/index";
import { testDevice } from "./support/device";
import { expectError, rejected } from "./support/errors";
import { ROUND, toBfloat16Bits, toFloat16Bits } from "./support/rounding";

const device = await testDevice();

describe("Device", () => {
  it("says what it is and why", () => {
    expect(device.kind).toMatch(/^(cpu|cuda)$/);
    expect(device.reason).toMatch(new RegExp(`^${device.kind}: `));
    const info = device.info();
    expect(info.kind).toBe(device.kind);
    expect(info.name.length).toBeGreaterThan(0);
    expect(info.arch.length).toBeGreaterThan(0);
    expect(info.parallelism).toBeGreaterThan(0);
    const memory = device.memory();
    for (const bytes of [memory.total, memory.free]) expect(bytes).toBeGreaterThan(0);
    for (const bytes of [memory.allocated, memory.cached]) expect(bytes).toBeGreaterThanOrEqual(0);
  });

  it("refuses names that it does not know", async () => {
    for (const name of ["gpu", "", "cuda:", "cuda:-1", "cpu:0", 0, {}]) {
      const error = await rejected(Device.open(name as "cpu"));
      expect(error.code).toBe("INVALID_ARGUMENT");
      expect(error.message).toMatch(/Device\.open.*which/);
    }
  });

  it("takes its default from FLASH_GQA_DEVICE, and names it where it is wrong", async () => {
    const before = process.env.FLASH_GQA_DEVICE;
    try {
      process.env.FLASH_GQA_DEVICE = "cpu";
      const chosen = await Device.open();
      expect(chosen.kind).toBe("cpu");
      chosen.dispose();
      process.env.FLASH_GQA_DEVICE = "gpu";
      expect((await rejected(Device.open())).message).toMatch(/FLASH_GQA_DEVICE/);
    } finally {
      if (before === undefined) delete process.env.FLASH_GQA_DEVICE;
      else process.env.FLASH_GQA_DEVICE = before;
    }
  });

  it("refuses an instruction set that it does not know", async () => {
    const before = process.env.FLASH_GQA_ISA;
    try {
      process.env.FLASH_GQA_ISA = "AVX2";
      expect((await rejected(Device.open("cpu"))).message).toMatch(/FLASH_GQA_ISA.*avx2.*"AVX2"/);
    } finally {
      if (before === undefined) delete process.env.FLASH_GQA_ISA;
      else process.env.FLASH_GQA_ISA = before;
    }
  });

  it("either opens CUDA or says why it cannot", async () => {
    const outcome = await Device.open("cuda").catch((error: unknown) => error);
    if (outcome instanceof Device) {
      expect(outcome.kind).toBe("cuda");
      outcome.dispose();
    } else {
      expect(outcome).toBeInstanceOf(GqaError);
      expect((outcome as GqaError).code).toBe("DEVICE");
      expect((outcome as GqaError).message.length).toBeGreaterThan(20);
    }
  });

  it("auto always opens", async () => {
    const any = await Device.open("auto");
    expect(any.reason).toContain(`${any.kind}: `);
    any.dispose();
    any.dispose();
    expect(any.disposed).toBe(true);
  });
});

describe("values", () => {
  const x = [0, 1, -2.5, 3.140625, 65504, 1e-7, -0];

  it("come back as they went in", async () => {
    expect(await device.tensor(Float32Array.from(x), [7]).read()).toEqual(Float32Array.from(x));
    expect(await device.tensor(x, [1, 7]).read()).toEqual(Float32Array.from(x));
    const ints = Int32Array.of(1, -2, 2 ** 31 - 1, -(2 ** 31));
    expect(await device.tensor(ints, [2, 2]).read()).toEqual(ints);
    expect(await device.tensor([1, 2], [2], { dtype: "int32" }).read()).toEqual(
      Int32Array.of(1, 2),
    );
  });

  it("are rounded to 16 bits, and raw bits pass untouched", async () => {
    const source = Float32Array.from(x);
    for (const [dtype, toBits] of [
      ["bfloat16", toBfloat16Bits],
      ["float16", toFloat16Bits],
    ] as const) {
      const tensor = device.tensor(source, [7], { dtype });
      expect(await tensor.read()).toEqual(source.map(ROUND[dtype]));
      const bits = await tensor.readBits();
      expect(bits).toEqual(Uint16Array.from(source, toBits));
      expect(await device.tensor(bits as Uint16Array, [7], { dtype }).readBits()).toEqual(bits);
    }
    const bits = await device.tensor(source, [7]).readBits();
    expect(bits).toEqual(new Uint32Array(source.buffer));
  });

  it("are copied before the call returns", async () => {
    const data = Float32Array.of(1, 2, 3);
    const tensor = device.tensor(data, [3]);
    data.fill(9);
    expect(await tensor.read()).toEqual(Float32Array.of(1, 2, 3));
  });

  it("of another realm are welcome", async () => {
    const data = runInNewContext("Float32Array.of(1, 2, 3)");
    expect(data).not.toBeInstanceOf(Float32Array);
    expect(await device.tensor(data, [3]).read()).toEqual(Float32Array.of(1, 2, 3));
  });

  it("may be none", async () => {
    const empty = device.tensor(new Float32Array(0), [0, 4]);
    expect(empty.size).toBe(0);
    expect(await empty.read()).toEqual(new Float32Array(0));
    expect((await device.zeros([3, 0], "bfloat16").readBits()).length).toBe(0);
  });

  // Few values travel otherwise than many (csrc/cuda_memory.cc): 3,840 bytes.
  it.each([1, 3, 959, 960, 961, 1919, 1920, 1921])(
    "writes %i values behind an odd one",
    async (n) => {
      using whole = device.zeros([n + 3], "bfloat16");
      using part = whole.slice(0, 1, n + 1);
      const values = Float32Array.from({ length: n }, (_, i) => (i % 255) + 1);
      part.write(values);
      values.fill(0);
      const read = Array.from(await whole.read());
      expect(read).toEqual([0, ...Array.from({ length: n }, (_, i) => (i % 255) + 1), 0, 0]);
    },
  );

  it("zeros are zero, to() converts, clone() copies, write() overwrites in order", async () => {
    expect(await device.zeros([2, 3]).read()).toEqual(new Float32Array(6));
    const source = device.tensor(Float32Array.of(1.001, 2), [2]);
    const half = source.to("bfloat16");
    const copy = source.clone();
    const early = copy.read();
    source.write(Float32Array.of(5, 6));
    copy.write([7, 8]);
    expect(await half.read()).toEqual(Float32Array.of(1, 2));
    expect(await early).toEqual(Float32Array.of(Math.fround(1.001), 2));
    expect(await source.read()).toEqual(Float32Array.of(5, 6));
    expect(await copy.read()).toEqual(Float32Array.of(7, 8));
    expect(await half.to("float32").read()).toEqual(Float32Array.of(1, 2));
  });
});

describe("views", () => {
  const data = Float32Array.from({ length: 24 }, (_, i) => i);
  const whole = () => device.tensor(data, [4, 3, 2]);

  it("slice rows and columns, and look into the same memory", async () => {
    const t = whole();
    const rows = t.slice(0, 1, 3);
    expect(rows.shape).toEqual([2, 3, 2]);
    expect(await rows.read()).toEqual(data.slice(6, 18));
    const columns = t.slice(1, 1, 2);
    expect(columns.shape).toEqual([4, 1, 2]);
    expect(await columns.read()).toEqual(Float32Array.of(2, 3, 8, 9, 14, 15, 20, 21));
    expect(await columns.clone().read()).toEqual(await columns.read());
    t.write(new Float32Array(24));
    expect(await columns.read()).toEqual(new Float32Array(8));
    columns.write(Float32Array.from({ length: 8 }, () => 1));
    expect([...(await t.read())].reduce((a, b) => a + b, 0)).toBe(8);
  });

  it("keep the memory alive", async () => {
    const t = whole();
    const row = t.slice(0, 2, 3);
    t.dispose();
    expect(await row.read()).toEqual(data.slice(12, 18));
  });

  it("reshape, where the rows allow", async () => {
    const t = whole();
    expect(await t.reshape([24]).read()).toEqual(data);
    const columns = t.slice(1, 0, 2);
    expect(columns.reshape([4, 4]).shape).toEqual([4, 4]);
    expectError(() => columns.reshape([16]), "INVALID_ARGUMENT", "Tensor.reshape", "shape");
  });

  it("convert from and to strided rows", async () => {
    const columns = whole().slice(1, 2, 3);
    const half = columns.to("bfloat16");
    expect(await half.read()).toEqual(Float32Array.of(4, 5, 10, 11, 16, 17, 22, 23));
  });
});

describe("lifetimes", () => {
  it("end once; afterwards every use throws DISPOSED", async () => {
    const t = device.tensor(new Float32Array(64), [1, 1, 64]);
    t.dispose();
    t.dispose();
    expect(t.disposed).toBe(true);
    for (const use of [
      () => t.slice(0, 0, 1),
      () => t.reshape([64]),
      () => t.write(new Float32Array(64)),
      () => t.to("float16"),
      () => t.clone(),
      () => attention(t, t, t),
    ]) {
      expectError(use, "DISPOSED");
    }
    expect((await rejected(t.read())).code).toBe("DISPOSED");
    expect((await rejected(t.readBits())).code).toBe("DISPOSED");
  });

  it("of tensors end with their device", async () => {
    const other = await Device.open(device.kind);
    const t = other.tensor(new Float32Array(4), [4]);
    const pending = t.read();
    other.dispose();
    expect(t.disposed).toBe(true);
    expect((await rejected(t.read())).code).toBe("DISPOSED");
    expectError(() => other.empty([1]), "DISPOSED", "Device.empty");
    expectError(() => other.info(), "DISPOSED", "Device.info");
    expect((await rejected(other.synchronize())).code).toBe("DISPOSED");
    // A read in flight ends one way or the other.
    await pending.catch((error: unknown) => expect(error).toBeInstanceOf(GqaError));
  });

  it("returned from tidy in a plain object of another realm live on", () => {
    const wrap = runInNewContext("(tensor) => ({ list: [tensor] })");
    const kept = device.tidy(() => wrap(device.zeros([2])));
    expect(kept.list[0].disposed).toBe(false);
    kept.list[0].dispose();
  });

  it("inside tidy end with it, but for what it returns", async () => {
    const made: Tensor[] = [];
    const { kept, list } = device.tidy(() => {
      const a = device.zeros([4]);
      const b = device.tensor([1, 2], [2]);
      made.push(a, b);
      return { kept: b, list: [device.zeros([1])] };
    });
    expect(made.map((t) => t.disposed)).toEqual([true, false]);
    expect(await kept.read()).toEqual(Float32Array.of(1, 2));
    expect(list[0]!.disposed).toBe(false);
    const lost: Tensor[] = [];
    expect(() =>
      device.tidy(() => {
        lost.push(device.zeros([4]));
        throw new Error("mine");
      }),
    ).toThrow("mine");
    expect(lost[0]!.disposed).toBe(true);
    expectError(() => device.tidy(async () => 1), "INVALID_ARGUMENT", "Device.tidy", "promise");
  });

  it("memory goes back", async () => {
    const before = device.memory().allocated;
    const big = device.empty([1 << 20]);
    expect(device.memory().allocated - before).toBeGreaterThanOrEqual(4 << 20);
    const view = big.slice(0, 0, 4);
    big.dispose();
    view.dispose();
    await device.synchronize();
    expect(device.memory().allocated).toBeLessThanOrEqual(before);
  });
});

describe("capture", () => {
  it("records without running, and replays on what the inputs hold then", async () => {
    const x = device.tensor([1, 2], [2]);
    const y = device.zeros([2]);
    const graph = device.capture(() => {
      y.write(x);
    });
    expect(await y.read()).toEqual(Float32Array.of(0, 0));
    graph.replay();
    expect(await y.read()).toEqual(Float32Array.of(1, 2));
    x.write([3, 4]);
    graph.replay();
    expect(await y.read()).toEqual(Float32Array.of(3, 4));
    graph.dispose();
    graph.dispose();
    expectError(() => graph.replay(), "DISPOSED", "Graph.replay");
  });

  it("keeps the memory of what it recorded", async () => {
    const out = device.zeros([64]);
    const graph = device.capture(() => {
      const inner = device.zeros([64]);
      out.write(inner);
      inner.dispose();
    });
    const filler = device.tensor(new Float32Array(64).fill(7), [64]);
    out.write(filler);
    graph.replay();
    expect(await out.read()).toEqual(new Float32Array(64));
    graph.dispose();
  });

  it("refuses inside what cannot be recorded", async () => {
    const t = device.zeros([2]);
    const refused: unknown[] = [];
    const attempt = (fn: () => unknown) => {
      try {
        fn();
        refused.push("nothing");
      } catch (error) {
        refused.push((error as GqaError).code);
      }
    };
    let read: Promise<unknown> = Promise.resolve();
    let wait: Promise<unknown> = Promise.resolve();
    device
      .capture(() => {
        attempt(() => device.tensor([1], [1]));
        attempt(() => t.write([1, 2]));
        attempt(() => device.capture(() => {}));
        read = t.read().catch((error: GqaError) => error.code);
        wait = device.synchronize().catch((error: GqaError) => error.code);
      })
      .dispose();
    expect(refused).toEqual(["BUSY", "BUSY", "BUSY"]);
    expect(await read).toBe("BUSY");
    expect(await wait).toBe("BUSY");
    expectError(() => device.capture(async () => {}), "INVALID_ARGUMENT", "promise");
    expect(() =>
      device.capture(() => {
        throw new Error("mine");
      }),
    ).toThrow("mine");
    expect(await device.tensor([5], [1]).read()).toEqual(Float32Array.of(5));
  });
});
