// Parts of a tile of rows, handed from block to block in the launch that makes them: each thread
// leaves what it has in registers, and the same thread of another block takes it in.
#pragma once

#include "schedule.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda::sm90 {

// The place of one share's part, and the flag that says that it is there: zero between launches.
template <class Traits>
struct PartPlace {
  static constexpr int kQuads = Traits::kHeadDim / 8;  // of a thread's share of the output

  float4* quads;  // [kQuads + 1, 128]; the last is the state of the thread's two rows
  int32_t* flag;

  __device__ __forceinline__ PartPlace(const Schedule& schedule, int32_t share, int warpgroup,
                                       int thread) {
    const int32_t place = share * Traits::kConsumers + warpgroup;
    quads = schedule.parts + static_cast<int64_t>(place) * (kQuads + 1) * 128 + thread;
    flag = schedule.counters + kDrawCounters + place;
  }
};

template <class Traits, int kCount>
__device__ __forceinline__ void leave_part(const Schedule& schedule, int32_t share, int warpgroup,
                                           int thread, const float (&o)[kCount],
                                           const SoftmaxState (&state)[2]) {
  const PartPlace<Traits> place(schedule, share, warpgroup, thread);
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i)
    place.quads[i * 128] = float4{o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]};
  place.quads[place.kQuads * 128] = float4{state[0].max, state[0].sum, state[1].max, state[1].sum};
  ptx::named_barrier_sync(kWarpgroupBarrier + warpgroup, 128);
  if (thread == 0) asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(place.flag) : "memory");
}

// Leaves the part, or takes in those of earlier shares, in their order: then true, and the tile is
// complete. Sums are this thread's shares of those of its rows.
template <class Traits, int kCount>
__device__ __forceinline__ bool part_completes(const Schedule& schedule, const WorkTile& work,
                                               int warpgroup, int thread, float (&o)[kCount],
                                               SoftmaxState (&state)[2]) {
  if (work.take_first == kLeave) {
    leave_part<Traits>(schedule, work.share, warpgroup, thread, o, state);
    return false;
  }
#pragma unroll 1
  for (int32_t share = work.take_first; share < work.share; ++share) {
    const PartPlace<Traits> place(schedule, share, warpgroup, thread);
    if (thread == 0) {
      int32_t there;
      do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                     : "=r"(there)
                     : "l"(place.flag)
                     : "memory");
      } while (there == 0);
      *place.flag = 0;
    }
    ptx::named_barrier_sync(kWarpgroupBarrier + warpgroup, 128);
    const float4 other = __ldcg(place.quads + place.kQuads * 128);
    const SoftmaxState::Factors factors[2] = {state[0].merge(SoftmaxState{other.x, other.y}),
                                              state[1].merge(SoftmaxState{other.z, other.w})};
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 x = __ldcg(place.quads + i * 128);
      o[4 * i] = o[4 * i] * factors[0].mine + x.x * factors[0].other;
      o[4 * i + 1] = o[4 * i + 1] * factors[0].mine + x.y * factors[0].other;
      o[4 * i + 2] = o[4 * i + 2] * factors[1].mine + x.z * factors[1].other;
      o[4 * i + 3] = o[4 * i + 3] * factors[1].mine + x.w * factors[1].other;
    }
  }
  return true;
}

}  // namespace flash_gqa::cuda::sm90
