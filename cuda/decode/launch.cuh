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
  return launch_dependent(attention_decode_kernel<T>, dim3(args.team_blocks, args.teams),
                          dim3(kThreads), kSmem, stream, args);
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
