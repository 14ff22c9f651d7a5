export {
  bytesPerToken,
  type CacheEvents,
  type CacheStats,
  type CommitOptions,
  KvCache,
  type KvCacheConfig,
  type LoadOptions,
  type MoveOptions,
  type OpenOptions,
  type SavedSource,
  type SaveOptions,
  type SaveToFile,
  type SaveToStream,
  type Sequence,
  type Step,
  type TokenIds,
} from "./cache/kv-cache";
export { Device, type DeviceName } from "./device";
export type { DType } from "./dtype";
export { GqaError, type GqaErrorCode } from "./errors";
export { Graph } from "./graph";
export type { DeviceInfo, MemoryInfo } from "./native";
export { type AppendKvOptions, appendKv } from "./ops/append-kv";
export { type AttentionOptions, type AttentionResult, attention } from "./ops/attention";
export { type AttentionState, type MergeStatesOptions, mergeStates } from "./ops/merge-states";
export type { PagedKv } from "./ops/paged";
export { type RepeatKvOptions, repeatKv } from "./ops/repeat-kv";
export { type RopeOptions, rope } from "./ops/rope";
export { type SliceWindowOptions, sliceWindow } from "./ops/slice-window";
export type { Floats, Ints } from "./ops/staging";
export { type RopeConfig, type RopeScaling, RopeTable, ropeFromConfig } from "./rope";
export { type Float16ArrayLike, Tensor, type TensorData } from "./tensor";
