// The decoder itself: what Llama, Mistral, Qwen2 and Qwen3 compute between token ids and logits, in
// operations of the public API. Keys and values live in the cache; this file knows nothing of
// pages, positions or windows.

import type { Step } from "../cache/step";
import type { Device } from "../device";
import { embedding, linear, rmsNorm } from "../nn";
import type { Tensor } from "../tensor";
import type { LlamaConfig } from "./config";
import type { LayerWeights, Weights } from "./weights";

export class Transformer {
  constructor(
    readonly device: Device,
    readonly config: LlamaConfig,
    readonly weights: Weights,
  ) {}

  /**
   * Enqueues all layers for the step's tokens. ids: [totalQ], int32. Returns [totalQ, hidden],
   * before the final norm. `onHidden` sees the embedding and every layer's output; a tensor that it
   * returns true for is left alive.
   */
  forward(
    step: Step,
    ids: Tensor | Int32Array,
    onHidden: (hidden: Tensor) => boolean = () => false,
  ): Tensor {
    let hidden = embedding(this.weights.embedding, ids);
    this.weights.layers.forEach((layer, index) => {
      const before = hidden;
      hidden = this.device.tidy(() => this.#layer(step, index, layer, before));
      if (!onHidden(before)) before.dispose();
    });
    return hidden;
  }

  /** hidden: [rows, hidden] as `forward` returns it. */
  finalNorm(hidden: Tensor): Tensor {
    return rmsNorm(hidden, this.weights.finalNorm, this.config.rmsNormEps);
  }

  /**
   * normed: [rows, hidden] from `finalNorm`. Returns [rows, vocab] float32, whatever the model's
   * dtype.
   */
  logits(normed: Tensor): Tensor {
    return linear(normed, this.weights.lmHead, { outDtype: "float32" });
  }

  /** hidden: [rows, hidden] as `forward` returns it. Returns [rows, vocab] float32. */
  logitsOf(hidden: Tensor): Tensor {
    const norm = { weight: this.weights.finalNorm, eps: this.config.rmsNormEps };
    return linear(hidden, this.weights.lmHead, { norm, outDtype: "float32" });
  }

  #layer(step: Step, index: number, weights: LayerWeights, x: Tensor): Tensor {
    const { rmsNormEps: eps } = this.config;
    const [q, k, v] = this.#qkv(weights, x);
    const o = step.attend(index, q, k, v);
    const attended = linear(o.reshape([x.shape[0]!, weights.o.shape[1]!]), weights.o, {
      bias: weights.oBias ?? undefined,
      residual: x,
    });
    const norm = { weight: weights.mlpNorm, eps };
    const gated = linear(attended, weights.gateUp, { norm, gated: true });
    return linear(gated, weights.down, { residual: attended });
  }

  /**
   * q [rows, numQHeads, headDim], k and v [rows, numKvHeads, headDim]: columns of one matrix
   * product.
   */
  #qkv(weights: LayerWeights, x: Tensor): [Tensor, Tensor, Tensor] {
    const { numQHeads, numKvHeads, headDim, rmsNormEps: eps } = this.config;
    const heads = linear(x, weights.qkv, {
      norm: { weight: weights.inputNorm, eps },
      bias: weights.qkvBias ?? undefined,
    }).reshape([x.shape[0]!, numQHeads + 2 * numKvHeads, headDim]);
    const q = heads.slice(1, 0, numQHeads);
    const k = heads.slice(1, numQHeads, numQHeads + numKvHeads);
    const v = heads.slice(1, numQHeads + numKvHeads);
    return [
      weights.qNorm === null ? q : rmsNorm(q, weights.qNorm, eps),
      weights.kNorm === null ? k : rmsNorm(k, weights.kNorm, eps),
      v,
    ];
  }
}
