// Saved sequences in files and streams: whole or not there, and every damage refused in every form.

import { createReadStream, createWriteStream } from "node:fs";
import {
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable, Writable } from "node:stream";
import { pathToFileURL } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import type { KvCache, SavedSource, Sequence } from "../lib/index";
import { testDevice } from "./support/device";
import { rejected, type Wrong } from "./support/errors";
import { fill, mean, meanCache, range } from "./support/mean-cache";

const device = await testDevice();
const folder = await mkdtemp(join(tmpdir(), "flash-gqa-cache-"));
afterAll(() => rm(folder, { recursive: true }));
const inFolder = (name: string) => join(folder, name);

function sequenceOf(cache: KvCache, length: number): Sequence {
  const seq = cache.open();
  if (length > 0) fill(device, cache, seq, range(length, 3));
  return seq;
}

/** A cache whose body has several blocks of 4 MiB: 512 KiB a page. */
const wideCache = () =>
  device.createCache({
    numLayers: 2,
    numKvHeads: 32,
    headDim: 128,
    pageSize: 8,
    dtype: "float32",
    maxTokens: 1024,
  });

function wideSequence(cache: KvCache, length: number, seed: number): Sequence {
  const seq = cache.open();
  const data = Float32Array.from({ length: length * 32 * 128 }, (_, i) => ((i * seed) % 257) - 128);
  const kv = device.tensor(data, [length, 32, 128]);
  const q = device.zeros([length, 32, 128]);
  using step = cache.plan([[seq, length]]);
  for (const layer of [0, 1]) step.attend(layer, q, kv, kv);
  step.commit({ tokens: [range(length)] });
  for (const tensor of [kv, q]) tensor.dispose();
  return seq;
}

/** The bits that a new token gets in each layer. */
async function look(cache: KvCache, seq: Sequence): Promise<unknown> {
  const q = device.tensor(
    Float32Array.from({ length: 32 * 128 }, (_, i) => Math.sin(i)),
    [1, 32, 128],
  );
  const kv = device.zeros([1, 32, 128]);
  using step = cache.plan([[seq, 1]]);
  const bits = [0, 1].map((layer) => step.attend(layer, q, kv, kv).readBits());
  return Promise.all(bits);
}

describe("files", () => {
  it("are written whole, in place of what was there, and read back", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 21);
    const bytes = await cache.save(seq);
    const file = inFolder("whole");
    await writeFile(file, "what was there before, and longer than what comes".repeat(1000));
    expect(await cache.save(seq, { file })).toBe(bytes.length);
    expect((await readFile(file)).equals(bytes)).toBe(true);
    const want = await mean(device, cache, seq);
    for (const source of [file, pathToFileURL(file)]) {
      const back = await cache.load(source);
      expect([back.length, back.told]).toEqual([21, 21]);
      expect(await mean(device, cache, back)).toEqual(want);
    }
    expect(await cache.save(seq, { file: pathToFileURL(inFolder("url")) })).toBe(bytes.length);
    await symlink(file, inFolder("link"));
    await writeFile(file, "");
    await cache.save(seq, { file: inFolder("link") });
    expect((await readFile(file)).equals(bytes)).toBe(true);
    expect((await readdir(folder)).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  it("of many blocks hold what Buffers hold, whatever the order of pages", async () => {
    using cache = wideCache();
    const first = wideSequence(cache, 30, 3);
    const hole = wideSequence(cache, 20, 5);
    const seq = wideSequence(cache, 130, 7);
    hole.close();
    cache.evict();
    const bytes = await cache.save(seq);
    expect(bytes.length).toBeGreaterThan(2 * (4 << 20));
    const file = inFolder("blocks");
    await cache.save(seq, { file });
    expect((await readFile(file)).equals(bytes)).toBe(true);
    const back = await cache.load(file); // on pages that lie elsewhere
    expect((await cache.save(back)).equals(bytes)).toBe(true);
    expect(await look(cache, back)).toEqual(await look(cache, seq));
    expect((await cache.save(first)).equals(await cache.save(first))).toBe(true);
  });

  it("that cannot be written or read are named, and leave nothing behind", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 9);
    const refused = async (promise: Promise<unknown>, text: string) => {
      const error = await rejected(promise);
      const message = expect.stringContaining(text);
      expect([error.code, error.message]).toEqual(["INVALID_ARGUMENT", message]);
    };
    await refused(cache.save(seq, { file: inFolder("no/such/folder") }), "cannot write");
    await refused(cache.save(seq, { file: folder }), "is not a regular file");
    await refused(cache.save(seq, { file: "/dev/null" }), "is not a regular file");
    await refused(cache.save(seq, { file: "a\0b" }), "cannot write");
    await refused(cache.save(seq, { file: 3 } as Wrong), "file expected a path");
    await refused(
      cache.save(seq, { file: new URL("http://a/b") } as Wrong),
      "file expected a path",
    );
    await refused(cache.load(inFolder("none")), "cannot open");
    await refused(cache.load(folder), "is not a regular file");
    await refused(cache.load(new URL("http://a/b")), "source expected a path");
    await refused(cache.save(seq, { file: "a", stream: process.stdout } as Wrong), "one of them");
    expect((await readdir(folder)).filter((name) => name.endsWith(".part"))).toEqual([]);
    expect(seq.inStep).toBe(false);
  });
});

describe("streams", () => {
  it("carry a sequence in whatever pieces, and are ended", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 45);
    const bytes = await cache.save(seq);
    const pieces: Buffer[] = [];
    const sink = new Writable({
      highWaterMark: 1, // every piece makes the writer wait
      write(piece, _, done) {
        pieces.push(piece);
        setImmediate(done);
      },
    });
    expect(await cache.save(seq, { stream: sink })).toBe(bytes.length);
    expect([sink.writableFinished, Buffer.concat(pieces).equals(bytes)]).toEqual([true, true]);
    const want = await mean(device, cache, seq);
    for (const size of [1, 7, 63, 64, 1000, bytes.length]) {
      const parts = range(Math.ceil(bytes.length / size)).map((i) =>
        bytes.subarray(i * size, (i + 1) * size),
      );
      const back = await cache.load(
        Readable.from([Buffer.alloc(0), ...parts], { objectMode: false }),
      );
      expect(await mean(device, cache, back)).toEqual(want);
      back.close();
    }
  });

  it("go from one cache to another as they are written, and through files", async () => {
    using from = wideCache();
    using to = wideCache();
    const seq = wideSequence(from, 100, 11);
    const bytes = await from.save(seq);
    const pipe = new PassThrough();
    const [, back] = await Promise.all([from.save(seq, { stream: pipe }), to.load(pipe)]);
    expect((await to.save(back)).equals(bytes)).toBe(true);
    const file = inFolder("streamed");
    await from.save(seq, { stream: createWriteStream(file) });
    const again = await to.load(createReadStream(file));
    expect((await to.save(again)).equals(bytes)).toBe(true);
  });

  it("that fail leave everything as it was", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 45);
    const bytes = await cache.save(seq);
    const before = cache.stats();
    const failing = (size: number) =>
      Readable.from(
        (function* () {
          yield bytes.subarray(0, size);
          throw new Error("the line is dead");
        })(),
      );
    for (const size of [0, 20, 100, bytes.length - 40, bytes.length]) {
      const error = await rejected(cache.load(failing(size)));
      expect([error.code, error.message]).toEqual([
        "INVALID_ARGUMENT",
        expect.stringContaining("the stream failed: the line is dead"),
      ]);
    }
    const sink = new Writable({
      write: (_piece, _encoding, done) => done(new Error("the disk is full")),
    });
    const error = await rejected(cache.save(seq, { stream: sink }));
    expect([error.code, sink.destroyed]).toEqual(["INVALID_ARGUMENT", true]);
    expect((error.cause as Error).message).toBe("the disk is full");
    for (const wrong of [3, {}, null, new PassThrough().end()] as Wrong[]) {
      expect((await rejected(cache.save(seq, { stream: wrong }))).code).toBe("INVALID_ARGUMENT");
    }
    for (const wrong of [
      Readable.from(["text"]),
      Readable.from([3]),
      new Blob([bytes]),
    ] as Wrong[]) {
      expect((await rejected(cache.load(wrong))).code).toBe("INVALID_ARGUMENT");
    }
    const { highWater: _, ...same } = before;
    expect(cache.stats()).toMatchObject(same);
    seq.close();
  });

  it("are let go by an abort, also where nothing comes", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 45);
    const bytes = await cache.save(seq);
    for (const given of [0, 100, bytes.length - 1]) {
      const silent = new PassThrough();
      silent.write(bytes.subarray(0, given));
      const controller = new AbortController();
      const loading = cache.load(silent, { signal: controller.signal });
      await new Promise(setImmediate);
      controller.abort();
      expect((await rejected(loading)).code).toBe("ABORTED");
    }
    const { signal } = new AbortController();
    const aborted = AbortSignal.abort();
    for (const where of [{}, { file: inFolder("aborted") }, { stream: new PassThrough() }]) {
      const error = await rejected(cache.save(seq, { ...where, signal: aborted } as Wrong));
      expect(error.code).toBe("ABORTED");
    }
    expect((await readdir(folder)).filter((name) => /aborted|part$/.test(name))).toEqual([]);
    expect((await cache.load(bytes, { signal })).length).toBe(45);
    expect(cache.stats()).toMatchObject({ sequences: 2 });
    seq.close();
  });
});

describe("damage", () => {
  const reasons = [
    "cache.load: saved in version n of the format: this reads n",
    "cache.load: the bytes end at n: they were cut off",
    "cache.load: the checksum differs: bytes were changed or cut off",
    "cache.load: the header would have n bytes: bytes were changed or cut off",
    "cache.load: these bytes are no saved sequence: it begins otherwise",
  ];

  const forms: [string, (bytes: Buffer) => Promise<SavedSource>][] = [
    ["a Buffer", async (bytes) => bytes],
    ["a stream", async (bytes) => Readable.from([bytes.subarray(0, 50), bytes.subarray(50)])],
    [
      "a file",
      async (bytes) => {
        await writeFile(inFolder("damaged"), bytes);
        return inFolder("damaged");
      },
    ],
  ];

  it.each(forms)("of %s: every flipped byte, every cut, and what follows", async (_, form) => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 3);
    const bytes = await cache.save(seq);
    const { highWater: _most, ...before } = cache.stats();
    const refused = async (damaged: Buffer) => {
      const error = await rejected(cache.load(await form(damaged)));
      expect(error.code).toBe("CORRUPT_DATA");
      return error.message.replace(/\d+/g, "n");
    };
    const found = new Set<string>();
    for (let at = 0; at < bytes.length; at++) {
      const damaged = Buffer.from(bytes);
      damaged[at]! ^= 1 << (at % 8);
      found.add(await refused(damaged));
    }
    expect([...found].sort()).toEqual(reasons);
    for (const length of [0, 7, 47, 48, 100, bytes.length - 32, bytes.length - 1]) {
      expect(await refused(bytes.subarray(0, length))).toContain("the bytes end at n");
    }
    expect(await refused(Buffer.concat([bytes, bytes]))).toContain("more bytes follow behind n");
    expect(cache.stats()).toMatchObject(before);
    expect((await cache.load(await form(bytes))).length).toBe(3);
  });

  it("of a file of many blocks, in each of them", async () => {
    using cache = wideCache();
    const file = inFolder("large");
    const seq = wideSequence(cache, 100, 13);
    const length = await cache.save(seq, { file });
    seq.close();
    cache.evict();
    const bytes = await readFile(file);
    for (const at of [5000, 3 << 20, 6 << 20, length - 40, length - 1]) {
      bytes[at]! ^= 1;
      await writeFile(file, bytes);
      bytes[at]! ^= 1;
      expect((await rejected(cache.load(file))).message).toContain("the checksum differs");
    }
    await writeFile(file, bytes);
    await truncate(file, length - (1 << 20));
    expect((await rejected(cache.load(file))).message).toContain("they were cut off");
    expect(cache.stats()).toMatchObject({ sequences: 0, pages: { used: 0, cached: 0 } });
  });
});

describe("a place that is not as usual", () => {
  const failing = (run: Promise<unknown>) => rejected(run).then(({ code }) => code);

  it("keeps who may read a file that it replaces, and leaves no part behind", async () => {
    using cache = meanCache(device);
    const file = inFolder("private.seq");
    await writeFile(file, "old", { mode: 0o600 });
    await cache.save(sequenceOf(cache, 20), { file });
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect((await readdir(folder)).filter((name) => name.includes("private"))).toEqual([
      "private.seq",
    ]);
  });

  it("takes file: URLs by their shape, and refuses those of another machine", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 20);
    const { href, protocol } = pathToFileURL(inFolder("shape.seq"));
    await cache.save(seq, { file: { href, protocol } as URL });
    expect((await cache.load({ href, protocol } as Wrong)).length).toBe(20);
    const far = new URL("file://host/x");
    expect(await failing(cache.load(far))).toBe("INVALID_ARGUMENT");
    expect(await failing(cache.save(seq, { file: far }))).toBe("INVALID_ARGUMENT");
  });

  it("refuses what only looks like a stream, and hears an abort where a stream does not", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 20);
    const half = { write() {}, end() {}, on() {} } as Wrong;
    expect(await failing(cache.save(seq, { stream: half }))).toBe("INVALID_ARGUMENT");
    const deaf = { ...half, once() {}, emit() {}, removeListener() {} } as Wrong;
    const signal = AbortSignal.timeout(20);
    expect(await failing(cache.save(seq, { stream: deaf, signal }))).toBe("ABORTED");
    expect(seq.fork().length).toBe(20); // not busy any more
  });

  it("refuses a stream that has ended, which would never answer", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 20);
    const ended = new Writable({ write: (_, __, done) => done() });
    await new Promise<void>((resolve) => ended.end(resolve));
    expect(await failing(cache.save(seq, { stream: ended }))).toBe("INVALID_ARGUMENT");
    expect(seq.fork().length).toBe(20);
  });

  it("refuses a name that no load would take, and takes the longest", async () => {
    using cache = meanCache(device);
    const seq = sequenceOf(cache, 20);
    const model = "x".repeat((1 << 16) - 2);
    expect(await failing(cache.save(seq, { model: `${model}x` }))).toBe("INVALID_ARGUMENT");
    expect((await cache.load(await cache.save(seq, { model }), { model })).length).toBe(20);
  });

  it("refuses iterators that give nothing, and does not wait for one that never lets go", async () => {
    using cache = meanCache(device);
    const source = (next: () => unknown) =>
      ({ [Symbol.asyncIterator]: () => ({ next, return: () => new Promise(() => {}) }) }) as Wrong;
    expect(await failing(cache.load(source(async () => undefined)))).toBe("INVALID_ARGUMENT");
    const bytes = { done: false, value: new Uint8Array(100) };
    expect(await failing(cache.load(source(async () => bytes)))).toBe("CORRUPT_DATA");
    const bare = async function* () {
      yield new Uint8Array(1);
      throw Object.create(null);
    };
    expect(await failing(cache.load(bare() as Wrong))).toBe("INVALID_ARGUMENT");
  });

  it("refuses sources whose iterators are none", async () => {
    using cache = meanCache(device);
    const broken = { [Symbol.asyncIterator]: 5 } as Wrong;
    expect(await failing(cache.load(broken))).toBe("INVALID_ARGUMENT");
    const rude = {
      [Symbol.asyncIterator]: () => ({
        next: async () => ({ done: true, value: undefined }),
        return() {
          throw new Error("rude");
        },
      }),
    } as Wrong;
    expect(await failing(cache.load(rude))).toBe("CORRUPT_DATA");
  });
});
