// One row of logits and the blocks that work on it together: sums, the place a running sum passes,
// and the histograms of the radix selection. Everything is an integer, so that no result depends on
// how many blocks there are.
#pragma once

#include "../mask.h"
#include "../sampling.h"
#include "../vector.cuh"
#include "reduce.cuh"

namespace flash_gqa::cuda {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxTeam = 16;
constexpr int kSelections = 2;  // top-k, then top-p
constexpr int kDigits = 3;

// What the blocks of a row share in global memory; all zeros at the start.
struct TeamWorkspace {
  uint64_t histograms[kSelections * kDigits][kDigitBins];
  uint64_t values[2][kMaxTeam];
  uint32_t arrivals;
};

// The sum over this lane and those before it.
__device__ inline uint64_t scan_warp(uint64_t value) {
  const int lane = threadIdx.x % 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += before;
  }
  return value;
}

// The blocks of one row, all of them resident at once. Every thread of every block calls the same
// functions in the same order.
struct RowTeam {
  TeamWorkspace* workspace;  // unused by a team of one
  int blocks;
  int rank;
  uint32_t rounds = 0;
  int histograms = 0;  // used so far

  __device__ void barrier() {
    __syncthreads();
    if (blocks == 1) return;
    ++rounds;
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(&workspace->arrivals, 1);
      while (*const_cast<volatile uint32_t*>(&workspace->arrivals) < rounds * blocks) {
      }
      __threadfence();
    }
    __syncthreads();
  }

  // Makes each block's value known to all, as shared(rank). The two halves of `values` take turns:
  // nobody is more than one barrier ahead.
  __device__ void share(uint64_t value) {
    if (threadIdx.x == 0) workspace->values[rounds % 2][rank] = value;
    barrier();
  }
  __device__ uint64_t shared(int block) const {
    return __ldcg(&workspace->values[(rounds - 1) % 2][block]);
  }

  template <class Op>
  __device__ uint64_t combine(uint64_t value, Op op) {
    value = reduce_block(value, op);
    if (blocks == 1) return value;
    share(value);
    value = shared(0);
    for (int block = 1; block < blocks; ++block) value = op(value, shared(block));
    return value;
  }
};

// A row is too long for shared memory, so each pass reads it again from the L2 cache, 16 bytes at a
// time where rows are aligned.
template <class T>
struct LogitRow {
  static constexpr int kWidth = kVectorBytes / sizeof(T);
  const T* logits;
  int32_t size;
  bool aligned;
  RowTeam team;
  int32_t first;  // this block's part is [first, end): multiples of 32, or `size`
  int32_t end;
  int32_t best;  // id of the largest logit, the smallest such id
  float max;

  __device__ LogitRow(const void* base, int32_t row, int32_t vocab_size, const RowTeam& row_team)
      : logits(static_cast<const T*>(base) + static_cast<int64_t>(row) * vocab_size),
        size(vocab_size),
        aligned(reinterpret_cast<uintptr_t>(logits) % kVectorBytes == 0 && size % kWidth == 0),
        team(row_team) {
    const int32_t part = (size + 32 * team.blocks - 1) / (32 * team.blocks) * 32;
    first = min_i32(team.rank * part, size);
    end = min_i32(first + part, size);
    uint64_t largest = 0;
    for_each([&](int32_t id, float logit) {
      const uint64_t place =
          static_cast<uint64_t>(order_key(logit)) << 32 | ~static_cast<uint32_t>(id);
      largest = place > largest ? place : largest;
    });
    largest = team.combine(largest, Larger{});
    best = static_cast<int32_t>(~static_cast<uint32_t>(largest));
    max = logit(best);
  }

  __device__ float logit(int32_t id) const { return read_logit(logits[id]); }

  // Calls f(id, logit) for the ids of this block's part, shared among its threads.
  template <class F>
  __device__ void for_each(F f) const {
    for_range(first, end, threadIdx.x, kThreads, f);
  }

  // Sum of measure(id, logit) over all ids.
  template <class Measure>
  __device__ uint64_t total(Measure measure) {
    uint64_t sum = 0;
    for_each([&](int32_t id, float logit) { sum += measure(id, logit); });
    return team.combine(sum, Plus{});
  }

  // The first id at which the running sum of measure(id, logit) passes `target`, as the sum of all
  // does.
  template <class Measure>
  __device__ int32_t find_running(uint64_t target, Measure measure) {
    if (team.blocks == 1) return find_in_part(target, measure);
    uint64_t sum = 0;
    for_each([&](int32_t id, float logit) { sum += measure(id, logit); });
    team.share(reduce_block(sum, Plus{}));
    int holder = 0;
    for (; holder < team.blocks - 1 && target >= team.shared(holder); ++holder)
      target -= team.shared(holder);
    team.share(team.rank == holder ? find_in_part(target, measure) : 0);
    return static_cast<int32_t>(team.shared(holder));
  }

 private:
  // Each round cuts the range into one stretch per warp and keeps the one that holds the place,
  // until it is 32 ids.
  template <class Measure>
  __device__ int32_t find_in_part(uint64_t target, Measure measure) const {
    __shared__ uint64_t sums[kWarps];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    int32_t from = first;
    int32_t to = end;
    while (to - from > 32) {
      const int32_t stretch = (to - from + kThreads - 1) / kThreads * 32;
      const int32_t mine = from + warp * stretch;
      uint64_t sum = 0;
      for_range(mine, min_i32(mine + stretch, to), lane, 32,
                [&](int32_t id, float logit) { sum += measure(id, logit); });
      for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, distance);
      __syncthreads();  // the readers of the previous round are done
      if (lane == 0) sums[warp] = sum;
      __syncthreads();
      int holder = 0;
      while (holder < kWarps - 1 && target >= sums[holder]) target -= sums[holder++];
      from += holder * stretch;
      to = min_i32(from + stretch, to);
    }
    const int32_t id = from + lane;
    const uint64_t running = scan_warp(id < to ? measure(id, logit(id)) : 0);
    return from + __ffs(__ballot_sync(kAllLanes, running > target)) - 1;
  }

  // For ids [from, to), shared among `threads` threads. Both ends are multiples of 32, or `size`.
  template <class F>
  __device__ void for_range(int32_t from, int32_t to, int thread, int threads, F f) const {
    if (aligned) {
      for_vectors<kWidth>(from, to, thread, threads, f);
    } else {
      for_vectors<1>(from, to, thread, threads, f);
    }
  }

  template <int kIds, class F>
  __device__ void for_vectors(int32_t from, int32_t to, int thread, int threads, F f) const {
    constexpr int kAhead = kIds == 1 ? 8 : 2;  // loads in flight
    const int32_t step = threads * kIds;
    for (int32_t id = from + thread * kIds; id < to; id += kAhead * step) {
      Vector<T, kIds> ahead[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (id + i * step < to) ahead[i] = load_vector<T, kIds>(logits + id + i * step);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (id + i * step >= to) break;
#pragma unroll
        for (int j = 0; j < kIds; ++j) f(id + i * step + j, read_logit(ahead[i].at[j]));
      }
    }
  }
};

}  // namespace flash_gqa::cuda
