// The producer warps of the Hopper forward kernel: they draw work, and keep the copy engine ahead
// of the products.
#pragma once

#include "kv_loader.cuh"
#include "schedule.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda::sm90 {

// Tensor maps of one launch.
struct TensorMaps {
  CUtensorMap q;  // [total_q, num_q_heads, head_dim]
  KvMaps kv;
};

// A slot of a ring and the parity of its current round.
template <int kStages>
struct RingIndex {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Each block starts with the work of its own index; the rest is drawn from the counter.
__device__ __forceinline__ int32_t draw_work(const Schedule& schedule) {
  int32_t drawn = 0;
  if (threadIdx.x % 32 == 0) drawn = atomicAdd(&schedule.counters[0], 1);
  return gridDim.x + __shfl_sync(0xffffffff, drawn, 0);
}

template <class Traits>
using KvLoaderOf = KvLoader<typename Traits::KvTile>;

// Warp 0: draws work, and loads Q and the keys. The keys of a tile are needed before the values of
// the tile before, so that the two are not queued behind each other: values have their own warp.
template <class Traits>
__device__ __forceinline__ void produce_keys(typename Traits::SharedStorage& shared,
                                             const AttentionParams& params, const TensorMaps& maps,
                                             const Schedule& schedule) {
  const int lane = threadIdx.x % 32;
  prefetch_map(maps.q);
  prefetch_map(maps.kv.k);
  RingIndex<Traits::kQStages> q;
  RingIndex<Traits::kKStages> k;
  for (int32_t index = blockIdx.x;; index = draw_work(schedule)) {
    const bool done = index >= schedule.total_tiles;
    WorkTile work{};
    if (!done) {
      work = decode_work(params, schedule, index);
      if (work.tokens <= 0) continue;
    }
    const TileRange tiles(work.keys, Traits::kTileKv);

    barrier_wait(shared.q_empty[q.slot], q.parity ^ 1);
    auto& shared_work = shared.work[q.slot];
    if (lane < Traits::kConsumers) {
      shared_work.common[lane] =
          work.mask(params).common(work.first_token + schedule.token_of(lane * 64),
                                   work.first_token + schedule.token_of(lane * 64 + 63));
    }
    if (lane == 0) {
      shared_work.tile = work;
      shared_work.key_tiles = done ? kNoMoreWork : tiles.count();
    }
    __syncwarp();
    if (lane == 0) {
      if (done) {
        barrier_arrive(shared.q_full[q.slot]);
      } else {
        const int rows = schedule.tokens_per_tile * schedule.group_size;
        barrier_arrive_expect(shared.q_full[q.slot], Traits::kHalves * rows * 128);
        for (int half = 0; half < Traits::kHalves; ++half) {
          tma_load_3d(&shared.q[q.slot].data[half][0][0], maps.q, shared.q_full[q.slot], half * 64,
                      work.kv_head * schedule.group_size, work.sequence.q_start + work.first_token);
        }
      }
    }
    __syncwarp();
    if (done) break;
    q.advance();

    const KvSource source(params.kv, work.sequence, params.num_kv_heads, work.kv_head,
                          params.head_dim, params.fault);
    const KvLoaderOf<Traits> loader{source, work, schedule.box_keys};
    for (int32_t i = tiles.count() - 1; i >= 0; --i, k.advance()) {
      loader.load(shared.k[k.slot], maps.kv.k, shared.k_full[k.slot], shared.k_empty[k.slot],
                  k.parity ^ 1, tiles.key(i));
    }
  }

  // The last block to run dry leaves the counters as it found them.
  if (lane == 0 && atomicAdd(&schedule.counters[1], 1) == static_cast<int32_t>(gridDim.x) - 1) {
    schedule.counters[0] = 0;
    schedule.counters[1] = 0;
  }
}

// Warp 1.
template <class Traits>
__device__ __forceinline__ void produce_values(typename Traits::SharedStorage& shared,
                                               const AttentionParams& params,
                                               const TensorMaps& maps, const Schedule& schedule) {
  prefetch_map(maps.kv.v);
  RingIndex<Traits::kQStages> q;
  RingIndex<Traits::kVStages> v;
  for (;; q.advance()) {
    barrier_wait(shared.q_full[q.slot], q.parity);
    const bool done = load_uniform(shared.work[q.slot].key_tiles) == kNoMoreWork;
    const WorkTile work = load_uniform(shared.work[q.slot].tile);
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(shared.q_empty[q.slot]);
    if (done) break;
    const TileRange tiles(work.keys, Traits::kTileKv);
    const KvSource source(params.kv, work.sequence, params.num_kv_heads, work.kv_head,
                          params.head_dim, params.fault);
    const KvLoaderOf<Traits> loader{source, work, schedule.box_keys};
    for (int32_t i = tiles.count() - 1; i >= 0; --i, v.advance()) {
      loader.load(shared.v[v.slot], maps.kv.v, shared.v_full[v.slot], shared.v_empty[v.slot],
                  v.parity ^ 1, tiles.key(i));
    }
  }
}

}  // namespace flash_gqa::cuda::sm90
