// Captured decoding steps: the same texts, bit for bit, as with `graphs: false`, whatever happens to
// the set of texts on the way, and nothing left behind.

import { afterAll, describe, expect, it, vi } from "vitest";
import { type GeneratedPart, type GenerateOptions, Llama } from "../lib/llama/index";
import { addon } from "../lib/native";
import { testDevice } from "./support/device";
import { rejected } from "./support/errors";
import { SMALL_MODEL } from "./support/model";

const device = await testDevice();
// A window of 128 and room for 512 tokens: pages come free, and are taken again, along the way.
const load = (graphs: boolean) =>
  Llama.load(SMALL_MODEL, { device, dtype: "float32", maxTokens: 512, graphs });
const captured = await load(true);
const plain = await load(false);
afterAll(() => {
  captured.dispose();
  plain.dispose();
});

const prompts = ["In the beginning God created", "Call me Ishmael. Some", "Fellow-citizens"];

async function all(
  model: Llama,
  options: GenerateOptions,
  of = prompts,
): Promise<readonly GeneratedPart[]> {
  const parts: GeneratedPart[] = [];
  for await (const part of model.generateBatch(of, options)) parts.push(part);
  return parts;
}

/** Counts what happens on the device while `run` goes on. */
async function counting<T>(run: () => Promise<T>) {
  const capture = vi.spyOn(addon, "beginCapture");
  const replay = vi.spyOn(addon, "replay");
  try {
    const result = await run();
    return { result, captures: capture.mock.calls.length, replays: replay.mock.calls.length };
  } finally {
    capture.mockRestore();
    replay.mockRestore();
  }
}

async function expectSame(options: GenerateOptions, of?: string[]) {
  const { result: parts, captures, replays } = await counting(() => all(captured, options, of));
  expect(parts).toEqual(await all(plain, options, of));
  return { parts, captures, replays };
}

describe("the same parts as uncaptured", () => {
  it.each<[string, GenerateOptions]>([
    ["greedy", { temperature: 0 }],
    ["sampled", { temperature: 0.9, topK: 40, topP: 0.95, seed: 7 }],
    ["sampled with a seed beyond 2^32", { temperature: 1.3, seed: 2 ** 51 + 12345 }],
    ["with log-probabilities", { temperature: 0.7, seed: 1, logprobs: 5 }],
  ])("%s, past the window and the cache's room", async (_, options) => {
    const { parts, captures, replays } = await expectSame({
      ...options,
      maxTokens: 260,
      stopTokens: [],
    });
    expect(parts.length).toBe(3 * 260);
    expect([captures, replays]).toEqual([1, 259]);
  });

  it("with texts that end one after the other", async () => {
    const options = { temperature: 0.8, seed: 3, maxTokens: 90 };
    const whole = await all(plain, { ...options, stopTokens: [] });
    const token = (index: number, n: number) =>
      whole.filter((part) => part.index === index)[n]!.token;
    const stopTokens = [token(0, 70), token(1, 40)];
    const { parts } = await expectSame({ ...options, stopTokens });
    const ends = parts.filter((part) => part.finishReason !== undefined);
    expect(ends.map((part) => part.finishReason)).toContain("eos");
    expect(ends.length).toBe(3);
    expect(new Set(prompts.map((_, i) => parts.filter((p) => p.index === i).length)).size).toBe(3);
  });

  it("with prompts of which some reach the end of the context first", async () => {
    const long = Array.from({ length: 250 }, () => "word").join(" ");
    await expectSame({ temperature: 0, maxTokens: 40 }, [long, prompts[0]!]);
  });

  it("with stop strings", async () => {
    const whole = await all(plain, { temperature: 0, maxTokens: 60 });
    const text = whole.map((part) => (part.index === 1 ? part.text : "")).join("");
    const { parts } = await expectSame({ temperature: 0, maxTokens: 60, stop: text.slice(60, 66) });
    expect(parts.some((part) => part.finishReason === "stop")).toBe(true);
  });

  it("with texts of one and of two tokens, which capture nothing that is not replayed", async () => {
    for (const maxTokens of [1, 2, 3]) {
      const { captures, replays } = await expectSame({ temperature: 0, maxTokens });
      expect([captures, replays]).toEqual(maxTokens === 1 ? [0, 0] : [1, maxTokens - 1]);
    }
  });

  it("with two generations in turns", async () => {
    const options = { temperature: 0.8, maxTokens: 40, stopTokens: [] };
    const both = (model: Llama) =>
      Promise.all([
        all(model, { ...options, seed: 1 }, [prompts[0]!]),
        all(model, { ...options, seed: 2 }, prompts.slice(1)),
      ]);
    expect(await both(captured)).toEqual(await both(plain));
  });
});

describe("a captured step", () => {
  const options: GenerateOptions = { temperature: 0, maxTokens: 60, stopTokens: [] };

  it("gives way where the page table must grow, and is captured again", async () => {
    const model = await load(true);
    const open = [];
    const parts: GeneratedPart[] = [];
    const { captures } = await counting(async () => {
      for await (const part of model.generateBatch(prompts, options)) {
        // Row 17 is opened while a graph reads the table of 16 rows.
        if (open.length < 20) open.push(model.cache.open());
        parts.push(part);
      }
    });
    expect(parts).toEqual(await all(plain, options));
    expect(captures).toBe(2);
    model.dispose();
  });

  it("waits for nobody: while files are loaded, which forbids captures, texts go on", async () => {
    const want = await all(plain, options);
    const capture = vi.spyOn(device, "capture");
    const weights = device.empty([2, 4096]);
    const loading = weights.load(`${SMALL_MODEL}/model.safetensors`, { dtype: "float32" });
    const parts = all(captured, options);
    await loading;
    expect(await parts).toEqual(want);
    const outcomes = capture.mock.results.map((result) => result.type);
    expect([outcomes[0], outcomes.at(-1)]).toEqual(["throw", "return"]);
    capture.mockRestore();
    weights.dispose();
  });

  it("ends where the text is aborted, or the loop is left, and leaves no memory behind", async () => {
    const cycle = async (seed: number) => {
      const controller = new AbortController();
      const { signal } = controller;
      let count = 0;
      const error = await rejected(
        (async () => {
          const given = { ...options, temperature: 1, seed, signal, logprobs: 2 };
          for await (const _ of captured.generateBatch(prompts, given)) {
            if (++count === 20) controller.abort();
          }
        })(),
      );
      expect(error.code).toBe("ABORTED");
      for await (const _ of captured.generateBatch(prompts, options)) if (++count > 40) break;
      await all(captured, { ...options, maxTokens: 4 }, [prompts[0]!]);
    };
    for (let i = 0; i < 3; i++) await cycle(i);
    await device.synchronize();
    const before = { buffers: addon.liveBuffers(), bytes: device.memory().allocated };
    for (let i = 0; i < 10; i++) await cycle(i);
    await device.synchronize();
    expect(addon.liveBuffers()).toBe(before.buffers);
    expect(device.memory().allocated).toBe(before.bytes);
    expect(captured.cache.stats()).toMatchObject({ sequences: 0, tokens: 0, pages: { used: 0 } });
  });

  it("is not made where graphs is false, and graphs is true or false", async () => {
    const { captures, replays } = await counting(() => all(plain, options));
    expect([captures, replays]).toEqual([0, 0]);
    const error = await rejected(Llama.load(SMALL_MODEL, { device, graphs: 1 as never }));
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).toMatch(/graphs.*true or false/);
  });
});
