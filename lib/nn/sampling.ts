import { randomInt } from "node:crypto";
import { checkInt, checkOptions, FLOAT32_MIN, INT32_MAX, show, showShape } from "../check";
import type { Device } from "../device";
import { invalid } from "../errors";
import { sample as enqueueSample, topK as enqueueTopK } from "../native";
import { checkOutput, expectApart, expectContiguous, tensorArgument } from "../ops/arguments";
import {
  type Floats,
  floatWords,
  hostWords,
  type Ints,
  intWords,
  type Limits,
  Staging,
  type Words,
} from "../ops/staging";
import { Tensor } from "../tensor";

const MAX_TOP_K = 64;

/** [rows, vocabSize], contiguous, with something to choose from. */
function logitsArgument(operation: string, logits: Tensor): Tensor {
  tensorArgument(operation, "logits", logits, ["rows", "vocabSize"]);
  expectContiguous(operation, "logits", logits);
  if (logits.shape[1]! >= 1) return logits;
  throw invalid(operation, `logits expected a vocabulary, got ${showShape(logits.shape)}`);
}

export interface TopKOptions {
  /** [rows, k] int32: where to write the ids. */
  ids?: Tensor;
  /** [rows, k] float32: where to write the log-probabilities. */
  logProbs?: Tensor;
}

/**
 * The k largest logits of each row, descending, ties to the smaller id, with log-probabilities
 * under the full softmax.
 *
 * @param logits [rows, vocabSize], any float dtype, contiguous
 * @param k 1 to 64, at most vocabSize
 * @returns ids [rows, k] int32 and logProbs [rows, k] float32
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY
 */
export function topK(
  logits: Tensor,
  k: number,
  options?: TopKOptions,
): { ids: Tensor; logProbs: Tensor } {
  const operation = "topK";
  const { device, dtype, shape } = logitsArgument(operation, logits);
  const [rows, vocabSize] = shape as [number, number];
  const most = Math.min(MAX_TOP_K, vocabSize);
  const outShape = [rows, checkInt(operation, "k", k, 1, most)];
  const given = checkOptions(operation, options, ["ids", "logProbs"]);
  const out = outputs(operation, device, outShape, given, { logits });
  if (rows === 0) return out;
  enqueueTopK(device.handle, {
    logits: logits.ref(operation),
    ids: out.ids.ref(operation),
    logProbs: out.logProbs.ref(operation),
    dtype,
    rows,
    vocabSize,
    k,
  });
  return out;
}

export interface SampleOptions {
  /** [rows] or one for all, >= 0. 0 takes the largest logit. Default 1. */
  temperature?: number | Floats;
  /** [rows] or one for all: only the k largest logits. Default 0: off. */
  topK?: number | Ints;
  /**
   * [rows] or one for all, in (0, 1]: the smallest set of tokens with this probability. Default 1:
   * off.
   */
  topP?: number | Floats;
  /**
   * Integers in [0, 2^53), [rows] or one for all, or int32 bits [rows, 2] (low, high). Default:
   * drawn anew.
   */
  seed?: number | readonly number[] | Tensor;
  /**
   * [rows] or one for all: which draw of its seed this is. Raise it from token to token. Default 0.
   */
  counter?: number | Ints;
  /** [rows] int32: where to write the ids. */
  ids?: Tensor;
  /** [rows] float32: where to write the log-probabilities. */
  logProbs?: Tensor;
}

/**
 * Draws one token per row: temperature, then top-k, then top-p over the whole vocabulary, then one
 * number of Philox4x32-10 (Salmon et al. 2011) by seed and counter. The same seed, counter and
 * logits draw the same token on every device. Options given as tensors are read on the device, so
 * that a captured graph can be replayed with others.
 *
 * @param logits [rows, vocabSize], any float dtype, contiguous
 * @returns ids [rows] int32, and logProbs [rows] float32 under the full softmax at temperature 1
 * @throws GqaError INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY, BUSY
 */
export function sample(logits: Tensor, options?: SampleOptions): { ids: Tensor; logProbs: Tensor } {
  const operation = "sample";
  const { device, dtype, shape } = logitsArgument(operation, logits);
  const [rows, vocabSize] = shape as [number, number];
  const given = checkOptions(operation, options, [
    "temperature",
    "topK",
    "topP",
    "seed",
    "counter",
    "ids",
    "logProbs",
  ]);
  const perRow = <T>(value: number | T) =>
    typeof value === "number" ? new Array<number>(rows).fill(value) : value;
  const floats = (name: string, value: number | Floats, limits: Limits) =>
    floatWords(operation, name, perRow(value), device, { ...limits, length: rows });
  const ints = (name: string, value: number | Ints) =>
    intWords(operation, name, perRow(value), device, { length: rows, max: INT32_MAX });

  const temperature = floats("temperature", given.temperature ?? 1, { min: 0 });
  const topKs = ints("topK", given.topK ?? 0);
  // Zero is no probability to reach.
  const topP = floats("topP", given.topP ?? 1, { min: FLOAT32_MIN, max: 1 });
  const seed = seedArgument(operation, device, perRow(given.seed ?? randomInt(2 ** 48 - 1)), rows);
  const counter = ints("counter", given.counter ?? 0);
  const out = outputs(operation, device, [rows], given, {
    logits,
    temperature: temperature.tensor,
    topK: topKs.tensor,
    topP: topP.tensor,
    seed: seed.tensor,
    counter: counter.tensor,
  });
  if (rows === 0) return out;
  const staging = new Staging(operation, device);
  const places = [temperature, topKs, topP, seed, counter].map((words) => staging.add(words));
  staging.run(() => {
    const [t, k, p, s, c] = places.map((place) => place()!);
    enqueueSample(device.handle, {
      logits: logits.ref(operation),
      ids: out.ids.ref(operation),
      logProbs: out.logProbs.ref(operation),
      temperature: t!,
      topK: k!,
      topP: p!,
      seed: s!,
      counter: c!,
      dtype,
      rows,
      vocabSize,
    });
  });
  return out;
}

function seedArgument(operation: string, device: Device, value: unknown, rows: number): Words {
  if (Tensor.isTensor(value)) {
    const expected = { device, dtype: "int32" } as const;
    const tensor = tensorArgument(operation, "seed", value, [rows, 2], expected);
    expectContiguous(operation, "seed", tensor);
    return { length: tensor.size, host: null, tensor };
  }
  if (!Array.isArray(value) || value.length !== rows) {
    const what = `seed expected an integer or ${rows} of them, got ${show(value)}`;
    throw invalid(operation, what);
  }
  const seeds = Array.from(value, (seed: unknown, row) =>
    checkInt(operation, `seed[${row}]`, seed, 0, Number.MAX_SAFE_INTEGER),
  );
  return hostWords(seedWords(seeds));
}

/** [rows, 2] words, low and high, of integers in [0, 2^53). */
export function seedWords(seeds: readonly number[]): Int32Array {
  const words = new Int32Array(seeds.length * 2);
  for (const [row, seed] of seeds.entries()) {
    words[2 * row] = (seed % 2 ** 32) | 0;
    words[2 * row + 1] = Math.floor(seed / 2 ** 32);
  }
  return words;
}

function outputs(
  operation: string,
  device: Device,
  shape: readonly number[],
  given: { ids?: Tensor; logProbs?: Tensor },
  inputs: Readonly<Record<string, Tensor | null>>,
): { ids: Tensor; logProbs: Tensor } {
  const ids = checkOutput(operation, "ids", given.ids, shape, "int32", device, inputs);
  const logProbs = checkOutput(
    operation,
    "logProbs",
    given.logProbs,
    shape,
    "float32",
    device,
    inputs,
  );
  if (ids !== undefined) expectApart(operation, "ids", ids, { logProbs });
  return {
    ids: ids ?? device.allocate(operation, shape, "int32"),
    logProbs: logProbs ?? device.allocate(operation, shape, "float32"),
  };
}
