// flash-gqa/llama on models that Transformers made: logits, hidden states and greedy tokens, in both spellings of a
// config; and on the small trained model, whose perplexity shows a wrong window, mask or position at once.

import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { GqaError } from "../lib/index";
import { type GenerateOptions, Llama, Tokenizer } from "../lib/llama/index";
import { expectClose } from "./support/compare";
import { testDevice } from "./support/device";
import { expectError, rejected, trapped, type Wrong } from "./support/errors";
import { golden, goldenCases, goldenDir } from "./support/golden";
import { perplexity, SMALL_MODEL, validRows } from "./support/model";
import { readSafetensors } from "./support/safetensors";

const device = await testDevice();
const scratch = mkdtempSync(join(tmpdir(), "flash-gqa-models-"));
afterAll(() => rmSync(scratch, { recursive: true }));

async function greedy(
  model: Llama,
  tokens: ArrayLike<number>,
  maxTokens: number,
): Promise<number[]> {
  const ids: number[] = [];
  const prompt = { tokens: Int32Array.from(tokens) };
  const options: GenerateOptions = { maxTokens, temperature: 0, stopTokens: [] };
  for await (const part of model.generate(prompt, options)) ids.push(part.token);
  return ids;
}

describe.each(goldenCases("model").map((c) => [c.name, c] as const))("%s", (name, c) => {
  const folder = join(goldenDir, "models", name);

  function legacy(): string {
    const copy = join(scratch, `${name}-legacy`);
    cpSync(folder, copy, { recursive: true });
    cpSync(join(folder, "config_legacy.json"), join(copy, "config.json"));
    return copy;
  }

  it.each([
    ["config.json", () => folder],
    ["config_legacy.json", legacy],
  ])("by its %s: logits, hidden states and greedy tokens in float32", async (_, dir) => {
    const model = await Llama.load(dir(), { device, dtype: "float32" });
    const ids = golden(c, "input_ids").data;
    const { logits, hiddenStates } = await model.evaluate(Int32Array.from(ids));
    expectClose(logits, golden(c, "logits").data, c.tolerance.logits_atol_f32, "logits");
    for (const [i, state] of hiddenStates.entries()) {
      expectClose(state, golden(c, `hidden_${i}`).data, c.tolerance.logits_atol_f32, `hidden ${i}`);
    }
    const want = golden(c, "greedy_ids").data;
    expect(await greedy(model, ids, want.length)).toEqual([...want]);
    model.dispose();
  });

  it("logits in bfloat16", async () => {
    const model = await Llama.load(folder, { device, dtype: "bfloat16" });
    const { logits } = await model.evaluate(Int32Array.from(golden(c, "input_ids").data));
    expectClose(logits, golden(c, "logits").data, c.tolerance.logits_atol_bf16, "logits");
    model.dispose();
  });
});

describe("the small trained model", () => {
  const stored = readSafetensors(join(SMALL_MODEL, "golden.safetensors"));
  const longIds = Int32Array.from(stored.get("long_ids")!.data);

  it("in float32: perplexity of one long pass, with the window and without", async () => {
    for (const [window, expected] of [
      [true, 11.545],
      [false, 49.26],
    ] as const) {
      const model = await Llama.load(SMALL_MODEL, { device, dtype: "float32", window });
      const measured = perplexity([await model.tokenLosses(longIds)]);
      expect(Math.abs(measured / expected - 1), `${measured}`).toBeLessThanOrEqual(1e-3);
      model.dispose();
    }
  });

  it("in float32: logits and the loss of every token", async () => {
    const model = await Llama.load(SMALL_MODEL, { device, dtype: "float32" });
    const prompt = Int32Array.from(stored.get("prompt_ids")!.data);
    const { logits } = await model.evaluate(prompt);
    expectClose(logits, stored.get("logits_window")!.data, 2e-3, "logits");
    const losses = await model.tokenLosses(longIds);
    expectClose(losses, stored.get("long_loss_window")!.data, 2e-3, "losses");
    model.dispose();
    const full = await Llama.load(SMALL_MODEL, { device, dtype: "float32", window: false });
    expectClose(
      await full.tokenLosses(longIds),
      stored.get("long_loss_full")!.data,
      2e-3,
      "losses",
    );
    const last = (await full.evaluate(prompt)).logits.subarray(-2048);
    expectClose(last, stored.get("logits_full_last")!.data, 2e-3, "last logits");
    full.dispose();
  });

  it.each(["bfloat16", "float16"] as const)("in %s: the same within 1 %%", async (dtype) => {
    for (const [window, expected] of [
      [true, 11.545],
      [false, 49.26],
    ] as const) {
      const model = await Llama.load(SMALL_MODEL, { device, dtype, window });
      const measured = perplexity([await model.tokenLosses(longIds)]);
      expect(Math.abs(measured / expected - 1), `${measured}`).toBeLessThanOrEqual(1e-2);
      model.dispose();
    }
  });

  it("on the first 32 rows of the held-out text", async () => {
    for (const [window, expected] of [
      [true, 9.57],
      [false, 20.582],
    ] as const) {
      const model = await Llama.load(SMALL_MODEL, { device, dtype: "float32", window });
      const losses: Float32Array[] = [];
      for (const row of validRows(model, 32)) losses.push(await model.tokenLosses(row));
      const measured = perplexity(losses);
      expect(Math.abs(measured / expected - 1), `${measured}`).toBeLessThanOrEqual(2e-3);
      model.dispose();
    }
  });

  it("writes Transformers' 200 greedy tokens exactly", async () => {
    const model = await Llama.load(SMALL_MODEL, { device, dtype: "float32" });
    const prompt = stored.get("prompt_ids")!;
    const want = [...stored.get("greedy_ids")!.data];
    expect(want.length).toBe(200);
    expect(await greedy(model, prompt.data, 200)).toEqual(want);
    model.dispose();
  });

  it("encodes and decodes as its tokenizer does in Python", async () => {
    const tokenizer = (await Tokenizer.load(SMALL_MODEL))!;
    const { cases } = JSON.parse(readFileSync(join(SMALL_MODEL, "tokenizer_cases.json"), "utf8"));
    expect(cases.length).toBeGreaterThanOrEqual(25);
    for (const c of cases) {
      expect(tokenizer.encode(c.text), c.text).toEqual(c.ids);
      expect(tokenizer.encode(c.text, { specialTokens: false })).toEqual(c.ids_without_special);
      expect(tokenizer.decode(c.ids_without_special, { specialTokens: true })).toBe(c.decoded);
      expect(tokenizer.decode(c.ids)).toBe(c.decoded_skip_special);
    }
  });
});

describe("generate", async () => {
  const model = await Llama.load(SMALL_MODEL, { device, dtype: "float32", maxTokens: 1024 });
  afterAll(() => model.dispose());
  const prompt = "In the beginning God created";

  async function write(options: GenerateOptions, of = prompt) {
    let text = "";
    const tokens: number[] = [];
    let finishReason: string | undefined;
    for await (const part of model.generate(of, options)) {
      text += part.text;
      tokens.push(part.token);
      finishReason = part.finishReason ?? finishReason;
    }
    return { text, tokens, finishReason };
  }

  it("the same seed gives the same text, another one another", async () => {
    const options = { maxTokens: 24, temperature: 0.8, topP: 0.95, seed: 11 };
    const first = await write(options);
    expect(await write(options)).toEqual(first);
    expect((await write({ ...options, seed: 12 })).tokens).not.toEqual(first.tokens);
    expect(first.finishReason).toBe("length");
    expect(first.tokens.length).toBe(24);
  });

  it("temperature 0 is topK 1 whatever the seed", async () => {
    const a = await write({ maxTokens: 12, temperature: 0 });
    const b = await write({ maxTokens: 12, topK: 1, temperature: 1.5, seed: 3 });
    expect(b.tokens).toEqual(a.tokens);
  });

  it("a batch writes what each prompt writes alone", async () => {
    const prompts = [prompt, "Call me Ishmael. Some years ago", "Fellow-citizens"];
    const options = { maxTokens: 16, temperature: 0 };
    const texts = prompts.map(() => "");
    for await (const part of model.generateBatch(prompts, options)) texts[part.index] += part.text;
    for (const [i, of] of prompts.entries()) expect(texts[i]).toBe((await write(options, of)).text);
  });

  it("ends before a stop string, which is not part of the text", async () => {
    const whole = await write({ maxTokens: 40, temperature: 0 });
    const stop = whole.text.slice(9, 14);
    const cut = await write({ maxTokens: 40, temperature: 0, stop: ["\u0000never", stop] });
    expect(cut.text).toBe(whole.text.slice(0, whole.text.indexOf(stop)));
    expect(cut.finishReason).toBe("stop");
    expect(cut.tokens.length).toBeLessThan(whole.tokens.length);
  });

  it("gives the text in pieces that lose nothing", async () => {
    const { text, tokens } = await write({ maxTokens: 60, temperature: 1.2, seed: 5 });
    const ids = model.tokenizer!.encode(prompt);
    const all = model.tokenizer!.decode([...ids, ...tokens]);
    expect(all).toBe(model.tokenizer!.decode(ids) + text);
  });

  it("gives log-probabilities, most probable first", async () => {
    for await (const part of model.generate(prompt, {
      maxTokens: 5,
      temperature: 0,
      logprobs: 4,
    })) {
      expect(part.top!.length).toBe(4);
      expect(part.top![0]).toEqual({ token: part.token, logprob: expect.closeTo(part.logprob, 5) });
      const logs = part.top!.map((candidate) => candidate.logprob);
      expect(logs).toEqual([...logs].sort((a, b) => b - a));
      expect(logs.reduce((sum, x) => sum + Math.exp(x), 0)).toBeLessThanOrEqual(1 + 1e-5);
    }
  });

  it("an AbortSignal ends it with ABORTED, before or in the middle, and frees the pages", async () => {
    const already = await rejected(write({ signal: AbortSignal.abort() }));
    expect(already.code).toBe("ABORTED");
    const controller = new AbortController();
    let count = 0;
    const error = await rejected(
      (async () => {
        for await (const _ of model.generate(prompt, {
          signal: controller.signal,
          maxTokens: 200,
          temperature: 0,
        })) {
          if (++count === 5) controller.abort();
        }
      })(),
    );
    expect(error.code).toBe("ABORTED");
    expect(count).toBe(5);
    expect(model.cache.stats().pages.used).toBe(0);
  });

  it("takes its options as they are at the call", async () => {
    const stop: string[] = ["never"];
    const parts = model.generate(prompt, { maxTokens: 3, temperature: 0, stop });
    stop.push(5 as never);
    let count = 0;
    for await (const _ of parts) count++;
    expect(count).toBe(3);
  });

  it("does not follow iterators of the user's own", async () => {
    const prompts = trapped({ tokens: trapped(1, 5) });
    // Drawn, the first of two tokens is " never" once in 500 times.
    const stops = { stop: trapped("never"), stopTokens: trapped<number>() };
    const options = { maxTokens: 2, temperature: 0, ...stops };
    let count = 0;
    for await (const _ of model.generateBatch(prompts, options)) count++;
    expect(count).toBe(2);
    expect(model.tokenizer!.decode(trapped(5))).toBe(model.tokenizer!.decode([5]));
  });

  it("leaving the loop frees the pages", async () => {
    for await (const _ of model.generate(prompt, { maxTokens: 50 })) break;
    expect(model.cache.stats().pages.used).toBe(0);
  });

  it("two texts at once share the cache", async () => {
    const options = { maxTokens: 10, temperature: 0 };
    const [a, b] = await Promise.all([write(options), write(options, "And God said")]);
    expect(a).toEqual(await write(options));
    expect(b).toEqual(await write(options, "And God said"));
  });

  it("goes on past its cache where every layer has a window", async () => {
    const small = await Llama.load(SMALL_MODEL, { device, dtype: "float32", maxTokens: 256 });
    const parts: number[] = [];
    for await (const part of small.generate(prompt, {
      maxTokens: 400,
      temperature: 0,
      stopTokens: [],
    })) {
      parts.push(part.token);
    }
    expect(parts.length).toBe(400);
    expect(parts).toEqual((await write({ maxTokens: 400, temperature: 0, stopTokens: [] })).tokens);
    small.dispose();
  });

  const generate = (p: Wrong, o?: Wrong) => () => model.generate(p, o);
  it.each<[string, () => unknown, ...(string | RegExp)[]]>([
    ["no prompt", generate(undefined), "prompt"],
    ["no tokens", generate({ tokens: [] }), "prompt"],
    ["a token beyond the vocabulary", generate({ tokens: [2048] }), /tokens\[0\]/],
    ["a negative token", generate({ tokens: [-1] }), /tokens\[0\]/],
    ["a prompt beyond the context", generate({ tokens: new Array(5000).fill(5) }), "context"],
    ["an unknown option", generate("a", { max_tokens: 4 }), "max_tokens", "maxTokens"],
    ["maxTokens 0", generate("a", { maxTokens: 0 }), "maxTokens"],
    ["a negative temperature", generate("a", { temperature: -1 }), "temperature"],
    ["a NaN temperature", generate("a", { temperature: NaN }), "temperature"],
    ["topP 0", generate("a", { topP: 0 }), "topP"],
    ["a topP that float32 has not", generate("a", { topP: 1e-45 }), "topP"],
    ["a temperature that float32 has not", generate("a", { temperature: 1e-45 }), "temperature"],
    ["topP 2", generate("a", { topP: 2 }), "topP"],
    ["topK -1", generate("a", { topK: -1 }), "topK"],
    ["a seed of 1.5", generate("a", { seed: 1.5 }), "seed"],
    ["an empty stop", generate("a", { stop: "" }), "stop"],
    ["a stop token beyond", generate("a", { stopTokens: [2048] }), "stopTokens"],
    ["a hole among stops", generate("a", { stop: new Array(2) }), "stop"],
    ["logprobs 1000", generate("a", { logprobs: 1000 }), "logprobs"],
    ["a signal that is none", generate("a", { signal: 1 }), "signal"],
    ["half a signal", generate("a", { signal: { aborted: false } }), "signal", "AbortSignal"],
    ["a hole among prompts", () => model.generateBatch(new Array(1)), "prompt"],
    ["no prompts", () => model.generateBatch([]), "prompts"],
  ])("refuses %s", (_, call, ...names) => {
    expectError(call, "INVALID_ARGUMENT", "Llama.generate", ...names);
  });

  it("after dispose() says so", async () => {
    const gone = await Llama.load(SMALL_MODEL, { device, maxTokens: 64 });
    gone.dispose();
    gone.dispose();
    expectError(() => gone.generate("a"), "DISPOSED", "Llama.generate");
    expect(await rejected(gone.tokenLosses([1, 2]))).toBeInstanceOf(GqaError);
  });
});
