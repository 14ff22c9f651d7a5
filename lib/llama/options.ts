// What a caller may ask of a generation, checked once, before anything runs.

import { randomInt } from "node:crypto";
import {
  checkInt,
  checkInts,
  checkNumber,
  checkOptions,
  checkZeroOr,
  FLOAT32_MIN,
  mapItems,
  show,
} from "../check";
import { invalid } from "../errors";
import { checkSignal } from "../signal";
import type { GenerationDefaults } from "./config";

export interface GenerateOptions {
  /** Tokens to write at most, for each prompt. Default 256. */
  maxTokens?: number;
  /**
   * 0 takes the most probable token each time. Defaults to the checkpoint's generation_config.json,
   * else 1.
   */
  temperature?: number;
  /** Draws among the k most probable tokens only; 0: all. Defaults as temperature, else 0. */
  topK?: number;
  /**
   * Draws among the most probable tokens that together reach p; 1: all. Defaults as temperature,
   * else 1.
   */
  topP?: number;
  /** The same seed, prompt and options give the same text. Default: a new one each time. */
  seed?: number;
  /** The text ends before the first of these strings, which is not part of it. */
  stop?: string | readonly string[];
  /** Token ids that end the text. Defaults to the checkpoint's eos_token_id; [] lets it run on. */
  stopTokens?: readonly number[];
  /** Gives this many most probable tokens with each token, in `top`. At most 64, default 0. */
  logprobs?: number;
  /** Aborting it ends the iteration with ABORTED; the pages go back to the cache. */
  signal?: AbortSignal;
}

/**
 * A text, which is tokenized with the checkpoint's special tokens, or token ids, which are taken as
 * they are.
 */
export type Prompt = string | { readonly tokens: readonly number[] | Int32Array };

/** Options with every default filled in. */
export interface Settings {
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly seed: number;
  readonly stop: readonly string[];
  readonly stopTokens: ReadonlySet<number>;
  readonly logprobs: number;
  readonly signal: AbortSignal | undefined;
}

const MAX_LOGPROBS = 64;
// Prompt i of a batch draws with seed + i, which must stay exact.
const MAX_SEED = 2 ** 52;

export function readOptions(
  operation: string,
  options: GenerateOptions | undefined,
  defaults: GenerationDefaults,
  vocabSize: number,
): Settings {
  const given = checkOptions(operation, options, [
    "maxTokens",
    "temperature",
    "topK",
    "topP",
    "seed",
    "stop",
    "stopTokens",
    "logprobs",
    "signal",
  ]);
  const topP = checkNumber(operation, "topP", given.topP ?? defaults.topP, 0, 1);
  if (topP < FLOAT32_MIN) {
    throw invalid(
      operation,
      `topP expected more than 0 in float32, got ${topP}`,
      "1 is off, and topK: 1 is greedy",
    );
  }
  const stopTokens = checkInts(operation, "stopTokens", given.stopTokens ?? defaults.eosTokens, {
    max: vocabSize - 1,
  });
  return {
    maxTokens: checkInt(operation, "maxTokens", given.maxTokens ?? 256, 1),
    temperature: checkZeroOr(operation, "temperature", given.temperature ?? defaults.temperature),
    topK: checkInt(operation, "topK", given.topK ?? defaults.topK),
    topP,
    seed: checkInt(operation, "seed", given.seed ?? randomInt(2 ** 47), 0, MAX_SEED),
    stop: readStop(operation, given.stop),
    stopTokens: new Set(stopTokens),
    logprobs: checkInt(
      operation,
      "logprobs",
      given.logprobs ?? 0,
      0,
      Math.min(MAX_LOGPROBS, vocabSize),
    ),
    signal: checkSignal(operation, given.signal),
  };
}

function readStop(operation: string, stop: unknown): readonly string[] {
  if (stop === undefined) return [];
  return mapItems(Array.isArray(stop) ? stop : [stop], (item) => {
    if (typeof item === "string" && item !== "") return item;
    throw invalid(operation, `stop expected strings with a character in them, got ${show(item)}`);
  });
}
