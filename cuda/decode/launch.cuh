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

template <class Element, int kHeadDim>
const DecodeVariant& decode_variant() {
  using T = Traits<Element, kHeadDim>;
  static constexpr DecodeVariant variant{kHeadDim, T::kBlocksPerSm, sizeof(SharedStorage<T>),
                                         "decode mma 16x16", launch<T>};
  return variant;
}

}  // namespace flash_gqa::cuda::decode
