#pragma once

namespace flash_gqa::cuda {

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

}  // namespace flash_gqa::cuda
