// Golden parameters, which are Hugging Face's, as a RopeConfig.

import { type RopeConfig, ropeFromConfig } from "../../lib/index";

export interface GoldenRope {
  head_dim: number;
  rotary_dim: number;
  style: "neox" | "interleaved";
  max_position_embeddings: number;
  rope_parameters: Record<string, unknown>;
}

export function ropeConfig(params: GoldenRope): RopeConfig {
  const { head_dim, max_position_embeddings, rope_parameters, style } = params;
  const config = ropeFromConfig({ head_dim, max_position_embeddings, rope_parameters });
  return { ...config, interleaved: style === "interleaved" };
}

export const plainRope = (headDim: number): RopeConfig => ({ headDim, theta: 10_000 });
