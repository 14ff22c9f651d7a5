// The Hopper forward kernel: producer warps feed consumer warpgroups through shared-memory rings.
#pragma once

#include "consumer.cuh"

namespace flash_gqa::cuda::sm90 {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_fwd_kernel(const __grid_constant__ AttentionParams params,
                         const __grid_constant__ TensorMaps maps,
                         const __grid_constant__ Schedule schedule) {
  // The 128-byte swizzle repeats every 1024 bytes.
  allow_dependents();
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(raw);

  if (threadIdx.x == 0) {
    barrier_init(shared.work_wanted, 1);
    barrier_init(shared.guess_written, 1);
    barrier_init(shared.foresight_judged, kForeseers);
    for (int i = 0; i < Traits::kQStages; ++i) {
      barrier_init(shared.q_full[i], 1);
      barrier_init(shared.q_empty[i], 4 * Traits::kConsumers + 2);  // one arrival a warp
      barrier_init(shared.work_full[i], 1);
    }
    for (int i = 0; i < Traits::kKStages; ++i) {
      barrier_init(shared.k_full[i], 1);
      barrier_init(shared.k_empty[i], 4 * Traits::kConsumers);
    }
    for (int i = 0; i < Traits::kVStages; ++i) {
      barrier_init(shared.v_full[i], 1);
      barrier_init(shared.v_empty[i], 4 * Traits::kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();

  // One plain branch on the thread index: only then does the compiler give each role its own
  // registers.
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Traits::kConfig.producer_registers));
    const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0);
    if (warp == 0) {
      produce_keys<Traits>(shared, params, maps, schedule);
    } else if (warp == 1) {
      produce_values<Traits>(shared, params, maps, schedule);
    } else if (warp == 2) {
      produce_work<Traits>(shared, params, schedule);
    } else {
      foresee<Traits>(shared, params, schedule);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Traits::kConfig.consumer_registers));
    // Broadcast, so that the compiler knows it is the same in a whole warp: matrix descriptors live
    // in uniform registers.
    const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128) - 1, 0);
    Consumer<Traits> consumer{shared, params, schedule, warpgroup,
                              static_cast<int>(threadIdx.x % 128)};
    consumer.run();
  }
}

}  // namespace flash_gqa::cuda::sm90
