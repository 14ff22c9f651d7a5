// The producer warps of the Hopper decode kernel: one keeps the ring's K tiles coming, the other its V tiles.
#pragma once

#include "decode_traits.cuh"

namespace flash_gqa::cuda::sm90 {

// Page ids of a segment's boxes. A warp reads those of a batch of tiles at once, a lane a box, and takes them a batch
// later: no tile but the segment's first waits for its table entries.
struct PageBatch {
  const KvSource& source;
  const KeyRange& keys;  // that at least one row sees: other pages are not looked up
  const TileRange& tiles;
  int32_t box_keys;
  int32_t boxes;  // of a tile
  int32_t entry = 0;
  bool seen = false;

  __device__ __forceinline__ int32_t size() const { return 32 / boxes; }  // in tiles

  __device__ __forceinline__ void read(int32_t first_tile, int32_t last_tile) {
    const int lane = threadIdx.x % 32;
    const int32_t tile = first_tile + lane / boxes;
    seen = false;
    if (tile >= last_tile) return;
    const int32_t key = tiles.key(tile) + lane % boxes * box_keys;
    seen = key < keys.sink_end || (key < keys.hi && key + box_keys > keys.lo);
    if (seen) entry = source.page_entry(key);
  }
  // Boxes that no row sees, or whose id is invalid, come from beyond the last page, as zeros.
  __device__ __forceinline__ int32_t take() const {
    const int32_t page = seen ? source.checked_page(entry) : -1;
    return page < 0 ? source.num_pages : page;
  }
};

// Run by one whole warp.
template <class Traits>
struct DecodeProducer {
  typename Traits::KvTile* ring;
  Barrier* full;
  Barrier* empty;
  const CUtensorMap& map;
  const DecodeArgs& args;
  RingPosition<Traits::kStages> at = {};

  __device__ __forceinline__ void load_box(int box, int32_t kv_head, int32_t row, int32_t page) {
    auto* dst = ring[at.stage].data + box * args.box_keys * (Traits::Math::kHalves * 64);
    for (int half = 0; half < Traits::Math::kHalves; half += args.box_halves) {
      // Where a box is one half, the column finds it, so that columns beyond head_dim are zeros.
      tma_load_5d(dst + half * args.box_keys * 64, map, full[at.stage], half * 64, row, 0, kv_head,
                  page);
    }
  }

  __device__ __forceinline__ void load_segment(const SegmentWalk& walk) {
    constexpr uint32_t kAll = 0xffffffff;
    const bool leader = threadIdx.x % 32 == 0;
    const TileRange tiles(walk.s.keys, Traits::kTileKv);
    if (tiles.count() == 0) return;
    const KvSource source(args.params.kv, walk.s.sequence, args.params.num_kv_heads,
                          walk.at.kv_head, args.params.head_dim, args.params.fault);
    const int boxes = Traits::kTileKv / args.box_keys;
    const int32_t last = walk.at.tile + walk.count;
    PageBatch batch{source, walk.s.keys, tiles, args.box_keys, boxes};
    int32_t page = 0;
    int32_t position = 0;  // in the batch
    if (source.paged()) {
      batch.read(walk.at.tile, last);
      position = batch.size();
    }
    for (int32_t tile = walk.at.tile; tile < last; ++tile) {
      if (source.paged() && position == batch.size()) {
        position = 0;
        page = batch.take();
        batch.read(tile + batch.size(), last);
      }
      barrier_wait(empty[at.stage], at.parity ^ 1);
      if (leader) barrier_arrive_expect(full[at.stage], Traits::kTileBytes);
      const int32_t key = tiles.key(tile);
      if (!source.paged()) {
        if (leader) load_box(0, walk.at.kv_head, walk.s.sequence.kv_start + key, 0);
      } else {
        for (int box = 0; box < boxes; ++box) {
          const int32_t box_page = __shfl_sync(kAll, page, position * boxes + box);
          const int32_t row = (key + box * args.box_keys) & source.page_mask;
          if (leader) load_box(box, walk.at.kv_head, row, box_page);
        }
        ++position;
      }
      __syncwarp();
      at.advance();
    }
  }

  __device__ __forceinline__ void run(const BlockRange& range) {
    SegmentWalk walk(args.params, args.shape, range);
    while (walk.next()) load_segment(walk);
  }
};

}  // namespace flash_gqa::cuda::sm90
