// Tensor copies (TMA, sm_90).
#pragma once

#include <cuda.h>

#include "barrier.cuh"

namespace flash_gqa::cuda {

// Brings the map itself close: the first copy would wait for it.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ __forceinline__ void tma_load_3d(void* dst, const CUtensorMap& map, Barrier& barrier,
                                            int32_t x, int32_t y, int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(ptx::smem_address(dst)),
      "l"(&map), "r"(ptx::smem_address(&barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ __forceinline__ void tma_load_4d(void* dst, const CUtensorMap& map, Barrier& barrier,
                                            int32_t x, int32_t y, int32_t z, int32_t w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(ptx::smem_address(dst)),
      "l"(&map), "r"(ptx::smem_address(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

__device__ __forceinline__ void tma_load_5d(void* dst, const CUtensorMap& map, Barrier& barrier,
                                            int32_t x, int32_t y, int32_t z, int32_t w, int32_t u) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(ptx::smem_address(dst)),
      "l"(&map), "r"(ptx::smem_address(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "r"(u)
      : "memory");
}
__device__ __forceinline__ void tma_prefetch_5d(const CUtensorMap& map, int32_t x, int32_t y,
                                                int32_t z, int32_t w, int32_t u) {
  asm volatile(
      "cp.async.bulk.prefetch.tensor.5d.L2.global.tile [%0, {%1, %2, %3, %4, %5}];" ::"l"(&map),
      "r"(x), "r"(y), "r"(z), "r"(w), "r"(u)
      : "memory");
}

}  // namespace flash_gqa::cuda
