// Transaction barriers that count the bytes of copies into shared memory (sm_90 and later).
#pragma once

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
// Arrives when all cp.async of this thread have come.
__device__ __forceinline__ void barrier_arrive_behind_copies(Barrier& barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(ptx::smem_address(&barrier))
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

}  // namespace flash_gqa::cuda
