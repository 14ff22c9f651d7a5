// What top-k and top-p leave of a row that shared memory holds whole: it is sorted once, where a
// long row is searched digit by digit.
#pragma once

#include "logit_row.cuh"

namespace flash_gqa::cuda {

constexpr int32_t kShortRow = 2 * kThreads;  // ids

// Sorts descending (a bitonic network). Steps that stay inside the 64 places of a warp need
// no barrier of the block.
__device__ inline void sort_places(uint64_t* places) {
  for (int size = 2; size <= kShortRow; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      if (stride >= 64 || (stride == 32 && size > 64)) __syncthreads();
      const int low = threadIdx.x / stride * 2 * stride + threadIdx.x % stride;
      const int high = low + stride;
      const uint64_t a = places[low], b = places[high];
      const bool descending = (low & size) == 0;
      if ((a < b) == descending) {
        places[low] = b;
        places[high] = a;
      }
      __syncwarp();
    }
  }
  __syncthreads();
}

// The sum of this thread's value and those of the threads before it; `total` of all.
__device__ inline uint64_t scan_block(uint64_t value, uint64_t& total) {
  __shared__ uint64_t warps[kWarps];
  const int lane = threadIdx.x % 32;
  const uint64_t inside = scan_warp(value);
  __syncthreads();  // the readers of the previous scan are done
  if (lane == 31) warps[threadIdx.x / 32] = inside;
  __syncthreads();
  const uint64_t running = scan_warp(warps[lane]);
  const int warp = threadIdx.x / 32;
  const uint64_t before = __shfl_sync(kAllLanes, running, warp > 0 ? warp - 1 : 0);
  total = __shfl_sync(kAllLanes, running, kWarps - 1);
  return inside + (warp > 0 ? before : 0);
}

// places: [kShortRow] in shared memory, (key, inverted id) from the first on. top_k 0: off.
// weigh(logit) as sampling_weight(). Every thread gets the same.
template <class T, class Weigh>
__device__ SampleCut cut_short_row(const LogitRow<T>& row, uint64_t* places, int32_t top_k,
                                   float top_p, Weigh weigh) {
  __shared__ int32_t last;  // place of the last id that is left
  for (int i = threadIdx.x; i < kShortRow; i += kThreads)
    places[i] = i < row.size ? static_cast<uint64_t>(order_key(row.logit(i))) << 32 |
                                   ~static_cast<uint32_t>(i)
                             : 0;
  __syncthreads();
  sort_places(places);
  const auto id_at = [&](int i) { return static_cast<int32_t>(~static_cast<uint32_t>(places[i])); };

  const int32_t kept = top_k > 0 ? min_i32(top_k, row.size) : row.size;
  if (threadIdx.x == 0) last = kept - 1;
  if (top_p < 1.0f) {
    uint64_t weights[2];
    for (int i = 0; i < 2; ++i) {
      const int place = 2 * threadIdx.x + i;
      const int32_t id = place < kept ? id_at(place) : 0;
      weights[i] = place < kept ? weigh(row.logit(id)) : 0;
    }
    uint64_t total;
    const uint64_t running = scan_block(weights[0] + weights[1], total);
    const uint64_t target = top_p_target(total, top_p);
    const uint64_t before = running - weights[0] - weights[1];
    // One thread alone sees the sum reach the target.
    if (before < target && target <= running)
      last = 2 * static_cast<int32_t>(threadIdx.x) + (before + weights[0] < target);
  }
  __syncthreads();
  return {static_cast<uint32_t>(places[last] >> 32), id_at(last)};
}

}  // namespace flash_gqa::cuda
