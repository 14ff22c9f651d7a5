// Which slabs a warp asks for, and where they lie; and its own ring of slabs on their way from memory,
// by cp.async. A place is asked for again as soon as it is free; no other warp waits for it.
#pragma once

#include "../kv_source.h"
#include "division.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda::decode {

struct SlabWalk {
  const AttentionParams& params;
  const KvSource& source;
  const TileRange tiles;
  const KeyRange visible;
  const int32_t begin;  // this warp works on slabs begin, begin + stride, ... below end
  const int32_t end;
  const int32_t stride;
  int32_t next;            // the next slab to be asked for
  int32_t pages_now = 0;   // lane i: the page of this warp's slab i of the present 32 slabs
  int32_t pages_next = 0;  // and of the 32 behind them
  int32_t page_at = 0;

  __device__ SlabWalk(const AttentionParams& p, const KvSource& from, const TileRange& range,
                      const KeyRange& keys, int32_t first, int32_t last, int32_t slab_stride)
      : params(p),
        source(from),
        tiles(range),
        visible(keys),
        begin(first),
        end(last),
        stride(slab_stride),
        next(first) {
    const FirstPages first_pages = read_pages();
    pages_now = first_pages.now;
    pages_next = first_pages.next;
  }

  // Of this lane's slab of the first 32, and of the 32 behind them.
  struct FirstPages {
    int32_t now;
    int32_t next;
  };
  __device__ FirstPages read_pages() const {
    if (!source.paged()) return {0, 0};
    const int lane = threadIdx.x % 32;
    return {page_of(begin + lane * stride), page_of(begin + (32 + lane) * stride)};
  }
  // While no more than the first slabs have been asked for.
  __device__ bool found(const FirstPages& pages) const {
    return pages.now == pages_now && pages.next == pages_next;
  }
  // The page of the next slab; each may be asked for once. A slab lies in one page, because pages of
  // fewer keys are not decode/'s: so an id is read once, and 32 of them at a time.
  __device__ int32_t take_page() {
    const int lane = threadIdx.x % 32;
    const int32_t page = __shfl_sync(0xffffffffu, pages_now, page_at);
    if (++page_at == 32) {
      page_at = 0;
      pages_now = pages_next;
      pages_next = page_of(next + (33 + lane) * stride);
    }
    return page;
  }

 private:
  __device__ int32_t page_of(int32_t slab) const {
    return slab < end ? source.page_of(tiles.key(slab), FreshRead{}) : 0;
  }
};

// Rows that nothing sees, rows of an invalid page, and columns beyond head_dim arrive as zeros: a
// masked probability of 0 times a NaN left in a page would still be NaN.
template <class T>
struct AsyncRing : SlabWalk {
  using Element = typename T::Element;
  using Tile = typename T::Tile;
  static constexpr int kStages = T::kStages;
  // A row is copied by kRowThreads neighbours, 16 bytes each at a time.
  static constexpr int kRowThreads = Tile::kPermuted;
  static constexpr int kPassRows = 32 / kRowThreads;
  static constexpr int kPasses = kSlabKeys / kPassRows;

  Slab<T>* const slabs;  // [kStages]
  uint32_t* const bad;   // [kStages]
  const Element* k_lane;  // this lane's first 16 bytes of the source's first row
  const Element* v_lane;

  __device__ AsyncRing(SharedStorage<T>& shared, const DecodeArgs&, int warp, uint32_t&,
                       const Sequence&, int32_t, const SlabWalk& walk)
      : SlabWalk(walk), slabs(shared.ring + warp * kStages), bad(shared.bad[warp]) {
    const int lane = threadIdx.x % 32;
    const int32_t row = lane / kRowThreads;
    const int32_t col = lane % kRowThreads * Tile::kChunk;
    k_lane = static_cast<const Element*>(params.kv.k) + source.k_base + source.head_offset +
             row * source.k_stride_token + col;
    v_lane = source.paged() ? k_lane + source.v_in_page
                            : static_cast<const Element*>(params.kv.v) + source.v_base +
                                  row * source.v_stride_token + col;
  }

  __device__ void ask_first() {
#pragma unroll 1
    for (int stage = 0; stage < kStages; ++stage) ask(stage);
  }
  // Nothing may be on its way when the ring is given up.
  __device__ void give_up() { drain(); }
  // Waits for all copies.
  __device__ void drain() {
    ptx::cp_async_wait<0>();
    __syncwarp();
  }

  __device__ void ask(int stage) {
    if (next < end) ask_slab(stage);
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
      const int32_t page = take_page();
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

  // Rows that nothing sees are zeros already.
  __device__ void clean(int, int32_t) const {}

  // Returns when the oldest slab asked for, at `stage`, may be read.
  __device__ void wait(int) {
    ptx::cp_async_wait<kStages - 1>();
    __syncwarp();
  }
};

}  // namespace flash_gqa::cuda::decode
