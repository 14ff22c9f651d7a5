// RoPE frequencies, in float64, from a model's configuration. Angles are position * invFreq[i]; the
// device computes cos and sin from them at any position, so no table has a length.

import {
  checkBoolean,
  checkInt,
  checkNumber,
  checkOneOf,
  checkOptions,
  checkPositive,
  INT32_MAX,
  show,
} from "./check";
import { invalid } from "./errors";

/** How frequencies are stretched beyond the trained length; Hugging Face's fields in camelCase. */
export interface RopeScaling {
  /** Default "default": none. */
  type?: "default" | "linear" | "dynamic" | "yarn" | "longrope" | "llama3";
  /**
   * By how much the context grows; >= 1. Needed by linear, dynamic, llama3; yarn and longrope can
   * derive it.
   */
  factor?: number;
  /**
   * Positions that the model was first trained on. Needed by llama3; default maxPositionEmbeddings.
   */
  originalMaxPositionEmbeddings?: number;
  /** yarn, longrope: factor on cos and sin; default by the method's formula. */
  attentionFactor?: number;
  /** yarn: rotations in the original length above which a frequency is kept. Default 32. */
  betaFast?: number;
  /** yarn: rotations below which a frequency is divided by `factor`. Default 1. */
  betaSlow?: number;
  /** yarn: weights of the attention factor (DeepSeek); both or neither. */
  mscale?: number;
  mscaleAllDim?: number;
  /** yarn: round the ramp's ends to whole dimensions. Default true. */
  truncate?: boolean;
  /** longrope: [rotaryDim / 2] divisors up to the original length, and beyond it. */
  shortFactor?: readonly number[];
  longFactor?: readonly number[];
  /** llama3: bounds of the ramp, in rotations over the original length. */
  lowFreqFactor?: number;
  highFreqFactor?: number;
}

export interface RopeConfig {
  /** Numbers per head. */
  headDim: number;
  /** The base of the frequencies. Default 10000. */
  theta?: number;
  /** How many of a head's first numbers rotate; even. Default headDim * partialRotaryFactor. */
  rotaryDim?: number;
  /** Default 1. */
  partialRotaryFactor?: number;
  /**
   * Pairs (2i, 2i + 1), as in the original Llama, instead of (i, i + rotaryDim / 2). Default false.
   */
  interleaved?: boolean;
  scaling?: RopeScaling;
  /** Longest position the model is made for; what dynamic, yarn and longrope compare with. */
  maxPositionEmbeddings?: number;
}

/** What a configuration comes to: plain numbers, before they go to a device. */
export interface RopeFrequencies {
  headDim: number;
  rotaryDim: number;
  interleaved: boolean;
  theta: number;
  /** [rotaryDim / 2] radians per position. */
  invFreq: Float64Array<ArrayBuffer>;
  /** LongRoPE: those of sequences longer than originalMax. */
  longInvFreq: Float64Array<ArrayBuffer> | null;
  /** Factor on cos and sin. */
  attentionFactor: number;
  /** Dynamic NTK: its factor, else 0. */
  dynamicFactor: number;
  /** Dynamic NTK and LongRoPE: the length beyond which frequencies change, else 0. */
  originalMax: number;
}

const SCALINGS = ["default", "linear", "dynamic", "yarn", "longrope", "llama3"] as const;

type Scaled = Partial<RopeFrequencies>;

/** The checked part of a configuration that every scaling starts from. */
interface Base {
  operation: string;
  theta: number;
  rotaryDim: number;
  /** theta^(-2i / rotaryDim): RoFormer, arXiv:2104.09864, section 3.2. */
  plain: Float64Array<ArrayBuffer>;
  maxPositions: number | undefined;
  originalMax: number | undefined;
  scaling: RopeScaling;
}

function need(base: Base, name: keyof RopeScaling): number {
  const value = base.scaling[name];
  if (value !== undefined) return checkPositive(base.operation, `scaling.${name}`, value);
  throw invalid(base.operation, `scaling.${name} is needed by type "${base.scaling.type}"`);
}

function needOriginalMax(base: Base): number {
  const value = base.originalMax ?? base.maxPositions;
  if (value !== undefined) return value;
  throw invalid(
    base.operation,
    `scaling.originalMaxPositionEmbeddings is needed by type "${base.scaling.type}"`,
    "or pass maxPositionEmbeddings",
  );
}

/** The growth of the context: as given, else the ratio of the lengths. */
function growth(base: Base): number {
  if (base.scaling.factor !== undefined) return need(base, "factor");
  if (base.originalMax === undefined || base.maxPositions === undefined) {
    throw invalid(
      base.operation,
      `scaling.factor is needed by type "${base.scaling.type}"`,
      "or pass maxPositionEmbeddings and scaling.originalMaxPositionEmbeddings",
    );
  }
  return base.maxPositions / base.originalMax;
}

/** Position interpolation: arXiv:2306.15595. */
function linear(base: Base): Scaled {
  const factor = need(base, "factor");
  return { invFreq: base.plain.map((f) => f / factor) };
}

/**
 * Dynamic NTK: the device stretches theta by each sequence's length, as Transformers' `dynamic`
 * does.
 */
function dynamic(base: Base): Scaled {
  if (base.rotaryDim < 4) {
    throw invalid(base.operation, 'scaling.type "dynamic" needs rotaryDim >= 4');
  }
  const originalMax = base.maxPositions ?? needOriginalMax(base);
  return { dynamicFactor: need(base, "factor"), originalMax };
}

/** YaRN: arXiv:2309.00071, section 3.2 (the ramp) and 3.4 (the temperature, 0.1 ln(s) + 1). */
function yarn(base: Base): Scaled {
  const { operation, theta, rotaryDim, scaling } = base;
  const factor = growth(base);
  const originalMax = needOriginalMax(base);
  const betaFast = checkPositive(operation, "scaling.betaFast", scaling.betaFast ?? 32);
  const betaSlow = checkPositive(operation, "scaling.betaSlow", scaling.betaSlow ?? 1);
  const truncate = checkBoolean(operation, "scaling.truncate", scaling.truncate ?? true);

  // The dimension that turns `rotations` times over the original length.
  const dimension = (rotations: number) =>
    (rotaryDim * Math.log(originalMax / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
  const fast = dimension(betaFast);
  const slow = dimension(betaSlow);
  const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
  let high = Math.min(truncate ? Math.ceil(slow) : slow, rotaryDim - 1);
  if (high === low) high += 0.001;
  const invFreq = base.plain.map((f, i) => {
    const stretched = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return (f / factor) * stretched + f * (1 - stretched);
  });

  const temperature = (weight: number) => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  let attentionFactor = temperature(1);
  if (scaling.attentionFactor !== undefined) attentionFactor = need(base, "attentionFactor");
  else if (scaling.mscale && scaling.mscaleAllDim) {
    const [a, b] = [need(base, "mscale"), need(base, "mscaleAllDim")];
    attentionFactor = temperature(a) / temperature(b);
  }
  return { invFreq, attentionFactor };
}

/** LongRoPE: arXiv:2402.13753; attention factor sqrt(1 + ln(s) / ln(original length)). */
function longrope(base: Base): Scaled {
  const { operation, scaling } = base;
  const originalMax = needOriginalMax(base);
  const divided = (name: "shortFactor" | "longFactor") => {
    const divisors = scaling[name];
    if (!Array.isArray(divisors) || divisors.length !== base.plain.length) {
      const expected = `${base.plain.length} numbers, one for each pair`;
      throw invalid(operation, `scaling.${name} expected ${expected}, got ${show(divisors)}`);
    }
    return base.plain.map(
      (f, i) => f / checkPositive(operation, `scaling.${name}[${i}]`, divisors[i]),
    );
  };
  const factor = growth(base);
  let attentionFactor = 1;
  if (scaling.attentionFactor !== undefined) attentionFactor = need(base, "attentionFactor");
  else if (factor > 1) attentionFactor = Math.sqrt(1 + Math.log(factor) / Math.log(originalMax));
  return {
    invFreq: divided("shortFactor"),
    longInvFreq: divided("longFactor"),
    attentionFactor,
    originalMax,
  };
}

/**
 * Llama 3.1's: long waves are divided, short ones kept, a ramp between (Meta's `apply_scaling`).
 */
function llama3(base: Base): Scaled {
  const { operation } = base;
  const factor = need(base, "factor");
  const low = need(base, "lowFreqFactor");
  const high = need(base, "highFreqFactor");
  if (high <= low) {
    throw invalid(
      operation,
      `scaling.highFreqFactor expected > lowFreqFactor, got ${high} and ${low}`,
    );
  }
  const originalMax = need(base, "originalMaxPositionEmbeddings");
  return {
    invFreq: base.plain.map((f) => {
      const rotations = (originalMax * f) / (2 * Math.PI);
      const kept = Math.min(1, Math.max(0, (rotations - low) / (high - low)));
      return (1 - kept) * (f / factor) + kept * f;
    }),
  };
}

const METHODS: Record<(typeof SCALINGS)[number], (base: Base) => Scaled> = {
  default: () => ({}),
  linear,
  dynamic,
  yarn,
  longrope,
  llama3,
};

/** The frequencies of a configuration. Throws INVALID_ARGUMENT naming the field. */
export function ropeFrequencies(operation: string, config: RopeConfig): RopeFrequencies {
  if (config === undefined) throw invalid(operation, "config expected { headDim, … }");
  const given = checkOptions(
    operation,
    config,
    [
      "headDim",
      "theta",
      "rotaryDim",
      "partialRotaryFactor",
      "interleaved",
      "scaling",
      "maxPositionEmbeddings",
    ],
    "config",
  );
  const headDim = checkInt(operation, "headDim", given.headDim, 2);
  const theta = checkPositive(operation, "theta", given.theta ?? 10000);
  if (theta <= 1) throw invalid(operation, `theta expected > 1, got ${theta}`);
  const partial = checkNumber(
    operation,
    "partialRotaryFactor",
    given.partialRotaryFactor ?? 1,
    0,
    1,
  );
  const rotaryDim = checkInt(
    operation,
    "rotaryDim",
    given.rotaryDim ?? Math.trunc(headDim * partial),
    2,
    headDim,
  );
  if (rotaryDim % 2 !== 0)
    throw invalid(operation, `rotaryDim expected an even number, got ${rotaryDim}`);
  const scaling = checkOptions(
    operation,
    given.scaling,
    [
      "type",
      "factor",
      "originalMaxPositionEmbeddings",
      "attentionFactor",
      "betaFast",
      "betaSlow",
      "mscale",
      "mscaleAllDim",
      "truncate",
      "shortFactor",
      "longFactor",
      "lowFreqFactor",
      "highFreqFactor",
    ],
    "scaling",
  );
  const length = (name: string, value: unknown) =>
    value === undefined ? undefined : checkInt(operation, name, value, 2, INT32_MAX);
  const type = checkOneOf(operation, "scaling.type", scaling.type ?? "default", SCALINGS);
  const half = rotaryDim / 2;
  const plain = Float64Array.from({ length: half }, (_, i) => theta ** (-i / half));
  const scaled = METHODS[type]({
    operation,
    theta,
    rotaryDim,
    plain,
    maxPositions: length("maxPositionEmbeddings", given.maxPositionEmbeddings),
    originalMax: length(
      "scaling.originalMaxPositionEmbeddings",
      scaling.originalMaxPositionEmbeddings,
    ),
    scaling: { ...scaling, type },
  });
  return {
    headDim,
    rotaryDim,
    interleaved: checkBoolean(operation, "interleaved", given.interleaved ?? false),
    theta,
    invFreq: plain,
    longInvFreq: null,
    attentionFactor: 1,
    dynamicFactor: 0,
    originalMax: 0,
    ...scaled,
  };
}
