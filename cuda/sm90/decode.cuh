// Decode on Hopper: few query rows against a long cache, bound by bytes. Each block streams its range of tiles
// (decode_schedule.cuh) through a deep ring that one producer warp keeps full; four warps multiply with mma.sync, whose
// 16 rows hold a whole group. K and V are read once per KV head.
#pragma once

#include "../epilogue.cuh"
#include "../tile/mma.cuh"
#include "../tile/softmax.cuh"
#include "decode_schedule.cuh"
#include "kv_loader.cuh"

namespace flash_gqa::cuda::sm90 {

struct DecodeArgs {
  AttentionParams params;
  DecodeShape shape;
  int32_t box_keys;
  int32_t part_rows;            // rows of a part: the longest sequence's
  float* partial_o;             // [blocks, 2, part_rows, head_dim], unnormalised
  SoftmaxState* partial_state;  // [blocks, 2, part_rows]
  int32_t* counters;            // [blocks], zero between launches: parts of the pair that a block begins
};

// kRowWarps 1: up to 16 rows, the warps divide the keys of a tile. 4: up to 64 rows, they divide the rows.
template <class Element_, int kHeadDim_, int kRowWarps_>
struct DecodeTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kTileKv = 64;
  using Math = MmaMath<Element, kHeadDim, kRowWarps_, 1, 4 / kRowWarps_, kTileKv>;
  using KvTile = TmaTile<Element, kTileKv, kHeadDim>;
  using QTile = SwizzledTile<Element, Math::kTileQ, kHeadDim>;
  using Output = OutputStage<Math::kKeyParts, Math::kTileQ, kHeadDim>;
  static constexpr int kConsumerThreads = Math::kThreads;  // 128
  static constexpr int kThreads = kConsumerThreads + 32;

  // As many stages as fit: what counts is bytes in flight.
  static constexpr int kFit = (227 * 1024 - 256 - static_cast<int>(sizeof(QTile) + sizeof(Output))) /
                              static_cast<int>(2 * sizeof(KvTile));
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static_assert(kStages >= 2);

  struct SharedStorage {
    KvTile k[kStages];
    KvTile v[kStages];
    QTile q;
    Output out;
    Barrier full[kStages];
    Barrier empty[kStages];
    int32_t arrived;  // how many parts of the pair were there before this block's
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);
};

constexpr int kConsumerBarrier = 1;  // named: the consumer warps alone

template <class Traits>
__device__ __forceinline__ void produce_decode(typename Traits::SharedStorage& shared,
                                               const DecodeArgs& args, const KvMaps& maps,
                                               const BlockRange& range) {
  int stage = 0;
  uint32_t parity = 0;
  SegmentWalk walk(args.params, args.shape, range);
  while (walk.next()) {
    const TileRange tiles(walk.s.keys, Traits::kTileKv);
    if (tiles.count() == 0) continue;
    const KvSource source(args.params.kv, walk.s.sequence, args.params.num_kv_heads,
                          walk.at.kv_head, args.params.head_dim, args.params.fault);
    const KvLoader<typename Traits::KvTile> loader{
        source, walk.s.keys, walk.s.sequence.kv_start, walk.at.kv_head, args.box_keys,
        Traits::kTileKv};
    for (int32_t i = 0; i < walk.count; ++i) {
      barrier_wait(shared.empty[stage], parity ^ 1);
      if (threadIdx.x % 32 == 0) {
        barrier_arrive_expect(shared.full[stage], 2 * Traits::KvTile::kBytes);
      }
      __syncwarp();
      const int32_t key = tiles.key(walk.at.tile + i);
      loader.load(shared.k[stage], maps.k, shared.full[stage], key);
      loader.load(shared.v[stage], maps.v, shared.full[stage], key);
      if (++stage == Traits::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

template <class Traits>
struct DecodeConsumer {
  using Math = typename Traits::Math;
  using Element = typename Traits::Element;
  using Shared = typename Traits::SharedStorage;

  Shared& shared;
  const DecodeArgs& args;
  const Math math;
  int stage = 0;
  uint32_t parity = 0;
  SoftmaxState state[Math::kRows];
  float o[Math::kRows][Math::kCols];

  __device__ __forceinline__ static void sync() {
    ptx::named_barrier_sync(kConsumerBarrier, Traits::kConsumerThreads);
  }

  __device__ __forceinline__ int64_t o_row(const SegmentWalk& walk, int32_t r) const {
    const int32_t token = r / args.shape.group_size;
    return (static_cast<int64_t>(walk.s.sequence.q_start) + token) * args.params.num_q_heads +
           head(walk, r);
  }
  __device__ __forceinline__ int32_t head(const SegmentWalk& walk, int32_t r) const {
    return walk.at.kv_head * args.shape.group_size + r % args.shape.group_size;
  }

  __device__ __forceinline__ void load_q(const SegmentWalk& walk) {
    const AttentionParams& params = args.params;
    const auto* from = static_cast<const Element*>(params.q);
    constexpr int kChunks = Traits::QTile::kChunks;
    for (int at = threadIdx.x; at < Math::kTileQ * kChunks; at += Traits::kConsumerThreads) {
      const int r = at / kChunks;
      const int col = at % kChunks * 8;
      const bool valid = r < walk.s.rows && col < params.head_dim;
      const int64_t token = walk.s.sequence.q_start + r / args.shape.group_size;
      const int64_t offset = token * params.q_stride_token +
                             static_cast<int64_t>(head(walk, r)) * params.head_dim + col;
      ptx::cp_async_16(shared.q.address(r, at % kChunks), valid ? from + offset : from, valid);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }

  __device__ __forceinline__ void apply_mask(float (&s)[Math::kRows][Math::kKeys],
                                             const SegmentWalk& walk, int32_t first_key) const {
    const int32_t base = first_key + math.first_key();
#pragma unroll
    for (int r = 0; r < Math::kRows; ++r) {
      const int32_t row = min_i32(math.row(r), walk.s.rows - 1);
      const KeyRange seen = walk.s.mask.row(row / args.shape.group_size);
      const KeyRange shifted{seen.sink_end - base, seen.lo - base, seen.hi - base};
#pragma unroll
      for (int j = 0; j < Math::kKeys; ++j) {
        if (!shifted.contains(Math::key_step(j))) s[r][j] = minus_infinity();
      }
    }
  }

  // Value rows behind the sequence may hold NaN, and 0 * NaN is NaN. Each warp clears all it will read; where
  // warps share rows they write the same zeros.
  __device__ __forceinline__ void clear_tail(int32_t first_key, int32_t kv_len) {
    const int32_t valid = kv_len - first_key;
    if (valid >= Traits::kTileKv) return;
    auto& tile = shared.v[stage];
    const int lane = threadIdx.x % 32;
    for (int half = 0; half < Traits::KvTile::kHalves; ++half) {
      for (int i = lane; i < (Traits::kTileKv - valid) * 8; i += 32) {
        reinterpret_cast<uint4*>(&tile.data[half][valid + i / 8][0])[i % 8] = uint4{0, 0, 0, 0};
      }
    }
    fence_async_proxy();  // the copy engine writes here next
    __syncwarp();
  }

  __device__ __forceinline__ void multiply_tiles(const SegmentWalk& walk) {
    const LogitScale scale(args.params.sm_scale, args.params.soft_cap);
    const TileRange tiles(walk.s.keys, Traits::kTileKv);
    const KeyRange common = walk.s.mask.common(0, walk.s.sequence.q_len - 1);
    const int32_t count = tiles.count() == 0 ? 0 : walk.count;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t first_key = tiles.key(walk.at.tile + i);
      barrier_wait(shared.full[stage], parity);
      float s[Math::kRows][Math::kKeys] = {};
      math.multiply_qk(s, shared.q, shared.k[stage]);
      scale.apply<Math>(s);
      if (!tile_is_full(common, first_key, Traits::kTileKv)) {
        apply_mask(s, walk, first_key);
        clear_tail(first_key, walk.s.sequence.kv_len);
      }
      update_softmax<Math>(s, state, o);
      typename Math::Scratch scratch;
      math.multiply_pv(o, s, shared.v[stage], scratch);
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(shared.empty[stage]);
      if (++stage == Traits::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    reduce_sums<Math>(state);
  }

  // Leaves each warp's rows where all can merge them.
  __device__ __forceinline__ void stage_output() {
#pragma unroll
    for (int r = 0; r < Math::kRows; ++r) {
      float* row = shared.out.o[math.key_part()][math.row(r)];
#pragma unroll
      for (int j = 0; j < Math::kCols; j += 2) {
        *reinterpret_cast<float2*>(row + math.first_col() + Math::col_step(j)) =
            make_float2(o[r][j], o[r][j + 1]);
      }
      if (math.leads_row()) shared.out.state[math.key_part()][math.row(r)] = state[r];
    }
  }

  __device__ __forceinline__ void store_final(const SegmentWalk& walk, int32_t r, int32_t col,
                                              RowMerge& row) const {
    store_row<Element>(args.params, o_row(walk, r), head(walk, r), col, row);
  }

  // Merges the parts of this segment's pair, in key order, once the last of them has arrived.
  __device__ __forceinline__ void merge_parts(const SegmentWalk& walk) {
    const int32_t first = walk.first_block(), last = walk.last_block();
    __threadfence();  // this thread's part is visible before the arrival is counted
    sync();
    if (threadIdx.x == 0) shared.arrived = atomicAdd(&args.counters[first], 1);
    sync();
    if (shared.arrived != last - first) return;
    __threadfence();
    if (threadIdx.x == 0) args.counters[first] = 0;
    const int32_t chunks = args.params.head_dim / kStoreCols;
    for (int32_t i = threadIdx.x; i < walk.s.rows * chunks; i += Traits::kConsumerThreads) {
      const int32_t r = i / chunks;
      const int32_t col = i % chunks * kStoreCols;
      RowMerge row;
#pragma unroll 8
      for (int32_t block = first; block <= last; ++block) {
        const int64_t at = part_row(block, block == first ? 1 : 0, r);
        row.add(args.partial_state[at], args.partial_o + at * args.params.head_dim + col);
      }
      store_final(walk, r, col, row);
    }
  }

  __device__ __forceinline__ int64_t part_row(int32_t block, int32_t slot, int32_t r) const {
    return (2 * static_cast<int64_t>(block) + slot) * args.part_rows + r;
  }

  __device__ __forceinline__ void finish(const SegmentWalk& walk) {
    stage_output();
    sync();
    const int32_t chunks = args.params.head_dim / kStoreCols;
    for (int32_t i = threadIdx.x; i < walk.s.rows * chunks; i += Traits::kConsumerThreads) {
      const int32_t r = i / chunks;
      const int32_t col = i % chunks * kStoreCols;
      RowMerge row;
#pragma unroll
      for (int part = 0; part < Math::kKeyParts; ++part) {
        row.add(shared.out.state[part][r], &shared.out.o[part][r][col]);
      }
      if (walk.whole()) {
        store_final(walk, r, col, row);
      } else {
        const int64_t at = part_row(blockIdx.x, walk.slot(), r);
        store_cols(args.partial_o + at * args.params.head_dim + col, row.o);
        if (col == 0) args.partial_state[at] = row.state;
      }
    }
    if (!walk.whole()) merge_parts(walk);
  }

  __device__ __forceinline__ void run(const BlockRange& range) {
    SegmentWalk walk(args.params, args.shape, range);
    while (walk.next()) {
      load_q(walk);
      sync();  // Q is there; the previous segment's output is gone
#pragma unroll
      for (int r = 0; r < Math::kRows; ++r) {
        state[r] = SoftmaxState{};
#pragma unroll
        for (int j = 0; j < Math::kCols; ++j) o[r][j] = 0.0f;
      }
      multiply_tiles(walk);
      finish(walk);
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_decode_kernel(const __grid_constant__ DecodeArgs args,
                            const __grid_constant__ KvMaps maps) {
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::SharedStorage*>(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Traits::kStages; ++i) {
      barrier_init(shared.full[i], 1);
      barrier_init(shared.empty[i], Traits::kConsumerThreads / 32);
    }
    barrier_init_fence();
  }
  const BlockRange range = find_block_range(args.params, args.shape);
  __syncthreads();
  if (threadIdx.x >= Traits::kConsumerThreads) {
    produce_decode<Traits>(shared, args, maps, range);
  } else {
    DecodeConsumer<Traits> consumer{shared, args, typename Traits::Math(threadIdx.x)};
    consumer.run(range);
  }
}

}  // namespace flash_gqa::cuda::sm90
