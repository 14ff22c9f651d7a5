// A block's first work, foreseen before the launches in front are done: where it follows from the block's
// index and from lengths that they might write, and would otherwise be known two trips to memory too late.
//
// Warp 3 reads the lengths and says what the work would be; the loading warps look its first pages up.
// Behind the wait all three read their words again, and only if none has changed is the work the first;
// else all that was foreseen is forgotten. A wrong guess stays inside its buffers: lengths are clamped,
// and page ids are only compared.
#pragma once

#include "../dependent_launch.cuh"
#include "schedule.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda::sm90 {

inline bool reads_lengths(const AttentionParams& params) {
  const BatchView& batch = params.batch;
  return batch.cu_seqlens_q != nullptr || batch.cu_seqlens_k != nullptr ||
         batch.kv_lens != nullptr || params.kv.table_row != nullptr ||
         params.prefix_lens != nullptr;
}

// Whether nobody has found a word changed; for a whole warp.
template <class Traits>
__device__ __forceinline__ bool foreseen_rightly(typename Traits::SharedStorage& shared) {
  barrier_wait(shared.foresight_judged, 0);
  bool all = true;
  for (const bool unchanged : shared.unchanged) all &= unchanged;
  return all;
}

// The same for a warp that has read words: 0 keys', 1 values', 2 lengths.
template <class Traits>
__device__ __forceinline__ bool judge_foresight(typename Traits::SharedStorage& shared, int who,
                                                bool unchanged) {
  unchanged = __all_sync(0xffffffffu, unchanged);
  if (threadIdx.x % 32 == 0) {
    shared.unchanged[who] = unchanged;
    barrier_arrive(shared.foresight_judged);
  }
  __syncwarp();
  return foreseen_rightly<Traits>(shared);
}

// Warp 3.
template <class Traits>
__device__ __forceinline__ void foresee(typename Traits::SharedStorage& shared,
                                        const AttentionParams& params, const Schedule& schedule) {
  if (!schedule.foresees) return;
  const bool leads = threadIdx.x % 32 == 0;
  if (leads) shared.ignored_fault = 0;
  __syncwarp();
  WorkTile work{};
  const int32_t b = find_tile(params, schedule, blockIdx.x, work);
  const Lengths lengths(params, b);
  measure_tile<Traits::kTileKv>(params, schedule, b, lengths, &shared.ignored_fault, work);
  write_work<Traits::kTileKv, Traits::kConfig.skips>(shared.work[0], params, schedule, work, false);
  if (leads) barrier_arrive(shared.guess_written);
  // What has nothing to do, or something to report, takes the usual way.
  const bool usable = work.tokens > 0 && shared.ignored_fault == 0;
  wait_for_prerequisites();
  if (judge_foresight<Traits>(shared, 2, usable && Lengths(params, b) == lengths) && leads)
    barrier_arrive(shared.work_full[0]);
}

}  // namespace flash_gqa::cuda::sm90
