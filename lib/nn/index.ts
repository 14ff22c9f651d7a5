export { type AddOptions, add, type SiluMulOptions, siluMul } from "./elementwise";
export {
  type EmbeddingOptions,
  embedding,
  type GatherRowsOptions,
  gatherRows,
} from "./embedding";
export { type LinearOptions, linear } from "./linear";
export { type RmsNormOptions, rmsNorm } from "./rms-norm";
export { type SampleOptions, sample, type TopKOptions, topK } from "./sampling";
