// K and V tiles by tensor copy: dense or paged, one box a lane for each 64-column half.
#pragma once

#include "../kv_source.h"
#include "../tile/smem.cuh"
#include "../tile/tma.cuh"
#include "schedule.cuh"

namespace flash_gqa::cuda::sm90 {

// Loads key or value rows from `first_key` on; run by one whole warp. Pages that no row sees are
// not looked up: their box comes from beyond the last page, as zeros, and so does that of an
// invalid page id.
template <class Tile>
struct KvLoader {
  const KvSource& source;
  const WorkTile& work;
  int32_t box_keys;  // key rows of one box; a tile is a whole number of boxes

  // Once `dst` is empty; until then the page is looked up.
  __device__ __forceinline__ void load(Tile& dst, const CUtensorMap& map, Barrier& full,
                                       Barrier& empty, uint32_t empty_parity,
                                       int32_t first_key) const {
    const int lane = threadIdx.x % 32;
    const KeyRange& keys = work.keys;
    const int32_t key = first_key + lane * box_keys;
    int32_t row = work.sequence.kv_start + key;
    int32_t page = 0;
    const bool mine = lane * box_keys < Tile::kRows;
    if (mine && source.paged()) {
      const bool seen = key < keys.sink_end || (key < keys.hi && key + box_keys > keys.lo);
      page = seen ? source.page_of(key) : -1;
      if (page < 0) page = source.num_pages;
      row = key & source.page_mask;
    }
    barrier_wait(empty, empty_parity);
    if (lane == 0) barrier_arrive_expect(full, Tile::kBytes);
    __syncwarp();
    if (!mine) return;
#pragma unroll
    for (int half = 0; half < Tile::kHalves; ++half) {
      tma_load_4d(&dst.data[half][lane * box_keys][0], map, full, half * 64, row, work.kv_head,
                  page);
    }
  }
};

}  // namespace flash_gqa::cuda::sm90
