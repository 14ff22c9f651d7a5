// One compiled Hopper prefill kernel. Defined by the generated instances.
#pragma once

#include "../attention.h"

namespace flash_gqa::cuda::sm90 {

struct PrefillInstance {
  int32_t tile_q;
  size_t smem;
  bool divides;
  const char* name;
  size_t (*workspace)(const AttentionParams& params, int32_t min_rows, const DeviceTraits& device);
  cudaError_t (*launch)(const AttentionParams& params, int32_t min_rows, void* workspace,
                        const DeviceTraits& device, cudaStream_t stream);
};

template <class Element, int kHeadDim>
const PrefillInstance& prefill_instance();

}  // namespace flash_gqa::cuda::sm90
