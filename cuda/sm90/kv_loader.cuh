// K and V tiles by tensor copy: dense or paged, one box a lane for each 64-column half.
#pragma once

#include "../kv_source.h"
#include "../tile/smem.cuh"
#include "../tile/tma.cuh"
#include "schedule.cuh"

namespace flash_gqa::cuda::sm90 {

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

// Loads the keys or values of some work, the last tile first; run by one whole warp. Each lane has a
// box, of a tile or of one of the next, whose page it looks up long before its turn: a step of the
// loop over keys is hardly longer than the copies of a tile of small pages take to be issued. Pages
// that no row sees are not looked up: their box comes from beyond the last page, as zeros, and so
// does that of an invalid page id.
template <class Tile>
struct KvLoader {
  const KvSource& source;
  const WorkTile& work;
  const BoxSplit& split;

  // Of the page table, for this lane's first box. Read anew each time.
  __device__ __forceinline__ int32_t first_entry() const {
    const int mine = tile_of_lane();
    return look_up(work.key_end - 1 - mine, row_of_lane(mine), FreshRead{});
  }

  // entry: the first. loaded(i): tile i is on its way.
  template <int kStages, class Loaded>
  __device__ __forceinline__ void load(Tile (&dst)[kStages], const CUtensorMap& map,
                                       Barrier (&full)[kStages], Barrier (&empty)[kStages],
                                       RingIndex<kStages>& ring, int32_t entry,
                                       const Loaded& loaded) const {
    const int lane = threadIdx.x % 32;
    const int mine = tile_of_lane();
    const int first_row = row_of_lane(mine);
    for (int32_t next = work.key_end - 1; next >= work.key_first;) {
      const int32_t key = key_of(next - mine, first_row);
      const int32_t row = source.paged() ? key & source.page_mask : work.sequence.kv_start + key;
      const int32_t page = page_of(next - mine, key, entry);
      entry = look_up(next - split.tiles - mine, first_row);
      const int32_t last = max_i32(work.key_first, next - split.tiles + 1);
      for (int turn = 0; next >= last; ++turn, --next, ring.advance()) {
        barrier_wait(empty[ring.slot], ring.parity ^ 1);
        if (lane == 0) barrier_arrive_expect(full[ring.slot], Tile::kBytes);
        __syncwarp();
        if (mine == turn) {
#pragma unroll
          for (int half = 0; half < Tile::kHalves; ++half) {
            tma_load_4d(&dst[ring.slot].data[half][first_row][0], map, full[ring.slot], half * 64,
                        row, work.kv_head, page);
          }
        }
        loaded(next);
      }
    }
  }

 private:
  __device__ __forceinline__ int32_t key_of(int32_t tile, int32_t row) const {
    return TileRange(work.keys, Tile::kRows).key(tile) + row;
  }
  __device__ __forceinline__ bool seen(int32_t tile, int32_t key) const {
    const KeyRange& keys = work.keys;
    return tile >= work.key_first &&
           (key < keys.sink_end || (key < keys.hi && key + split.box_keys > keys.lo));
  }
  // Which of the tiles this lane's box is of.
  __device__ __forceinline__ int tile_of_lane() const {
    return static_cast<int>(threadIdx.x % 32) * split.boxes_inverse >> 16;
  }
  __device__ __forceinline__ int row_of_lane(int tile) const {
    return (static_cast<int>(threadIdx.x % 32) - tile * split.boxes) * split.box_keys;
  }
  // The entry of the page table.
  template <class Read = PlainRead>
  __device__ __forceinline__ int32_t look_up(int32_t tile, int32_t row,
                                             const Read& read = {}) const {
    const int32_t key = key_of(tile, row);
    return source.paged() && seen(tile, key) ? source.page_entry(key, read) : 0;
  }
  __device__ __forceinline__ int32_t page_of(int32_t tile, int32_t key, int32_t entry) const {
    if (!source.paged()) return 0;
    const int32_t page = seen(tile, key) ? source.checked_page(entry) : -1;
    return page >= 0 ? page : source.num_pages;
  }
};

}  // namespace flash_gqa::cuda::sm90
