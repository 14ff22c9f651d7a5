// Names are listed so that bundlers and Node's loader see them without running the CommonJS module.
import api from "../dist/index.js";

export const {
  appendKv,
  attention,
  bytesPerToken,
  Device,
  GqaError,
  Graph,
  KvCache,
  mergeStates,
  RopeTable,
  repeatKv,
  rope,
  ropeFromConfig,
  sliceWindow,
  Tensor,
} = api;
