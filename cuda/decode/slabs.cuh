// Which slabs a warp asks for, and where they lie; and its own ring of slabs on their way from memory,
// by cp.async. A place is asked for again as soon as it is free; no other warp waits for it.
#pragma once

#include "../kv_source.h"
#include "division.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda::decode {

// Of one warp: slabs begin, begin + stride, ... below end. What the loop over them needs seldom stays in
// shared memory: its registers are the products'.
struct SlabWalk {
  const DecodeArgs& args;
  const AttentionParams& params;
  const Pair& pair;  // in shared memory, which the block's first barrier makes visible
  const TileRange tiles;
  const int32_t begin;
  const int32_t end;
  const int32_t stride;
  int32_t next;            // the next slab to be asked for
  int32_t pages_now = 0;   // lane i: the page of this warp's slab i of the present 32 slabs
  int32_t pages_next = 0;  // and of the 32 behind them
  int32_t page_at = 0;

  __device__ SlabWalk(const DecodeArgs& decode_args, const Pair& shared_pair,
                      const TileRange& range, int32_t first, int32_t last, int32_t slab_stride)
      : args(decode_args),
        params(decode_args.params),
        pair(shared_pair),
        tiles(range),
        begin(first),
        end(last),
        stride(slab_stride),
        next(first) {}

  __device__ bool paged() const { return params.kv.page_table != nullptr; }
  // Whether the last slab has been asked for, and nothing since.
  __device__ bool has_just_ended() const { return next >= end && next - stride < end; }

  // Of this lane's slab of the first 32, and of the 32 behind them.
  struct FirstPages {
    int32_t now;
    int32_t next;
    __device__ bool operator==(const FirstPages& p) const { return now == p.now && next == p.next; }
  };
  __device__ FirstPages read_pages(const Sequence& sequence, int32_t* fault) const {
    if (!paged() || args.small_pages()) return {0, 0};
    const int lane = threadIdx.x % 32;
    return {page_of(sequence, begin + lane * stride, fault),
            page_of(sequence, begin + (32 + lane) * stride, fault)};
  }
  __device__ void start_with(const FirstPages& pages) {
    pages_now = pages.now;
    pages_next = pages.next;
  }
  // The page of the next slab, where it lies in one; each may be asked for once. An id is read once, and
  // 32 of them at a time.
  __device__ int32_t take_page() {
    const int lane = threadIdx.x % 32;
    const int32_t page = __shfl_sync(0xffffffffu, pages_now, page_at);
    if (++page_at == 32) {
      page_at = 0;
      pages_now = pages_next;
      pages_next = page_of(pair.sequence, next + (33 + lane) * stride, params.fault);
    }
    return page;
  }

  // The next slab in small pages, by cp.async; rows that nothing sees, rows of an invalid page and columns
  // beyond head_dim are zeros. Returns the keys whose page id is invalid, one bit each. For one warp.
  template <class T>
  __device__ uint32_t copy_rows(Slab<T>& slab, int32_t kv_head) const {
    using Element = typename T::Element;
    constexpr int kChunks = T::kHeadDim / 8;  // of 16 bytes in a row
    const int lane = threadIdx.x % 32;
    const int32_t key = tiles.key(next) + lane % kSlabKeys;
    const KvSource source(params.kv, pair.sequence, params.num_kv_heads, kv_head, params.head_dim,
                          params.fault);
    const auto* const pages = static_cast<const Element*>(params.kv.k);
    const bool seen = pair.visible.contains(key);
    const int64_t row_of_lane = seen ? source.k_offset(key) : -1;
#pragma unroll 1
    for (int row = 0; row < kSlabKeys; ++row) {
      const int64_t at = __shfl_sync(0xffffffffu, row_of_lane, row);
#pragma unroll 1
      for (int i = lane; i < 2 * kChunks; i += 32) {
        const bool of_k = i < kChunks;
        const int chunk = of_k ? i : i - kChunks;
        const bool inside = at >= 0 && chunk * 8 < params.head_dim;
        const int64_t from = at + (of_k ? 0 : source.v_in_page) + chunk * 8;
        ptx::cp_async_16((of_k ? slab.k : slab.v).address(row, chunk),
                         inside ? pages + from : pages, inside);
      }
    }
    return __ballot_sync(0xffffffffu, seen && row_of_lane < 0) & 0xffffu;
  }

 private:
  __device__ int32_t page_of(const Sequence& sequence, int32_t slab, int32_t* fault) const {
    if (slab >= end) return 0;
    const KvSource source(params.kv, sequence, params.num_kv_heads, 0, params.head_dim, fault);
    return source.page_of(tiles.key(slab), FreshRead{});
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
  const KvSource source;
  const KeyRange visible;
  const int32_t kv_head;
  const Element* k_lane;  // this lane's first 16 bytes of the source's first row
  const Element* v_lane;

  __device__ AsyncRing(SharedStorage<T>& shared, const DecodeArgs&, uint32_t&, const Pair& own_pair,
                       int32_t head, const SlabWalk& walk)
      : SlabWalk(walk),
        slabs(shared.ring + threadIdx.x / 32 * kStages),
        bad(shared.bad[threadIdx.x / 32]),
        source(params.kv, own_pair.sequence, params.num_kv_heads, head, params.head_dim,
               params.fault),
        visible(own_pair.visible),
        kv_head(head) {
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
    if (next < end) {
      if (args.small_pages()) [[unlikely]] {
        const uint32_t missing = copy_rows<T>(slabs[stage], kv_head);
        if (threadIdx.x % 32 == 0) bad[stage] = missing;
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
  __device__ void release() const { __syncwarp(); }
  __device__ void prefetch() const {}

  // Returns when the oldest slab asked for, at `stage`, may be read.
  __device__ void wait(int) {
    ptx::cp_async_wait<kStages - 1>();
    __syncwarp();
  }
};

}  // namespace flash_gqa::cuda::decode
