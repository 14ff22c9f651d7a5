import { checkInternal, INTERNAL, show } from "./check";
import type { Device } from "./device";
import { failure, invalid } from "./errors";
import type { RopeArgs } from "./native";
import {
  type RopeConfig,
  type RopeFrequencies,
  type RopeScaling,
  ropeFrequencies,
} from "./rope-frequencies";
import type { Tensor } from "./tensor";

export type { RopeConfig, RopeScaling } from "./rope-frequencies";

/**
 * RoPE frequencies on a device. Made by `device.rope(config)`; used by `rope`, `appendKv` and
 * caches.
 */
export class RopeTable {
  readonly device: Device;
  readonly headDim: number;
  /** How many of a head's first numbers rotate. */
  readonly rotaryDim: number;
  readonly interleaved: boolean;
  /** Factor on cos and sin. */
  readonly attentionFactor: number;
  /** [rotaryDim / 2] radians per position, before what a sequence's length changes. */
  readonly invFreq: Readonly<Float64Array>;
  readonly #frequencies: RopeFrequencies;
  readonly #onDevice: Tensor;
  readonly #longOnDevice: Tensor | null;

  private constructor(key: symbol, device: Device, config: RopeConfig) {
    checkInternal(key, "RopeTable", "device.rope(config)");
    const frequencies = ropeFrequencies("Device.rope", config);
    this.device = device;
    this.headDim = frequencies.headDim;
    this.rotaryDim = frequencies.rotaryDim;
    this.interleaved = frequencies.interleaved;
    this.attentionFactor = frequencies.attentionFactor;
    this.invFreq = frequencies.invFreq.slice();
    this.#frequencies = frequencies;
    this.#onDevice = doubles(device, frequencies.invFreq);
    this.#longOnDevice =
      frequencies.longInvFreq === null ? null : doubles(device, frequencies.longInvFreq);
  }

  /** @internal Behind `device.rope`. */
  static make(device: Device, config: RopeConfig): RopeTable {
    return new RopeTable(INTERNAL, device, config);
  }

  /** Whether `value` is a RopeTable, made by this copy of the module. */
  static isRopeTable(value: unknown): value is RopeTable {
    return typeof value === "object" && value !== null && #frequencies in value;
  }

  get disposed(): boolean {
    return this.#onDevice.disposed;
  }

  /** Gives its memory up, behind the work enqueued on it. May be called again. */
  dispose(): void {
    this.#onDevice.dispose();
    this.#longOnDevice?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal A text that two tables share only if they rotate alike. */
  get identity(): string {
    return JSON.stringify(this.#frequencies, (_, value: unknown) =>
      value instanceof Float64Array ? [...value] : value,
    );
  }

  /** @internal The native arguments. */
  args(operation: string): RopeArgs {
    const f = this.#frequencies;
    return {
      invFreq: this.#onDevice.ref(operation, "rope"),
      longInvFreq: this.#longOnDevice?.ref(operation, "rope") ?? null,
      base: f.theta,
      dynamicFactor: f.dynamicFactor,
      attentionFactor: f.attentionFactor,
      longAttentionFactor: f.attentionFactor,
      half: f.rotaryDim / 2,
      originalMax: f.originalMax,
    };
  }
}

/** float64 is no tensor dtype: the bits travel as pairs of int32. Not part of a running tidy(). */
function doubles(device: Device, values: Float64Array<ArrayBuffer>): Tensor {
  const tensor = device.tensor(new Int32Array(values.buffer), [values.length * 2]);
  device.untrack(tensor);
  return tensor;
}

/** A live RoPE table of this device for heads of `headDim` numbers. */
export function ropeArgument(
  operation: string,
  name: string,
  value: unknown,
  device: Device,
  headDim: number,
): RopeTable {
  if (!RopeTable.isRopeTable(value)) {
    throw invalid(
      operation,
      `${name} expected a RopeTable, got ${show(value)}`,
      "make one with device.rope(config)",
    );
  }
  value.args(operation);
  if (value.device !== device) {
    throw invalid(
      operation,
      `${name} lies on another device`,
      "make one with this device's rope()",
    );
  }
  if (value.headDim !== headDim) {
    throw invalid(operation, `${name} expected headDim ${headDim}, got ${value.headDim}`);
  }
  return value;
}

type Fields = Readonly<Record<string, unknown>>;

function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const RENAMED: ReadonlyMap<unknown, RopeScaling["type"]> = new Map([["su", "longrope"]]);

/**
 * The RoPE settings of a Hugging Face `config.json`, in the spelling of Transformers 5
 * (`rope_parameters`) or 4 (`rope_theta` and `rope_scaling`), for `device.rope`, which checks the
 * values. Throws INVALID_ARGUMENT where heads cannot be measured, UNSUPPORTED for settings per
 * layer type.
 */
export function ropeFromConfig(config: Readonly<Record<string, unknown>>): RopeConfig {
  const operation = "ropeFromConfig";
  if (!isFields(config)) throw invalid(operation, `config expected an object, got ${show(config)}`);
  const settings = config.rope_parameters ?? config.rope_scaling ?? {};
  if (!isFields(settings)) {
    throw invalid(operation, `rope_parameters expected an object, got ${show(settings)}`);
  }
  if (Object.values(settings).some(isFields)) {
    throw failure(
      "UNSUPPORTED",
      operation,
      "rope_parameters differ by layer type",
      "pass the settings of one layer type as rope_parameters",
    );
  }
  // JSON says null for what is not set. Values are checked where the table is made.
  const pick = (...places: unknown[]) => places.find((v) => v !== undefined && v !== null) as never;
  const headDim = pick(
    config.head_dim,
    Number(config.hidden_size) / Number(config.num_attention_heads),
  );
  const name: RopeScaling["type"] = pick(settings.rope_type, settings.type);
  return {
    headDim,
    theta: pick(settings.rope_theta, config.rope_theta),
    partialRotaryFactor: pick(settings.partial_rotary_factor, config.partial_rotary_factor),
    maxPositionEmbeddings: pick(config.max_position_embeddings),
    scaling: {
      type: RENAMED.get(name) ?? name,
      factor: pick(settings.factor),
      originalMaxPositionEmbeddings: pick(
        settings.original_max_position_embeddings,
        config.original_max_position_embeddings,
      ),
      attentionFactor: pick(settings.attention_factor),
      betaFast: pick(settings.beta_fast),
      betaSlow: pick(settings.beta_slow),
      mscale: pick(settings.mscale),
      mscaleAllDim: pick(settings.mscale_all_dim),
      truncate: pick(settings.truncate),
      shortFactor: pick(settings.short_factor),
      longFactor: pick(settings.long_factor),
      lowFreqFactor: pick(settings.low_freq_factor),
      highFreqFactor: pick(settings.high_freq_factor),
    },
  };
}
