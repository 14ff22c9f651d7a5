// What a checkpoint's config.json says, checked. The file is untrusted: every number is bounded
// before anything is allocated by it, and what this runner does not compute is refused by name
// instead of ignored.

import type { DType } from "../dtype";
import { type RopeConfig, ropeFromConfig } from "../rope";
import { Fields } from "./fields";

export interface LlamaConfig {
  readonly architecture: string;
  readonly numLayers: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numQHeads: number;
  readonly numKvHeads: number;
  /** Need not be hiddenSize / numQHeads. */
  readonly headDim: number;
  readonly vocabSize: number;
  readonly maxPositions: number;
  readonly rmsNormEps: number;
  /** Keys each layer's queries see, their own position included; 0: no limit. */
  readonly windows: readonly number[];
  readonly rope: RopeConfig;
  readonly qkvBias: boolean;
  readonly oBias: boolean;
  /** An RMSNorm over each head of q and k before RoPE (Qwen3). */
  readonly qkNorm: boolean;
  readonly tieEmbeddings: boolean;
  /** The checkpoint's own dtype. */
  readonly dtype: DType;
}

interface Architecture {
  readonly modelType: string;
  readonly window: "none" | "all" | "upper layers";
  readonly qkvBias: boolean | "attention_bias";
  readonly oBias: boolean | "attention_bias";
  readonly qkNorm: boolean;
}

const ARCHITECTURES: Readonly<Record<string, Architecture>> = {
  LlamaForCausalLM: {
    modelType: "llama",
    window: "none",
    qkvBias: "attention_bias",
    oBias: "attention_bias",
    qkNorm: false,
  },
  MistralForCausalLM: {
    modelType: "mistral",
    window: "all",
    qkvBias: false,
    oBias: false,
    qkNorm: false,
  },
  Qwen2ForCausalLM: {
    modelType: "qwen2",
    window: "upper layers",
    qkvBias: true,
    oBias: false,
    qkNorm: false,
  },
  Qwen3ForCausalLM: {
    modelType: "qwen3",
    window: "upper layers",
    qkvBias: "attention_bias",
    oBias: "attention_bias",
    qkNorm: true,
  },
};

// Far above any published decoder, far below what overflows an element count.
const MAX_LAYERS = 1024;
const MAX_HEADS = 4096;
const MAX_WIDTH = 1 << 20;
const MAX_VOCAB = 1 << 24;
const MAX_POSITIONS = 1 << 30;

/** `json` is config.json as transformers 4 or 5 writes it. */
export function parseConfig(json: unknown, file = "config.json"): LlamaConfig {
  const fields = Fields.of(json, file);
  const [name, architecture] = findArchitecture(fields);
  refuseUnsupported(fields);

  const numLayers = fields.int("num_hidden_layers", 1, MAX_LAYERS);
  const hiddenSize = fields.int("hidden_size", 1, MAX_WIDTH);
  const numQHeads = fields.int("num_attention_heads", 1, MAX_HEADS);
  const numKvHeads = fields.int(
    "num_key_value_heads",
    1,
    MAX_HEADS,
    // Absent means multi-head attention in Llama, and a class default elsewhere.
    architecture.modelType === "llama" ? numQHeads : undefined,
  );
  if (numQHeads % numKvHeads !== 0) {
    throw fields.fail("num_key_value_heads", `a divisor of num_attention_heads ${numQHeads}`);
  }
  if (fields.get("head_dim") === undefined && hiddenSize % numQHeads !== 0) {
    throw fields.fail(
      "head_dim",
      `a value, as hidden_size ${hiddenSize} / ${numQHeads} heads is not whole`,
    );
  }
  const attentionBias = fields.bool("attention_bias", false);
  const bias = (rule: boolean | "attention_bias") =>
    rule === "attention_bias" ? attentionBias : rule;

  return {
    architecture: name,
    numLayers,
    hiddenSize,
    intermediateSize: fields.int("intermediate_size", 1, MAX_WIDTH),
    numQHeads,
    numKvHeads,
    headDim: fields.int("head_dim", 1, MAX_WIDTH, hiddenSize / numQHeads),
    vocabSize: fields.int("vocab_size", 1, MAX_VOCAB),
    maxPositions: fields.int("max_position_embeddings", 1, MAX_POSITIONS),
    rmsNormEps: fields.number("rms_norm_eps", (x) => x >= 0 && x < 1, "a number in [0, 1)"),
    windows: readWindows(fields, architecture, numLayers),
    rope: ropeFromConfig(json as Record<string, unknown>),
    qkvBias: bias(architecture.qkvBias),
    oBias: bias(architecture.oBias),
    qkNorm: architecture.qkNorm,
    tieEmbeddings: fields.bool("tie_word_embeddings", false),
    dtype: readDtype(fields),
  };
}

function findArchitecture(fields: Fields): [string, Architecture] {
  const names = fields.get("architectures");
  const modelType = fields.get("model_type");
  if (names !== undefined && (!Array.isArray(names) || names.length !== 1)) {
    throw fields.fail("architectures", "a list of one name");
  }
  const found = Object.entries(ARCHITECTURES).find(([name, { modelType: type }]) =>
    names === undefined ? type === modelType : name === names[0],
  );
  if (found === undefined) {
    const field = names === undefined ? "model_type" : "architectures";
    if (fields.get(field) === undefined) throw fields.fail(field, "a name");
    throw fields.unsupported(field, Object.keys(ARCHITECTURES).join(", "));
  }
  if (modelType !== undefined && modelType !== found[1].modelType) {
    throw fields.fail("model_type", `"${found[1].modelType}" as architectures says ${found[0]}`);
  }
  return found;
}

function refuseUnsupported(fields: Fields): void {
  const act = fields.get("hidden_act");
  if (act !== undefined && act !== "silu") throw fields.unsupported("hidden_act", '"silu"');
  if (fields.bool("mlp_bias", false)) throw fields.unsupported("mlp_bias", "mlp_bias false");
  for (const name of ["quantization_config", "attention_chunk_size", "num_local_experts"]) {
    if (fields.get(name) !== undefined) throw fields.unsupported(name, `models without ${name}`);
  }
}

/**
 * One window per layer. `layer_types` decides where it is given; else the architecture's own rule.
 */
function readWindows(fields: Fields, architecture: Architecture, numLayers: number): number[] {
  const inUse =
    architecture.window === "upper layers"
      ? fields.bool("use_sliding_window", false)
      : architecture.window === "all";
  const window = readWindow(fields, architecture);
  if (window > 0 && architecture.window === "none") {
    throw fields.unsupported("sliding_window", "this architecture without a window");
  }
  const types = fields.get("layer_types");
  if (types === undefined) {
    const first =
      architecture.window === "upper layers" && inUse && window > 0
        ? fields.int("max_window_layers", 0, MAX_POSITIONS, 28)
        : 0;
    return Array.from({ length: numLayers }, (_, layer) => (inUse && layer >= first ? window : 0));
  }
  if (!Array.isArray(types) || types.length !== numLayers) {
    throw fields.fail("layer_types", `a list of num_hidden_layers ${numLayers} names`);
  }
  return types.map((type: unknown) => {
    if (type === "full_attention") return 0;
    if (type !== "sliding_attention") {
      throw fields.unsupported("layer_types", '"full_attention" and "sliding_attention"');
    }
    if (!inUse || window === 0) {
      throw fields.fail("sliding_window", "a window in use, as layer_types has sliding_attention");
    }
    return window;
  });
}

function readWindow(fields: Fields, architecture: Architecture): number {
  if (fields.get("sliding_window") !== undefined) {
    return fields.int("sliding_window", 1, MAX_POSITIONS);
  }
  // null says "no window"; leaving it out means transformers' default for Mistral.
  return architecture.modelType === "mistral" && !fields.has("sliding_window") ? 4096 : 0;
}

function readDtype(fields: Fields): DType {
  const name = fields.get("dtype") === undefined ? "torch_dtype" : "dtype";
  const value = fields.get(name) ?? "float32";
  if (value === "float32" || value === "float16" || value === "bfloat16") return value;
  throw fields.unsupported(name, "float32, float16 and bfloat16");
}

/** What generation_config.json adds: the tokens that end a text, and how to sample by default. */
export interface GenerationDefaults {
  readonly eosTokens: readonly number[];
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
}

/**
 * `json` is generation_config.json, or undefined where there is none; `config` is config.json's
 * contents.
 */
export function parseGenerationDefaults(
  json: unknown,
  config: unknown,
  vocabSize: number,
): GenerationDefaults {
  const fields = Fields.of(json ?? {}, "generation_config.json");
  const source =
    fields.get("eos_token_id") === undefined ? Fields.of(config, "config.json") : fields;
  const eos = source.get("eos_token_id") ?? [];
  const eosTokens = Array.isArray(eos) ? eos : [eos];
  if (eosTokens.some((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize)) {
    throw source.fail("eos_token_id", `token ids below vocab_size ${vocabSize}`);
  }
  return {
    eosTokens,
    temperature: fields.number("temperature", (x) => x >= 0, "a number >= 0", 1),
    topK: fields.int("top_k", 0, MAX_VOCAB, 0),
    topP: fields.number("top_p", (x) => x > 0 && x <= 1, "a number in (0, 1]", 1),
  };
}
