// The launches of one (dtype, head_dim). Included by the generated instances alone.
#pragma once

#include "decode.cuh"

namespace flash_gqa::cuda::decode {

// Shared memory for both kinds of ring: which of them runs is known to the compiled code alone.
template <class Element, int kHeadDim>
size_t smem_bytes(int stages) {
  using Tma = Traits<Element, kHeadDim, true>;
  using Async = Traits<Element, kHeadDim, false>;
  const size_t tma = SharedStorage<Tma>::bytes(stages);
  const size_t async = sizeof(SharedStorage<Async>);
  return tma > async ? tma : async;
}

template <class Element, int kHeadDim>
cudaError_t launch(const DecodeArgs& args, cudaStream_t stream) {
  const auto kernel = attention_decode_kernel<Element, kHeadDim>;
  const size_t smem = smem_bytes<Element, kHeadDim>(args.stages);
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
  if (status != cudaSuccess) return status;
  DecodeArgs with_maps = args;
  if (runs_sm90_code(reinterpret_cast<const void*>(kernel)) &&
      !encode_kv_maps(args.params, kSlabKeys, with_maps.maps))
    return cudaErrorInvalidValue;
  return launch_dependent(kernel, dim3(args.team_blocks, args.teams), dim3(kThreads), smem, stream,
                          with_maps);
}

template <class Element, int kHeadDim>
const DecodeVariant& decode_variant() {
  using T = Traits<Element, kHeadDim, true>;
  static constexpr DecodeVariant variant{
      kHeadDim,           T::kBlocksPerSm,          T::kStages, smem_bytes<Element, kHeadDim>,
      "decode mma 16x16", launch<Element, kHeadDim>};
  return variant;
}

}  // namespace flash_gqa::cuda::decode
