// Reductions over a block, in an order that depends on nothing but the thread index.
#pragma once

#include <cuda_runtime.h>

namespace flash_gqa::cuda {

struct Plus {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return a + b;
  }
};
struct Larger {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

// Every thread gets op over all threads' values. blockDim.x is a power of two, at least 32, and
// every thread takes part.
template <class V, class Op>
__device__ V reduce_block(V value, Op op) {
  __shared__ V warps[32];
  const int num_warps = blockDim.x / 32;
  for (int distance = 16; distance > 0; distance /= 2)
    value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
  __syncthreads();  // the readers of the previous reduction are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = warps[threadIdx.x % num_warps];
  for (int distance = num_warps / 2; distance > 0; distance /= 2)
    value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

}  // namespace flash_gqa::cuda
