// The producer warps of the Hopper forward kernel: they draw work, and keep the copy engine ahead
// of the products.
#pragma once

#include "../dependent_launch.cuh"
#include "../tensor_map.h"
#include "foresight.cuh"
#include "kv_loader.cuh"
#include "rest.cuh"
#include "schedule.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda::sm90 {

// Tensor maps of one launch.
struct TensorMaps {
  CUtensorMap q;  // [total_q, num_q_heads, head_dim]
  KvMaps kv;
};

// The work of a block: whole tiles, then its shares of the rest. For one whole warp.
template <class Traits>
struct WorkStream {
  typename Traits::SharedStorage& shared;
  const AttentionParams& params;
  const Schedule& schedule;
  const int32_t blocks = gridDim.x;
  Rest rest;
  bool decided = true;    // whether the rest is divided
  int32_t index = -1;     // drawn last
  int32_t rest_tile = 0;  // where a share goes on, down to
  int32_t rest_last = 1;
  uint32_t wanted = 1;  // parity: the round before the first has passed

  __device__ __forceinline__ WorkStream(typename Traits::SharedStorage& s, const AttentionParams& p,
                                        const Schedule& c)
      : shared(s), params(p), schedule(c) {
    if (schedule.reads_lengths) wait_for_prerequisites();
    if (schedule.parts == nullptr) return;
    rest = Rest(count_tiles(params, schedule), blocks);
    decided = false;
  }

  // Blocks start with the tile of their own index, unless they start with shares, which must be
  // drawn in order. Only such a tile is foreseen (launch.cuh).
  __device__ __forceinline__ void draw() {
    const int32_t given = rest.first < blocks ? 0 : blocks;
    if (index < 0 && given > 0) {
      index = blockIdx.x;
      return;
    }
    wait_for_prerequisites();
    int32_t drawn = 0;
    if (threadIdx.x % 32 == 0) drawn = atomicAdd(&schedule.counters[0], 1);
    index = given + __shfl_sync(0xffffffff, drawn, 0);
  }

  // Work on the part of a tile of the rest that belongs to this share, if there is any.
  __device__ __forceinline__ bool take_share(WorkTile& work, int32_t tile, int32_t share) const {
    const bool ends = rest.ends(tile, share);
    if (work.key_end == 0) return ends && work.tokens > 0;  // sees no key: one writes its rows
    work.key_first = rest.cut(tile, share, work.key_end);
    work.key_end = rest.cut(tile, share + 1, work.key_end);
    work.share = share;
    work.take_first = ends ? rest.first_share(tile) : kLeave;
    return true;
  }

  // As if next() had found the block's own tile, which was foreseen.
  __device__ __forceinline__ void skip_first() {
    index = blockIdx.x;
    wanted ^= 1;
  }

  // False: there is no more.
  __device__ __forceinline__ bool next(WorkTile& work) {
    int32_t probe = 0;      // a tile of the rest, looked at before it is divided
    int32_t key_tiles = 0;  // of the longest looked at
    bool waits = true;
    for (;;) {
      // Behind the first tile, while there is time; or at once, where the rest is all there is.
      const bool probes = !decided && (index >= 0 || rest.first < blocks);
      if (!probes && waits) {
        barrier_wait(shared.work_wanted, wanted);
        wanted ^= 1;
        waits = false;
      }
      if (!probes && rest_tile < rest_last) draw();
      const int32_t share = index - rest.first;
      const bool divided = share >= 0 && rest.shares > 0;
      if (divided && rest_tile < rest_last) {
        if (share >= rest.shares) return false;
        rest_tile = rest.end_tile(share) - 1;
        rest_last = rest.first_tile(share);
      }
      const int32_t at = probes ? rest.first + probe : divided ? rest.first + rest_tile : index;
      const int32_t b = find_tile(params, schedule, at, work);
      const bool exists = b >= 0;
      if (exists)  // behind the wait: through the L1, where earlier draws have left them
        measure_tile<Traits::kTileKv>(params, schedule, b, Lengths(params, b, PlainRead{}),
                                      params.fault, work);
      if (probes) {
        // Under a causal mask a sequence's first tile is its longest; they may be of several.
        if (exists) key_tiles = max_i32(key_tiles, work.key_end);
        decided = probe >= rest.tiles - 1;
        if (decided) rest.divide(blocks, key_tiles);
        probe = rest.tiles - 1;
        continue;
      }
      if (!exists) return false;
      if (divided ? take_share(work, rest_tile--, share) : work.tokens > 0) return true;
    }
  }
};

// Warp 2: draws work, and says what it is, in the queue of Q's slots. Not before it is wanted: who
// draws early may get what another block, done earlier, should have had.
template <class Traits>
__device__ __forceinline__ void produce_work(typename Traits::SharedStorage& shared,
                                             const AttentionParams& params,
                                             const Schedule& schedule) {
  const int lane = threadIdx.x % 32;
  RingIndex<Traits::kQStages> q;
  const bool known = schedule.foresees && foreseen_rightly<Traits>(shared);
  WorkStream<Traits> stream(shared, params, schedule);
  if (known) {
    stream.skip_first();
    q.advance();
  }
  for (bool done = false; !done; q.advance()) {
    WorkTile work{};
    done = !stream.next(work);
    barrier_wait(shared.q_empty[q.slot], q.parity ^ 1);
    write_work<Traits::kTileKv, Traits::kConfig.skips>(shared.work[q.slot], params, schedule, work,
                                                       done);
    if (lane == 0) barrier_arrive(shared.work_full[q.slot]);
  }

  // The last block to run dry leaves the counters as it found them.
  wait_for_prerequisites();
  if (lane == 0 && atomicAdd(&schedule.counters[1], 1) == static_cast<int32_t>(gridDim.x) - 1) {
    schedule.counters[0] = 0;
    schedule.counters[1] = 0;
  }
}

// A warp that loads keys or values of one work after the other.
template <class Traits>
struct LoadingWarp {
  using Loader = KvLoader<typename Traits::KvTile>;

  typename Traits::SharedStorage& shared;
  const AttentionParams& params;
  const Schedule& schedule;
  RingIndex<Traits::kQStages> q;
  bool entry_known = false;  // of the work at hand: it was foreseen
  int32_t entry = 0;         // of the page table, for this lane's first box

  // who: 0 loads keys, 1 values. Behind it the launches in front are done.
  __device__ __forceinline__ LoadingWarp(typename Traits::SharedStorage& s,
                                         const AttentionParams& p, const Schedule& c, int who)
      : shared(s), params(p), schedule(c) {
    if (!schedule.foresees) {
      wait_for_prerequisites();
      return;
    }
    barrier_wait(shared.guess_written, 0);
    const WorkTile work = load_uniform(shared.work[0].tile);
    const KvSource source = source_of(work);
    const Loader loader{source, work, schedule.split};
    entry = loader.first_entry();
    wait_for_prerequisites();
    entry_known = judge_foresight<Traits>(shared, who, loader.first_entry() == entry);
  }

  // False: there is no more.
  __device__ __forceinline__ bool find(WorkTile& work) const {
    barrier_wait(shared.work_full[q.slot], q.parity);
    const bool done = load_uniform(shared.work[q.slot].key_tiles) == kNoMoreWork;
    work = load_uniform(shared.work[q.slot].tile);
    __syncwarp();
    return !done;
  }

  // And goes on to the next.
  template <int kStages, class Loaded>
  __device__ __forceinline__ void load(const WorkTile& work,
                                       typename Traits::KvTile (&dst)[kStages],
                                       const CUtensorMap& map, Barrier (&full)[kStages],
                                       Barrier (&empty)[kStages], RingIndex<kStages>& ring,
                                       const Loaded& loaded) {
    const KvSource source = source_of(work);
    const Loader loader{source, work, schedule.split};
    if (!entry_known) entry = loader.first_entry();
    entry_known = false;
    loader.load(dst, map, full, empty, ring, entry, loaded);
    q.advance();
  }

 private:
  __device__ __forceinline__ KvSource source_of(const WorkTile& work) const {
    return KvSource(params.kv, work.sequence, params.num_kv_heads, work.kv_head, params.head_dim,
                    params.fault);
  }
};

// Warp 0: loads Q and the keys. The keys of a tile are needed before the values of the tile before,
// so that the two are not queued behind each other: values have their own warp.
template <class Traits>
__device__ __forceinline__ void produce_keys(typename Traits::SharedStorage& shared,
                                             const AttentionParams& params, const TensorMaps& maps,
                                             const Schedule& schedule) {
  const int lane = threadIdx.x % 32;
  prefetch_map(maps.q);
  prefetch_map(maps.kv.k);
  LoadingWarp<Traits> warp(shared, params, schedule, 0);
  RingIndex<Traits::kKStages> k;
  for (;;) {
    WorkTile work;
    const bool done = !warp.find(work);
    const int slot = warp.q.slot;
    if (lane == 0) {
      if (done) {
        barrier_arrive(shared.q_full[slot]);
      } else {
        const int rows = schedule.tokens_per_tile * schedule.group_size;
        barrier_arrive_expect(shared.q_full[slot], Traits::kHalves * rows * 128);
        for (int half = 0; half < Traits::kHalves; ++half) {
          tma_load_3d(&shared.q[slot].data[half][0][0], maps.q, shared.q_full[slot], half * 64,
                      work.kv_head * schedule.group_size, work.sequence.q_start + work.first_token);
        }
      }
      barrier_arrive(shared.q_empty[slot]);
    }
    __syncwarp();
    if (done) break;
    // The next work is wanted when so many tiles are left to be loaded: decoding takes as long. With
    // one stage of Q nothing is gained by knowing it before the end.
    constexpr int kTilesAhead = Traits::kQStages > 1 ? 2 : 0;
    const int32_t wanted_at = min_i32(work.key_first + kTilesAhead, work.key_end - 1);
    if (work.key_first == work.key_end && lane == 0) barrier_arrive(shared.work_wanted);
    warp.load(work, shared.k, maps.kv.k, shared.k_full, shared.k_empty, k, [&](int32_t i) {
      if (i == wanted_at && lane == 0) barrier_arrive(shared.work_wanted);
    });
  }
}

// Warp 1.
template <class Traits>
__device__ __forceinline__ void produce_values(typename Traits::SharedStorage& shared,
                                               const AttentionParams& params,
                                               const TensorMaps& maps, const Schedule& schedule) {
  prefetch_map(maps.kv.v);
  LoadingWarp<Traits> warp(shared, params, schedule, 1);
  RingIndex<Traits::kVStages> v;
  for (;;) {
    WorkTile work;
    const bool done = !warp.find(work);
    if (threadIdx.x % 32 == 0) barrier_arrive(shared.q_empty[warp.q.slot]);
    if (done) break;
    warp.load(work, shared.v, maps.kv.v, shared.v_full, shared.v_empty, v, [](int32_t) {});
  }
}

}  // namespace flash_gqa::cuda::sm90
