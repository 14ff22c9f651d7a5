// flash-gqa/llama: a thin runner of Llama-like checkpoints on the public API.

export type { LlamaConfig } from "./config";
export type { Evaluation } from "./evaluate";
export type { Candidate, FinishReason, GeneratedPart } from "./generate";
export { Llama, type LoadOptions, type LoadProgress } from "./llama";
export type { GenerateOptions, Prompt } from "./options";
export { Tokenizer } from "./tokenizer";
