// The launches of one (dtype, head_dim). Included by the generated instances alone.
#pragma once

#include "forward.cuh"

namespace flash_gqa::cuda {

template <class T>
cudaError_t launch_forward(const ForwardArgs& args, int32_t blocks, cudaStream_t stream) {
  constexpr int kSmem = sizeof(SharedStorage<T>);
  const cudaError_t status = cudaFuncSetAttribute(
      attention_fwd_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (status != cudaSuccess) return status;
  attention_fwd_kernel<T><<<blocks, T::Math::kThreads, kSmem, stream>>>(args);
  return cudaGetLastError();
}

template <class T>
constexpr Variant variant() {
  return {T::Math::kTileQ,          T::kTileKv, T::kBlocksPerSm,
          sizeof(SharedStorage<T>), T::kName,   launch_forward<T>};
}

// What every card from sm_80 on offers a block (99 KB).
constexpr size_t kSmallestSmem = 101376;

template <class Element, int kHeadDim>
const Family& forward_family() {
  static_assert(sizeof(SharedStorage<Traits<Element, kHeadDim, kDecode>>) <= kSmallestSmem);
  static_assert(sizeof(SharedStorage<Traits<Element, kHeadDim, kShort>>) <= kSmallestSmem);
  static constexpr Family family{{variant<Traits<Element, kHeadDim, kDecode>>(),
                                  variant<Traits<Element, kHeadDim, kShort>>(),
                                  variant<Traits<Element, kHeadDim, kPrefill>>()}};
  return family;
}

}  // namespace flash_gqa::cuda
