// From the parts of a row that warps, blocks and clusters leave to the finished row.
#pragma once

#include "cluster.cuh"
#include "decode_traits.cuh"

namespace flash_gqa::cuda::sm90 {

constexpr int kConsumerBarrier = 1;  // named: the consumer warps alone

template <class Traits>
struct DecodeMerge {
  using Element = typename Traits::Element;
  using Shared = typename Traits::SharedStorage;
  using Unit = PairBlocks::Unit;

  Shared& shared;
  const DecodeArgs& args;

  __device__ __forceinline__ static void sync() {
    ptx::named_barrier_sync(kConsumerBarrier, Traits::kConsumerThreads);
  }
  __device__ __forceinline__ int32_t chunks() const { return args.params.head_dim / kStoreCols; }

  __device__ __forceinline__ int64_t part_row(int32_t block, int32_t slot, int32_t r) const {
    return (2 * static_cast<int64_t>(block) + slot) * args.part_rows + r;
  }
  __device__ __forceinline__ void store_part(int32_t block, int32_t slot, int32_t r, int32_t col,
                                             const RowMerge& row) const {
    const int64_t at = part_row(block, slot, r);
    store_cols(args.partial_o + at * args.params.head_dim + col, row.o);
    if (col == 0) args.partial_state[at] = row.state;
  }
  __device__ __forceinline__ void store_final(const SegmentWalk& walk, int32_t r, int32_t col,
                                              const RowMerge& row) const {
    const int64_t token = walk.s.sequence.q_start + r / args.shape.group_size;
    const int32_t head = walk.at.kv_head * args.shape.group_size + r % args.shape.group_size;
    store_row<Element>(args.params, token * args.params.num_q_heads + head, head, col, row);
  }

  // The warps' parts of this block, row r, columns [col, col + kStoreCols). Knowing the maximum first makes the steps
  // of the merge independent of each other.
  __device__ __forceinline__ RowMerge merge_warps(int32_t r, int32_t col) const {
    RowMerge row;
#pragma unroll
    for (int part = 0; part < Traits::kParts; ++part) {
      row.state.max = fmaxf(row.state.max, shared.warp_parts.state[part][r].max);
    }
#pragma unroll
    for (int part = 0; part < Traits::kParts; ++part) {
      row.add(shared.warp_parts.state[part][r], &shared.warp_parts.o[part][r][col]);
    }
    return row;
  }

  // A segment whose warps' parts are staged: finishes its rows, or leaves them as a part for others. True: they are in
  // this block's shared memory, for merge_unit().
  __device__ __forceinline__ bool finish_segment(const SegmentWalk& walk, const PairBlocks& pair) {
    const bool whole = walk.whole();
    const bool in_cluster =
        !whole && walk.ends_range() && pair.unit(static_cast<int32_t>(blockIdx.x)).size() > 1;
    for (int32_t i = threadIdx.x; i < walk.s.rows * chunks(); i += Traits::kConsumerThreads) {
      const int32_t r = i / chunks();
      const int32_t col = i % chunks() * kStoreCols;
      const RowMerge row = merge_warps(r, col);
      if (whole) {
        store_final(walk, r, col, row);
      } else if (in_cluster) {
        store_cols(&shared.block_part.o[r][col], row.o);
        if (col == 0) shared.block_part.state[r] = row.state;
      } else {
        store_part(blockIdx.x, walk.slot(), r, col, row);
      }
    }
    if (!whole && !in_cluster) arrive(walk, pair);
    return in_cluster;
  }

  // This block's slice of the rows that its unit shares. The parts of a row lie along the lanes of a warp, so that all
  // of them are read in one round trip; their sum is a tree over the blocks in order, the same on each run.
  __device__ __forceinline__ void merge_unit(const SegmentWalk& walk, const PairBlocks& pair) {
    constexpr uint32_t kAll = 0xffffffff;
    const Unit unit = pair.unit(blockIdx.x);
    const bool final = unit.begin == pair.first && unit.end == pair.last + 1;
    const int32_t items = walk.s.rows * chunks();
    const int32_t per_block = (items + unit.size() - 1) / unit.size();
    const int32_t begin = (static_cast<int32_t>(blockIdx.x) - unit.begin) * per_block;
    const int32_t end = min_i32(items, begin + per_block);

    int lanes = 2;  // of one item
    while (lanes < unit.size()) lanes *= 2;
    const int32_t peer = unit.begin + threadIdx.x % lanes;
    const int32_t step = Traits::kConsumerThreads / lanes;
    const int32_t warp_first = begin + threadIdx.x / 32 * (32 / lanes);
    for (int32_t base = warp_first; base < end; base += step) {
      const int32_t item = base + threadIdx.x % 32 / lanes;
      const int32_t r = item / chunks();
      const int32_t col = item % chunks() * kStoreCols;
      SoftmaxState part;
      float x[kStoreCols] = {};
      if (item < end && peer < unit.end) read_peer(peer & (pair.cluster_size - 1), r, col, part, x);
      RowMerge row;
      row.state.max = part.max;
      for (int other = 1; other < lanes; other *= 2) {
        row.state.max = fmaxf(row.state.max, __shfl_xor_sync(kAll, row.state.max, other));
      }
      const float factor = row.state.merge(part).other;
#pragma unroll
      for (int i = 0; i < kStoreCols; ++i) row.o[i] = x[i] * factor;
      for (int other = 1; other < lanes; other *= 2) {
        row.state.sum += __shfl_xor_sync(kAll, row.state.sum, other);
#pragma unroll
        for (int i = 0; i < kStoreCols; ++i) row.o[i] += __shfl_xor_sync(kAll, row.o[i], other);
      }
      if (item >= end || threadIdx.x % lanes != 0) continue;
      if (final) {
        store_final(walk, r, col, row);
      } else {
        store_part(unit.begin, pair.slot(unit), r, col, row);
      }
    }
    if (!final) arrive(walk, pair);
  }

  __device__ __forceinline__ void read_peer(int32_t rank, int32_t r, int32_t col, SoftmaxState& part,
                                            float (&x)[kStoreCols]) const {
    const uint32_t o = peer_address(shared_address(&shared.block_part.o[r][col]), rank);
    const float2 state =
        load_peer_float2(peer_address(shared_address(&shared.block_part.state[r]), rank));
    const float4 low = load_peer_float4(o), high = load_peer_float4(o + 16);
    part = SoftmaxState{state.x, state.y};
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  }

  // Counts this block's part of the pair in memory; the last block to get here merges all units' parts.
  __device__ __forceinline__ void arrive(const SegmentWalk& walk, const PairBlocks& pair) {
    __threadfence();  // this thread's part is visible before the arrival is counted
    sync();
    if (threadIdx.x == 0) shared.arrived = atomicAdd(&args.counters[pair.first], 1);
    sync();
    if (shared.arrived != pair.last - pair.first) return;
    __threadfence();
    if (threadIdx.x == 0) args.counters[pair.first] = 0;
    for (int32_t i = threadIdx.x; i < walk.s.rows * chunks(); i += Traits::kConsumerThreads) {
      const int32_t r = i / chunks();
      const int32_t col = i % chunks() * kStoreCols;
      RowMerge row;
#pragma unroll 8
      for (int32_t block = pair.first; block <= pair.last; block = pair.unit(block).end) {
        const int64_t at = part_row(block, pair.slot(pair.unit(block)), r);
        row.state.max = fmaxf(row.state.max, args.partial_state[at].max);
      }
#pragma unroll 8
      for (int32_t block = pair.first; block <= pair.last; block = pair.unit(block).end) {
        const int64_t at = part_row(block, pair.slot(pair.unit(block)), r);
        row.add(args.partial_state[at], args.partial_o + at * args.params.head_dim + col);
      }
      store_final(walk, r, col, row);
    }
  }
};

}  // namespace flash_gqa::cuda::sm90
