// Decode on Hopper: few query rows against a long cache, bound by bytes. Each block streams its range of tiles
// (decode_schedule.cuh) through a deep ring that two producer warps keep full; the consumer warps multiply with
// mma.sync (decode_math.cuh). K and V are read once per KV head. docs/decode.md has the whole picture.
#pragma once

#include "decode_merge.cuh"
#include "decode_producer.cuh"

namespace flash_gqa::cuda::sm90 {

template <class Traits>
struct DecodeConsumer {
  using Math = typename Traits::Math;
  using Element = typename Traits::Element;
  using Shared = typename Traits::SharedStorage;

  Shared& shared;
  const DecodeArgs& args;
  const Math math;
  const int group;
  RingPosition<Traits::kStages> at = {};
  typename Math::Query q;
  SoftmaxState state[Math::kRows];
  float o[Math::kRows][Math::kCols];

  __device__ __forceinline__ typename Math::Tile tile(const typename Traits::KvTile& t) const {
    return {shared_address(t.data), args.box_keys};
  }

  __device__ __forceinline__ void load_q(const SegmentWalk& walk) {
    const AttentionParams& params = args.params;
#pragma unroll
    for (int m = 0; m < Math::kRowTiles; ++m) {
      const int32_t r = math.query_row(m);
      const int64_t token = walk.s.sequence.q_start + r / args.shape.group_size;
      const int32_t head = walk.at.kv_head * args.shape.group_size + r % args.shape.group_size;
      const int32_t first_col = math.lane % 4 * 2;
      const int32_t cols = r < walk.s.rows ? params.head_dim : 0;
      const Element* from = static_cast<const Element*>(params.q) + token * params.q_stride_token +
                            static_cast<int64_t>(head) * params.head_dim + first_col;
#pragma unroll
      for (int d = 0; d < Math::kSteps; ++d) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int col = 16 * d + 8 * half;
          q[m][d][half] = col < cols ? *reinterpret_cast<const uint32_t*>(from + col) : 0;
        }
      }
    }
  }

  // Value rows behind the sequence may hold NaN, and 0 * NaN is NaN. Each warp clears what it will read; where warps
  // share keys they write the same zeros.
  __device__ __forceinline__ void clear_tail(int32_t first_key, int32_t kv_len) {
    const int32_t strip = math.key_warp * Math::kWarpKeys;
    const int32_t first = max_i32(strip, kv_len - first_key);
    const typename Math::Tile v = tile(shared.ring.v[at.stage]);
    for (int32_t key = first; key < strip + Math::kWarpKeys; ++key) {
      for (int chunk = math.lane; chunk < Math::kHalves * 8; chunk += 32) {
        const uint32_t address = v.row(key) + v.half(chunk / 8) + chunk % 8 * 16;
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
      }
    }
    fence_async_proxy();  // the copy engine writes here next
    __syncwarp();
  }

  __device__ __forceinline__ void release(Barrier& empty) {
    __syncwarp();
    if (math.lane == 0) barrier_arrive(empty);
  }

  __device__ __forceinline__ void multiply_tile(const SegmentWalk& walk, const LogitScale& scale,
                                                const KeyRange& common, int32_t first_key) {
    const int stage = at.stage;
    float s[Math::kRows][Math::kKeys];
    TRACE(3);
    barrier_wait(shared.k_full[stage], at.parity);
    TRACE(4);
    math.multiply_qk(s, q, tile(shared.ring.k[stage]));
    release(shared.k_empty[stage]);
    scale.template apply<Math>(s);
    const bool full = tile_is_full(common, first_key, Traits::kTileKv);
    if (!full) {
      mask_rows<Traits::kTileKv>(s, math, first_key, [&](int32_t r) {
        return walk.s.mask.row(min_i32(r, walk.s.rows - 1) / args.shape.group_size);
      });
    }
    math.update_softmax(s, state, o);
    barrier_wait(shared.v_full[stage], at.parity);
    if (!full) clear_tail(first_key, walk.s.sequence.kv_len);
    math.multiply_pv(o, s, tile(shared.ring.v[stage]));
    release(shared.v_empty[stage]);
  }

  __device__ __forceinline__ void multiply_tiles(const SegmentWalk& walk) {
    const LogitScale scale(args.params.sm_scale, args.params.soft_cap);
    const TileRange tiles(walk.s.keys, Traits::kTileKv);
    const KeyRange common = walk.s.mask.common(0, walk.s.sequence.q_len - 1);
    const int32_t count = tiles.count() == 0 ? 0 : walk.count;
    for (int32_t i = 0; i < count; ++i) {
      if (i % Traits::kGroups == group) {
        multiply_tile(walk, scale, common, tiles.key(walk.at.tile + i));
      }
      at.advance();
    }
    Math::reduce_sums(state);
  }

  // Leaves each warp's rows where all can merge them.
  __device__ __forceinline__ void stage_output(int32_t rows) {
    const int part = group * Traits::kKeyWarps + math.key_part();
#pragma unroll
    for (int i = 0; i < Math::kRows; ++i) {
      if (math.row(i) >= rows) continue;
      float* row = shared.warp_parts.o[part][math.row(i)] + math.first_col();
#pragma unroll
      for (int j = 0; j < Math::kCols; ++j) row[Math::col_step(j)] = o[i][j];
      if (math.leads_row()) shared.warp_parts.state[part][math.row(i)] = state[i];
    }
  }

  __device__ __forceinline__ void run(const BlockRange& range) {
    DecodeMerge<Traits> merge{shared, args};
    const int32_t cluster_size = cluster_blocks();
    SegmentWalk walk(args.params, args.shape, range);
    bool in_cluster = false;
    while (walk.next()) {
      load_q(walk);
#pragma unroll
      for (int i = 0; i < Math::kRows; ++i) {
        state[i] = SoftmaxState{};
#pragma unroll
        for (int j = 0; j < Math::kCols; ++j) o[i][j] = 0.0f;
      }
      multiply_tiles(walk);
      TRACE(5);
      merge.sync();  // the segment before is merged: its staged rows are read
      stage_output(walk.s.rows);
      merge.sync();
      in_cluster = merge.finish_segment(walk, walk.blocks(cluster_size));
      TRACE(6);
    }
    if (cluster_size == 1) return;
    cluster_arrive();
    cluster_wait();
    TRACE(7);
    if (in_cluster) merge.merge_unit(walk, walk.blocks(cluster_size));
    TRACE(8);
    cluster_arrive();  // a block's shared memory stays until its peers have read it
    cluster_wait();
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    attention_decode_kernel(const __grid_constant__ DecodeArgs args,
                            const __grid_constant__ DecodeMaps maps) {
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(raw);
  TRACE(0);
#ifdef DECODE_TRACE
  long long start; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start)); if (threadIdx.x == 0) g_trace[blockIdx.x][10] = start;
#endif
  launch_dependents();
  if (threadIdx.x == Traits::kConsumerThreads) {
    constexpr int kGroupWarps = Traits::Math::kThreads / 32;
    prefetch_tensor_map(maps.k);
    prefetch_tensor_map(maps.v);
    for (int i = 0; i < Traits::kStages; ++i) {
      barrier_init(shared.k_full[i], 1);
      barrier_init(shared.v_full[i], 1);
      barrier_init(shared.k_empty[i], kGroupWarps);
      barrier_init(shared.v_empty[i], kGroupWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_earlier_launches();
  TRACE(1);

  const BlockRange range = find_block_range(args.params, args.shape);
  if (range.begin >= range.end) return;
  TRACE(2);
  const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0);
  constexpr int kProducer = Traits::kConsumerThreads / 32;
  if (warp == kProducer) {
    DecodeProducer<Traits>{shared.ring.k, shared.k_full, shared.k_empty, maps.k, args}.run(range);
  } else if (warp == kProducer + 1) {
    DecodeProducer<Traits>{shared.ring.v, shared.v_full, shared.v_empty, maps.v, args}.run(range);
  } else {
    const int thread = threadIdx.x % Traits::Math::kThreads;
    const int group = warp / (Traits::Math::kThreads / 32);
    DecodeConsumer<Traits> consumer{shared, args, typename Traits::Math(thread), group};
    consumer.run(range);
    TRACE(9);
#ifdef DECODE_TRACE
    long long end; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end)); if (threadIdx.x == 0) g_trace[blockIdx.x][11] = end;
#endif
  }
}

}  // namespace flash_gqa::cuda::sm90
