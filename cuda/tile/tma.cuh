// Tensor copies (TMA) and the transaction barriers that count their bytes (sm_90).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "ptx.cuh"

namespace flash_gqa::cuda {

using Barrier = uint64_t;

__device__ __forceinline__ void barrier_init(Barrier& barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx::smem_address(&barrier)),
               "r"(arrivals));
}
// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ptx::smem_address(&barrier))
               : "memory");
}
__device__ __forceinline__ void barrier_arrive_expect(Barrier& barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx::smem_address(&barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ bool barrier_try_wait(Barrier& barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(ptx::smem_address(&barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ __forceinline__ void barrier_wait(Barrier& barrier, uint32_t parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}

// Generic-proxy accesses to shared memory before this are ordered before copies issued after it.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

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

}  // namespace flash_gqa::cuda
