// A warp's own ring of slabs on their way from memory (cp.async): asked for as soon as a place is
// free. No other warp waits for it.
#pragma once

#include "../kv_source.h"
#include "../tile/mma.cuh"
#include "division.cuh"

namespace flash_gqa::cuda::decode {

template <class ElementType, int kDim>
struct Traits {
  using Element = ElementType;
  static constexpr int kHeadDim = kDim;
  using Math = MmaMath<Element, kHeadDim, 1, 1, 1, kSlabKeys>;
  using Tile = SwizzledTile<Element, kSlabKeys, kHeadDim>;
  // 96 KB in flight for each block, which two blocks of a multiprocessor and the 99 KB of sm_86 and
  // sm_89 have room for; 192 KB, and one block, where two stages are the least.
  static constexpr int kStages = kHeadDim == 256 ? 3 : 96 * 1024 / (kWarps * 64 * kHeadDim);
  static constexpr int kPartsAtOnce = 2;
  static constexpr int kBlocksPerSm = kHeadDim == 256 ? 1 : 2;
};

template <class T>
struct Slab {
  typename T::Tile k;  // [kSlabKeys, kHeadDim]
  typename T::Tile v;  // [kSlabKeys, kHeadDim]
};

// Rows that nothing sees, rows of an invalid page, and columns beyond head_dim arrive as zeros: a
// masked probability of 0 times a NaN left in a page would still be NaN.
template <class T>
struct SlabRing {
  using Element = typename T::Element;
  using Tile = typename T::Tile;
  static constexpr int kStages = T::kStages;
  // A row is copied by kRowThreads neighbours, 16 bytes each at a time.
  static constexpr int kRowThreads = Tile::kPermuted;
  static constexpr int kPassRows = 32 / kRowThreads;
  static constexpr int kPasses = kSlabKeys / kPassRows;

  const AttentionParams& params;
  const KvSource& source;
  const TileRange tiles;
  const KeyRange visible;
  Slab<T>* const slabs;  // [kStages]
  uint32_t* const bad;   // [kStages] keys of the slab whose page id is invalid, one bit each
  const int32_t begin;   // this warp works on slabs begin, begin + stride, ... below end
  const int32_t end;
  const int32_t stride;
  int32_t next;           // the next slab to be asked for
  const Element* k_lane;  // this lane's first 16 bytes of the source's first row
  const Element* v_lane;
  int32_t pages_now = 0;   // lane i: the page of this warp's slab i of the present 32 slabs
  int32_t pages_next = 0;  // and of the 32 behind them
  int32_t page_at = 0;

  __device__ SlabRing(const AttentionParams& p, const KvSource& from, const TileRange& range,
                      const KeyRange& keys, Slab<T>* places, uint32_t* bad_keys, int32_t first,
                      int32_t last, int32_t slab_stride)
      : params(p),
        source(from),
        tiles(range),
        visible(keys),
        slabs(places),
        bad(bad_keys),
        begin(first),
        end(last),
        stride(slab_stride),
        next(first) {
    const int lane = threadIdx.x % 32;
    const int32_t row = lane / kRowThreads;
    const int32_t col = lane % kRowThreads * Tile::kChunk;
    k_lane = static_cast<const Element*>(params.kv.k) + source.k_base + source.head_offset +
             row * source.k_stride_token + col;
    v_lane = source.paged() ? k_lane + source.v_in_page
                            : static_cast<const Element*>(params.kv.v) + source.v_base +
                                  row * source.v_stride_token + col;
    look_up();
  }

  // The first pages. False: they are not those that were found before, or not remembered.
  __device__ bool look_up() {
    if (!whole_pages()) return !source.paged();
    const int lane = threadIdx.x % 32;
    const int32_t now = page_of(begin + lane * stride);
    const int32_t behind = page_of(begin + (32 + lane) * stride);
    const bool same = __all_sync(0xffffffffu, now == pages_now && behind == pages_next);
    pages_now = now;
    pages_next = behind;
    return same;
  }
  // Forgets what was asked for.
  __device__ void rewind() {
    ptx::cp_async_wait<0>();
    __syncwarp();
    next = begin;
    page_at = 0;
  }

  // A slab lies in one page: its id is read once, and 32 of them at a time.
  __device__ bool whole_pages() const {
    return source.paged() && source.page_mask + 1 >= kSlabKeys;
  }
  __device__ int32_t page_of(int32_t slab) const {
    return slab < end ? source.page_of(tiles.key(slab), FreshRead{}) : 0;
  }

  __device__ void ask(int stage) {
    if (next < end) {
      if (source.paged() && !whole_pages()) [[unlikely]] {
        ask_rows(stage);
      } else {
        ask_slab(stage);
      }
    }
    ptx::cp_async_commit();  // also where nothing was asked for, so that the wait counts slabs
    next += stride;
  }

  // Dense, or in one page: rows follow each other.
  __device__ void ask_slab(int stage) {
    const int lane = threadIdx.x % 32;
    const int32_t key = tiles.key(next);
    const Element* k = k_lane;
    const Element* v = v_lane;
    bool found = true;
    if (source.paged()) {
      const int32_t page = __shfl_sync(0xffffffffu, pages_now, page_at);
      if (++page_at == 32) {
        page_at = 0;
        pages_now = pages_next;
        pages_next = page_of(next + (33 + lane) * stride);
      }
      found = page >= 0;
      const int64_t offset = page * source.stride_page +
                             static_cast<int64_t>(key & source.page_mask) * source.k_stride_token;
      k += offset;
      v += offset;
    } else {
      k += key * source.k_stride_token;
      v += key * source.v_stride_token;
    }
    if (lane == 0) bad[stage] = found ? 0 : 0xffffu;
    const int32_t row = lane / kRowThreads;
    Slab<T>& slab = slabs[stage];
    const int64_t k_pass = kPassRows * source.k_stride_token;
    const int64_t v_pass = kPassRows * source.v_stride_token;
    if (found && tile_is_full(visible, key, kSlabKeys) && params.head_dim == T::kHeadDim)
        [[likely]] {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass, k += k_pass, v += v_pass) {
        const uint32_t k_to = slab.k.address(row + pass * kPassRows, lane % kRowThreads);
        const uint32_t v_to = slab.v.address(row + pass * kPassRows, lane % kRowThreads);
#pragma unroll
        for (int chunks = 0; chunks < Tile::kChunks; chunks += kRowThreads) {
          ptx::cp_async_16(Tile::move(k_to, 0, chunks), k + chunks * Tile::kChunk);
          ptx::cp_async_16(Tile::move(v_to, 0, chunks), v + chunks * Tile::kChunk);
        }
      }
      return;
    }
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass, k += k_pass, v += v_pass) {
      const int32_t to = row + pass * kPassRows;
      copy_row(slab, to, found && visible.contains(key + to), k, v);
    }
  }

  // Pages of fewer keys than a slab: one key for each lane is looked up.
  __device__ void ask_rows(int stage) {
    const int lane = threadIdx.x % 32;
    const int32_t key = tiles.key(next) + lane % kSlabKeys;
    const bool seen = visible.contains(key);
    const int64_t found = seen ? source.k_offset(key) - source.head_offset : -1;
    const uint32_t missing = __ballot_sync(0xffffffffu, seen && found < 0) & 0xffffu;
    if (lane == 0) bad[stage] = missing;
    const int32_t row = lane / kRowThreads;
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass) {
      const int32_t to = row + pass * kPassRows;
      const int64_t offset = __shfl_sync(0xffffffffu, found, to) - row * source.k_stride_token;
      const bool valid = __shfl_sync(0xffffffffu, found, to) >= 0;
      copy_row(slabs[stage], to, valid, k_lane + offset, v_lane + offset);
    }
  }

  // A lane's 16-byte chunks of one row of K and V.
  __device__ __forceinline__ void copy_row(Slab<T>& slab, int32_t row, bool valid, const Element* k,
                                           const Element* v) const {
    const int32_t first_chunk = threadIdx.x % kRowThreads;
    const uint32_t k_to = slab.k.address(row, first_chunk);
    const uint32_t v_to = slab.v.address(row, first_chunk);
#pragma unroll
    for (int chunks = 0; chunks < Tile::kChunks; chunks += kRowThreads) {
      const bool inside = valid && (first_chunk + chunks) * Tile::kChunk < params.head_dim;
      const int32_t col = chunks * Tile::kChunk;
      ptx::cp_async_16(Tile::move(k_to, 0, chunks), inside ? k + col : k_lane, inside);
      ptx::cp_async_16(Tile::move(v_to, 0, chunks), inside ? v + col : k_lane, inside);
    }
  }

  // Returns when the oldest slab asked for may be read.
  __device__ void wait() {
    ptx::cp_async_wait<kStages - 1>();
    __syncwarp();
  }
};

}  // namespace flash_gqa::cuda::decode
