// The checkpoint's tensors on the device. What each weight must look like follows from the config
// and is checked against the headers before the first byte is allocated; the bytes then go from
// file to device on a native thread.

import type { Device } from "../device";
import type { DType } from "../dtype";
import { failure } from "../errors";
import type { Tensor } from "../tensor";
import type { LlamaConfig } from "./config";
import { show } from "./fields";
import type { StoredTensor } from "./safetensors";

const OPERATION = "Llama.load";
const FILE_DTYPES: Readonly<Record<string, DType>> = {
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
};

/**
 * Projections that read the same input lie in one tensor, one below the other: one matrix product
 * for all.
 */
export interface LayerWeights {
  readonly inputNorm: Tensor; // [hidden]
  readonly qkv: Tensor; // [(numQHeads + 2 * numKvHeads) * headDim, hidden]
  readonly qkvBias: Tensor | null; // [(numQHeads + 2 * numKvHeads) * headDim]
  readonly qNorm: Tensor | null; // [headDim]
  readonly kNorm: Tensor | null; // [headDim]
  readonly o: Tensor; // [hidden, numQHeads * headDim]
  readonly oBias: Tensor | null; // [hidden]
  readonly mlpNorm: Tensor; // [hidden]
  readonly gateUp: Tensor; // [2 * intermediate, hidden]
  readonly down: Tensor; // [hidden, intermediate]
}

export interface Weights {
  readonly embedding: Tensor; // [vocab, hidden]
  readonly layers: readonly LayerWeights[];
  readonly finalNorm: Tensor; // [hidden]
  readonly lmHead: Tensor; // [vocab, hidden]; the embedding itself where they are tied
}

/** A tensor to make of stored ones, stacked along axis 0. */
interface Spec {
  readonly parts: readonly { readonly name: string; readonly rows: number }[];
  /** Sizes of the axes after the first. */
  readonly row: readonly number[];
}

/** The same tree as T with something else in each tensor's place. */
type Specs<T> = { [K in keyof T]: null extends T[K] ? Spec | null : Spec };

function layerSpecs(config: LlamaConfig, layer: number): Specs<LayerWeights> {
  const { hiddenSize, intermediateSize, headDim, numQHeads, numKvHeads } = config;
  const prefix = `model.layers.${layer}`;
  const qRows = numQHeads * headDim;
  const kvRows = numKvHeads * headDim;
  const vector = (name: string, rows: number): Spec => ({
    parts: [{ name: `${prefix}.${name}`, rows }],
    row: [],
  });
  const qkv = (kind: string, row: readonly number[]): Spec => ({
    parts: [
      { name: `${prefix}.self_attn.q_proj.${kind}`, rows: qRows },
      { name: `${prefix}.self_attn.k_proj.${kind}`, rows: kvRows },
      { name: `${prefix}.self_attn.v_proj.${kind}`, rows: kvRows },
    ],
    row,
  });
  return {
    inputNorm: vector("input_layernorm.weight", hiddenSize),
    qkv: qkv("weight", [hiddenSize]),
    qkvBias: config.qkvBias ? qkv("bias", []) : null,
    qNorm: config.qkNorm ? vector("self_attn.q_norm.weight", headDim) : null,
    kNorm: config.qkNorm ? vector("self_attn.k_norm.weight", headDim) : null,
    o: { ...vector("self_attn.o_proj.weight", hiddenSize), row: [qRows] },
    oBias: config.oBias ? vector("self_attn.o_proj.bias", hiddenSize) : null,
    mlpNorm: vector("post_attention_layernorm.weight", hiddenSize),
    gateUp: {
      parts: [
        { name: `${prefix}.mlp.gate_proj.weight`, rows: intermediateSize },
        { name: `${prefix}.mlp.up_proj.weight`, rows: intermediateSize },
      ],
      row: [hiddenSize],
    },
    down: { ...vector("mlp.down_proj.weight", hiddenSize), row: [intermediateSize] },
  };
}

interface WeightSpecs {
  readonly embedding: Spec;
  readonly layers: readonly Specs<LayerWeights>[];
  readonly finalNorm: Spec;
  readonly lmHead: Spec | null;
}

function weightSpecs(config: LlamaConfig): WeightSpecs {
  const table = (name: string): Spec => ({
    parts: [{ name, rows: config.vocabSize }],
    row: [config.hiddenSize],
  });
  return {
    embedding: table("model.embed_tokens.weight"),
    layers: Array.from({ length: config.numLayers }, (_, layer) => layerSpecs(config, layer)),
    finalNorm: { parts: [{ name: "model.norm.weight", rows: config.hiddenSize }], row: [] },
    lmHead: config.tieEmbeddings ? null : table("lm_head.weight"),
  };
}

function allSpecs(specs: WeightSpecs): Spec[] {
  const layers = specs.layers.flatMap((layer) => Object.values(layer) as (Spec | null)[]);
  return [specs.embedding, ...layers, specs.finalNorm, specs.lmHead].filter(
    (spec) => spec !== null,
  );
}

/** Refuses a checkpoint that is not the one config.json describes. Returns the bytes to read. */
export function checkCheckpoint(config: LlamaConfig, stored: Map<string, StoredTensor>): number {
  const unused = new Set(stored.keys());
  let bytes = 0;
  for (const spec of allSpecs(weightSpecs(config))) {
    for (const { name, rows } of spec.parts) {
      const tensor = stored.get(name);
      const shape = [rows, ...spec.row];
      if (tensor === undefined) {
        throw failure(
          "CORRUPT_DATA",
          OPERATION,
          `tensor ${name} ${show(shape)} is missing`,
          "the checkpoint does not fit its config.json",
        );
      }
      if (
        tensor.shape.length !== shape.length ||
        tensor.shape.some((size, i) => size !== shape[i])
      ) {
        throw failure(
          "CORRUPT_DATA",
          OPERATION,
          `tensor ${name} expected shape ${show(shape)}, got ${show(tensor.shape)}`,
        );
      }
      if (FILE_DTYPES[tensor.dtype] === undefined) {
        throw failure(
          "UNSUPPORTED",
          OPERATION,
          `tensor ${name} expected dtype F32, F16 or BF16, got ${tensor.dtype}`,
          "quantised checkpoints are not read: take the 16-bit one",
        );
      }
      unused.delete(name);
      bytes += tensor.bytes;
    }
  }
  refuseUnused(config, unused);
  return bytes;
}

/** A tensor that no operation here reads means another computation than this one. */
function refuseUnused(config: LlamaConfig, names: Set<string>): void {
  for (const name of names) {
    // Recomputed from the config, and the second copy of a tied matrix.
    if (name.endsWith(".rotary_emb.inv_freq")) continue;
    if (name === "lm_head.weight" && config.tieEmbeddings) continue;
    throw failure(
      "UNSUPPORTED",
      OPERATION,
      `tensor ${name} is not part of ${config.architecture} with this config.json`,
      "the model computes something that this runner does not",
    );
  }
}

/**
 * Loads what `checkCheckpoint` has accepted, as `dtype`. The caller owns the tensors; on failure
 * none is left.
 */
export async function loadWeights(
  device: Device,
  config: LlamaConfig,
  stored: Map<string, StoredTensor>,
  dtype: DType,
  onBytes: (bytes: number) => void,
): Promise<Weights> {
  const made: Tensor[] = [];
  const load = async (spec: Spec): Promise<Tensor> => {
    const rows = spec.parts.reduce((sum, part) => sum + part.rows, 0);
    const tensor = device.allocate("Llama.load", [rows, ...spec.row], dtype);
    made.push(tensor);
    let start = 0;
    for (const part of spec.parts) {
      const source = stored.get(part.name)!;
      const rowsOfPart = tensor.slice(0, start, start + part.rows);
      const { file, position } = source;
      try {
        await rowsOfPart.load(file, { position, dtype: FILE_DTYPES[source.dtype]! });
      } finally {
        rowsOfPart.dispose();
      }
      start += part.rows;
      onBytes(source.bytes);
    }
    return tensor;
  };
  const loadLayer = async (specs: Specs<LayerWeights>): Promise<LayerWeights> => {
    const layer: Record<string, Tensor | null> = {};
    for (const [name, spec] of Object.entries(specs) as [string, Spec | null][]) {
      layer[name] = spec === null ? null : await load(spec);
    }
    return layer as unknown as LayerWeights;
  };
  try {
    const specs = weightSpecs(config);
    const embedding = await load(specs.embedding);
    const layers: LayerWeights[] = [];
    for (const layer of specs.layers) layers.push(await loadLayer(layer));
    return {
      embedding,
      layers,
      finalNorm: await load(specs.finalNorm),
      lmHead: specs.lmHead === null ? embedding : await load(specs.lmHead),
    };
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}

export function disposeWeights(weights: Weights): void {
  weights.embedding.dispose();
  weights.finalNorm.dispose();
  weights.lmHead.dispose();
  for (const layer of weights.layers) {
    for (const tensor of Object.values(layer) as (Tensor | null)[]) tensor?.dispose();
  }
}
