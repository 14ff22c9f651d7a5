import * as path from "node:path";
import type { KvCache } from "../cache/kv-cache";
import {
  checkBoolean,
  checkInt,
  checkInts,
  checkOneOf,
  checkOptions,
  mapItems,
  show,
} from "../check";
import { Device, type DeviceName } from "../device";
import type { DType } from "../dtype";
import { failure, invalid } from "../errors";
import {
  type GenerationDefaults,
  type LlamaConfig,
  parseConfig,
  parseGenerationDefaults,
} from "./config";
import { type Evaluation, evaluate, tokenLosses } from "./evaluate";
import { type Engine, type GeneratedPart, generateParts } from "./generate";
import { type GenerateOptions, type Prompt, readOptions } from "./options";
import { openCheckpoint, readJson } from "./safetensors";
import { Tokenizer } from "./tokenizer";
import { Transformer } from "./transformer";
import { checkCheckpoint, disposeWeights, loadWeights } from "./weights";

export interface LoadProgress {
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

export interface LoadOptions {
  /**
   * Where to compute. A name opens a device that the model disposes with itself. Default "auto".
   */
  device?: Device | DeviceName;
  /** What to compute in. Default: the checkpoint's own dtype. */
  dtype?: "float32" | "float16" | "bfloat16";
  /**
   * Tokens that the KV cache holds for all sequences together. Default: the model's context, at
   * most 8192. Layers with a window hold only what their window sees, so texts may grow longer than
   * this.
   */
  maxTokens?: number;
  /** False lets every layer see everything, whatever the config says. Default true. */
  window?: boolean;
  /**
   * Whether decoding steps are captured once and replayed: the same texts, with less work for the
   * event loop. Default true.
   */
  graphs?: boolean;
  /** Called after each tensor. */
  onProgress?: (progress: LoadProgress) => void;
}

const DEFAULT_MAX_TOKENS = 8192;

/**
 * A Llama, Mistral, Qwen2 or Qwen3 model that writes text through flash-gqa's operations and cache.
 */
export class Llama {
  readonly device: Device;
  readonly config: LlamaConfig;
  readonly dtype: DType;
  /** Keys and values of everything being written. Its `stats()` tell what is held. */
  readonly cache: KvCache;
  /**
   * null where the checkpoint has no tokenizer.json: prompts are then token ids, and texts are
   * empty.
   */
  readonly tokenizer: Tokenizer | null;
  /** Tokens that a prompt and its text may have together. */
  readonly contextLength: number;
  readonly #transformer: Transformer;
  readonly #defaults: GenerationDefaults;
  readonly #ownsDevice: boolean;
  readonly #graphs: boolean;
  #disposed = false;

  private constructor(parts: {
    transformer: Transformer;
    cache: KvCache;
    contextLength: number;
    dtype: DType;
    tokenizer: Tokenizer | null;
    defaults: GenerationDefaults;
    ownsDevice: boolean;
    graphs: boolean;
  }) {
    this.device = parts.transformer.device;
    this.config = parts.transformer.config;
    this.dtype = parts.dtype;
    this.cache = parts.cache;
    this.tokenizer = parts.tokenizer;
    this.contextLength = parts.contextLength;
    this.#transformer = parts.transformer;
    this.#defaults = parts.defaults;
    this.#ownsDevice = parts.ownsDevice;
    this.#graphs = parts.graphs;
  }

  /**
   * Loads a checkpoint folder as Hugging Face saves it: config.json, model.safetensors (or several
   * files and their index), and where they are there generation_config.json, tokenizer.json and
   * tokenizer_config.json. The files are checked against each other before any weight is read;
   * weights go from file to device on a native thread. Rejects with CORRUPT_DATA, UNSUPPORTED,
   * OUT_OF_MEMORY, INVALID_ARGUMENT.
   */
  static async load(dir: string, options?: LoadOptions): Promise<Llama> {
    const operation = "Llama.load";
    if (typeof dir !== "string" || dir === "") {
      throw invalid(operation, `dir expected a folder, got ${show(dir)}`);
    }
    const given = checkOptions(operation, options, [
      "device",
      "dtype",
      "maxTokens",
      "window",
      "graphs",
      "onProgress",
    ]);
    const useWindow = checkBoolean(operation, "window", given.window ?? true);
    const graphs = checkBoolean(operation, "graphs", given.graphs ?? true);
    const { onProgress } = given;
    if (onProgress !== undefined && typeof onProgress !== "function") {
      throw invalid(operation, `onProgress expected a function, got ${show(onProgress)}`);
    }

    const json = await readJson(path.join(dir, "config.json"));
    if (json === undefined) {
      throw invalid(operation, `dir ${dir} has no config.json`, "pass a checkpoint folder");
    }
    const config = parseConfig(json);
    const defaults = parseGenerationDefaults(
      await readJson(path.join(dir, "generation_config.json")),
      json,
      config.vocabSize,
    );
    const stored = await openCheckpoint(dir);
    const totalBytes = checkCheckpoint(config, stored);
    const tokenizer = await Tokenizer.load(dir);

    const dtype = checkOneOf(operation, "dtype", given.dtype ?? config.dtype, [
      "float32",
      "float16",
      "bfloat16",
    ]);
    const maxTokens = checkInt(
      operation,
      "maxTokens",
      given.maxTokens ?? Math.min(config.maxPositions, DEFAULT_MAX_TOKENS),
      1,
    );
    const ownsDevice = !(given.device instanceof Device);
    const device = given.device instanceof Device ? given.device : await Device.open(given.device);
    try {
      const windows = useWindow ? config.windows : config.windows.map(() => 0);
      // Where every layer has a window, a text may outgrow the cache: its pages come free behind
      // it.
      const contextLength = windows.includes(0)
        ? Math.min(config.maxPositions, maxTokens)
        : config.maxPositions;
      const { numLayers, numQHeads, numKvHeads, headDim, rope } = config;
      const cache = device.createCache({
        numLayers,
        numQHeads,
        numKvHeads,
        headDim,
        dtype,
        rope,
        window: windows,
        maxTokens,
        maxSeqLen: contextLength,
      });
      try {
        let loadedBytes = 0;
        const weights = await loadWeights(device, config, stored, dtype, (bytes) => {
          loadedBytes += bytes;
          onProgress?.({ loadedBytes, totalBytes });
        });
        const transformer = new Transformer(device, config, weights);
        return new Llama({
          transformer,
          cache,
          contextLength,
          dtype,
          tokenizer,
          defaults,
          ownsDevice,
          graphs,
        });
      } catch (error) {
        cache.dispose();
        throw error;
      }
    } catch (error) {
      if (ownsDevice) device.dispose();
      throw error;
    }
  }

  /**
   * Writes a text after `prompt`, one token at a time. Leaving the loop gives the pages back.
   * Throws INVALID_ARGUMENT and DISPOSED at once; the iteration throws ABORTED, OUT_OF_PAGES and
   * DEVICE.
   */
  generate(
    prompt: Prompt,
    options?: GenerateOptions,
  ): AsyncGenerator<GeneratedPart, void, undefined> {
    return this.#generate("Llama.generate", [prompt], options);
  }

  /**
   * Writes a text after each prompt, all in one batch; `part.index` says whose token it is. A
   * finished text leaves the batch. Prompt i draws with seed + i. Throws as `generate`.
   */
  generateBatch(
    prompts: readonly Prompt[],
    options?: GenerateOptions,
  ): AsyncGenerator<GeneratedPart, void, undefined> {
    const operation = "Llama.generateBatch";
    if (!Array.isArray(prompts) || prompts.length === 0) {
      throw invalid(
        operation,
        `prompts expected an array with a prompt in it, got ${show(prompts)}`,
      );
    }
    return this.#generate(operation, prompts, options);
  }

  /**
   * For measuring: one pass over `tokens` (at most contextLength) with every row's logits and
   * hidden states.
   */
  async evaluate(tokens: readonly number[] | Int32Array): Promise<Evaluation> {
    const operation = "Llama.evaluate";
    this.#live(operation);
    return evaluate(this.#engine(), this.#checkTokens(operation, "tokens", tokens, 1, 0));
  }

  /**
   * For measuring: -log p of each token but the first, in nats, in one pass over `tokens` (at most
   * contextLength). exp(mean) is the perplexity.
   */
  async tokenLosses(tokens: readonly number[] | Int32Array): Promise<Float32Array> {
    const operation = "Llama.tokenLosses";
    this.#live(operation);
    return tokenLosses(this.#engine(), this.#checkTokens(operation, "tokens", tokens, 2, 0));
  }

  /** True after `dispose()`, and when the device is disposed. */
  get disposed(): boolean {
    return this.#disposed || this.device.disposed;
  }

  /** Gives up weights and cache, and the device if the model opened it. May be called again. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.cache.dispose();
    disposeWeights(this.#transformer.weights);
    if (this.#ownsDevice) this.device.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #generate(operation: string, prompts: readonly Prompt[], options: GenerateOptions | undefined) {
    this.#live(operation);
    const settings = readOptions(operation, options, this.#defaults, this.config.vocabSize);
    const tokens = mapItems(prompts, (prompt) => this.#encode(operation, prompt));
    return generateParts(this.#engine(), tokens, settings);
  }

  #encode(operation: string, prompt: Prompt): number[] {
    if (typeof prompt !== "string") {
      const tokens: unknown =
        typeof prompt === "object" && prompt !== null ? prompt.tokens : prompt;
      return Array.from(this.#checkTokens(operation, "prompt.tokens", tokens, 1, 1));
    }
    if (this.tokenizer === null) {
      throw invalid(
        operation,
        "prompt is a text, and the checkpoint has no tokenizer.json",
        "pass { tokens }",
      );
    }
    const tokens = this.tokenizer.encode(prompt);
    return Array.from(this.#checkTokens(operation, "prompt", tokens, 1, 1));
  }

  /** `room`: tokens that must still fit behind them. */
  #checkTokens(
    operation: string,
    name: string,
    tokens: unknown,
    min: number,
    room: number,
  ): Int32Array {
    const ids = checkInts(operation, name, tokens, { max: this.config.vocabSize - 1 });
    const max = this.contextLength - room;
    if (ids.length >= min && ids.length <= max) return ids;
    throw invalid(
      operation,
      `${name} expected ${min} to ${max} tokens, got ${ids.length}`,
      ids.length < min
        ? undefined
        : `the context is ${this.contextLength} of the model's ${this.config.maxPositions}; ` +
            "shorten the prompt, or load with a larger maxTokens",
    );
  }

  #engine(): Engine {
    const { device, cache, contextLength, tokenizer } = this;
    const decode = (ids: readonly number[]) => tokenizer?.decode(ids) ?? "";
    return {
      device,
      cache,
      contextLength,
      transformer: this.#transformer,
      decode,
      graphs: this.#graphs,
    };
  }

  #live(operation: string): void {
    if (!this.disposed) return;
    throw failure("DISPOSED", operation, "the model has been disposed", "load it again");
  }
}
