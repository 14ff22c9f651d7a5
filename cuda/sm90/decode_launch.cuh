// Launches the Hopper decode kernel.
#pragma once

#include "decode.cuh"
#include "launch.cuh"

namespace flash_gqa::cuda::sm90 {

template <class Traits>
cudaError_t launch_decode(const DecodeArgs& args, int blocks, cudaStream_t stream) {
  KvMaps maps;
  if (!encode_kv_maps(args.params, args.box_keys, maps)) return cudaErrorInvalidValue;
  const auto kernel = attention_decode_kernel<Traits>;
  constexpr int kSharedBytes = sizeof(typename Traits::SharedStorage);
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, Traits::kThreads, kSharedBytes, stream>>>(args, maps);
  return cudaGetLastError();
}

}  // namespace flash_gqa::cuda::sm90
