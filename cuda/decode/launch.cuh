// The launches of one (dtype, head_dim). Included by the generated instances alone.
#pragma once

#include "decode.cuh"

namespace flash_gqa::cuda::decode {

template <class T>
cudaError_t launch(const DecodeArgs& args, cudaStream_t stream) {
  constexpr int kSmem = sizeof(SharedStorage<T>);
  const cudaError_t status = cudaFuncSetAttribute(
      attention_decode_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (status != cudaSuccess) return status;
  // Blocks of this launch may take their places while the one before still runs; they touch nothing
  // until it is done.
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(args.team_blocks, args.teams);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSmem;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = args.overlaps != 0 ? 1 : 0;
  return cudaLaunchKernelEx(&config, attention_decode_kernel<T>, args);
}

template <class T>
constexpr DecodeVariant variant(const char* name) {
  return {T::kHeadDim, T::kRowTiles * kRowsPerTile, T::kBlocksPerSm, sizeof(SharedStorage<T>), name,
          launch<T>};
}

template <class Element, int kHeadDim>
const DecodeFamily& decode_family() {
  // 32 rows of more columns would not fit into 255 registers.
  if constexpr (kHeadDim <= 128) {
    static constexpr DecodeFamily family{
        {variant<Traits<Element, kHeadDim, 1>>("decode mma 16x16"),
         variant<Traits<Element, kHeadDim, 2>>("decode mma 32x16")}};
    return family;
  } else {
    static constexpr DecodeFamily family{
        {variant<Traits<Element, kHeadDim, 1>>("decode mma 16x16"), DecodeVariant{}}};
    return family;
  }
}

}  // namespace flash_gqa::cuda::decode
