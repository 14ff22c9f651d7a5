// K and V tiles by tensor copy: dense or paged, one box a lane for each 64-column half.
#pragma once

#include "../kv_source.h"
#include "../tile/ptx.cuh"
#include "../tile/tma.cuh"
#include "schedule.cuh"

namespace flash_gqa::cuda::sm90 {

// A tile as the copy engine writes it with its 128-byte swizzle: column halves of 64 16-bit values,
// rows of 128 bytes, 16-byte chunks permuted by the row.
template <class Element, int kTileRows, int kHeadDim>
struct TmaTile {
  static constexpr int kRows = kTileRows;
  static constexpr int kHalves = (kHeadDim + 63) / 64;
  static constexpr uint32_t kBytes = kHalves * kRows * 128;

  alignas(1024) Element data[kHalves][kRows][64];

  __device__ uint32_t address(int row, int chunk) const {
    return ptx::smem_address(data) + chunk / 8 * kRows * 128 + row * 128 +
           (chunk % 8 ^ row % 8) * 16;
  }
  // As SwizzledTile::move().
  __device__ static uint32_t move(uint32_t address, int rows, int chunks) {
    return (address ^ chunks % 8 * 16) + rows * 128 + chunks / 8 * kRows * 128;
  }
};

// Tensor maps of K and V: [pages, num_kv_heads, keys of a page, head_dim], where dense K and V are
// one page of total_kv keys; columns beyond head_dim and pages beyond the last arrive as zeros.
struct KvMaps {
  CUtensorMap k;
  CUtensorMap v;
};

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
