// Which slabs a warp asks for, and where they lie; and its own ring of slabs on their way from memory,
// by cp.async. A place is asked for again as soon as it is free; no other warp waits for it.
#pragma once

#include "../kv_source.h"
#include "division.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda::decode {

// Of one warp's piece: slabs begin, begin + stride, ... below end.
struct SlabWalk {
  TileRange tiles;
  int32_t begin = 0;
  int32_t end = 0;  // where no key is seen, or a shorter sequence has not the rows, still 0
  int32_t stride = 0;
  int32_t next = 0;        // the next slab to be asked for
  int32_t row_start = 0;   // of a box: where the sequence begins, unless it has pages
  int32_t table_row = 0;   // of its page table
  int32_t pages_now = 0;   // lane i: the page of this warp's slab i of the present 32 slabs
  int32_t pages_next = 0;  // and of the 32 behind them
  int32_t page_at = 0;

  __device__ SlabWalk() : tiles({}, kSlabKeys) {}
  __device__ SlabWalk(const DecodeArgs& args, const Piece& piece, int32_t first_row, int key_warp)
      : tiles(piece.pair.visible, kSlabKeys),
        begin(piece.first + key_warp),
        end(first_row < piece.pair.rows ? min_i32(piece.last, tiles.count()) : 0),
        stride(piece.stride),
        next(begin),
        row_start(args.paged() ? 0 : piece.pair.sequence.kv_start),
        table_row(piece.pair.sequence.table_row) {}

  // Of this lane's slab of the first 32, and of the 32 behind them.
  struct FirstPages {
    int32_t now;
    int32_t next;
    __device__ bool operator==(const FirstPages& p) const { return now == p.now && next == p.next; }
  };
  __device__ FirstPages read_pages(const DecodeArgs& args, int32_t* fault) const {
    if (!args.paged() || args.small_pages()) return {0, 0};
    const int lane = threadIdx.x % 32;
    return {page_of(args, begin + lane * stride, fault),
            page_of(args, begin + (32 + lane) * stride, fault)};
  }
  __device__ void start_with(const FirstPages& pages) {
    pages_now = pages.now;
    pages_next = pages.next;
  }
  // The page of the next slab, where it lies in one; each may be asked for once. An id is read once, and
  // 32 of them at a time.
  __device__ __forceinline__ int32_t take_page(const DecodeArgs& args) {
    const int lane = threadIdx.x % 32;
    const int32_t page = __shfl_sync(0xffffffffu, pages_now, page_at);
    if (++page_at == 32) {
      page_at = 0;
      pages_now = pages_next;
      pages_next = page_of(args, next + (33 + lane) * stride, args.params.fault);
    }
    return page;
  }

 private:
  __device__ int32_t page_of(const DecodeArgs& args, int32_t slab, int32_t* fault) const {
    if (slab >= end) return 0;
    Sequence sequence{};
    sequence.table_row = table_row;
    const AttentionParams& params = args.params;
    const KvSource source(params.kv, sequence, params.num_kv_heads, 0, params.head_dim, fault);
    return source.page_of(tiles.key(slab), FreshRead{});
  }
};

// A slab in small pages, by one warp with cp.async; rows that nothing sees, rows of an invalid page and
// columns beyond head_dim are zeros. Returns the keys whose page id is invalid, one bit each.
template <class T>
__device__ __noinline__ uint32_t copy_rows(Slab<T>& slab, const DecodeArgs& args,
                                           const KvSource& source, const KeyRange& visible,
                                           int32_t first_key) {
  using Element = typename T::Element;
  constexpr int kChunks = T::kHeadDim / 8;  // of 16 bytes in a row
  const AttentionParams& params = args.params;
  const int lane = threadIdx.x % 32;
  const int32_t key = first_key + lane % kSlabKeys;
  const auto* const pages = static_cast<const Element*>(params.kv.k);
  const bool seen = visible.contains(key);
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
      ptx::cp_async_16((of_k ? slab.k : slab.v).address(row, chunk), inside ? pages + from : pages,
                       inside);
    }
  }
  return __ballot_sync(0xffffffffu, seen && row_of_lane < 0) & 0xffffu;
}

// Rows that nothing sees, rows of an invalid page, and columns beyond head_dim arrive as zeros: a
// masked probability of 0 times a NaN left in a page would still be NaN.
template <class T>
class AsyncRing {
 public:
  __device__ AsyncRing(SharedStorage<T>& shared, const DecodeArgs& decode_args)
      : args(decode_args),
        slabs(shared.ring + key_warp() * kStages),
        bad(shared.bad[key_warp()]),
        source(decode_args.params.kv, Sequence{}, 1, 0, 0, nullptr) {}

  // Begins a piece; whatever was asked for before has been waited for. The ids of its first pages.
  __device__ SlabWalk::FirstPages begin(const Piece& piece, int32_t head, int32_t first_row,
                                        int32_t* fault) {
    const AttentionParams& params = args.params;
    const Sequence& sequence = piece.pair.sequence;
    walk = SlabWalk(args, piece, first_row, key_warp());
    const SlabWalk::FirstPages pages = walk.read_pages(args, fault);
    walk.start_with(pages);
    source = KvSource(params.kv, sequence, params.num_kv_heads, head, params.head_dim, fault);
    visible = piece.pair.visible;
    stage = 0;
    const int lane = threadIdx.x % 32;
    const int32_t row = lane / kRowThreads;
    const int32_t col = lane % kRowThreads * Tile::kChunk;
    k_lane = static_cast<const Element*>(params.kv.k) + source.k_base + source.head_offset +
             row * source.k_stride_token + col;
    v_lane = source.paged() ? k_lane + source.v_in_page
                            : static_cast<const Element*>(params.kv.v) + source.v_base +
                                  row * source.v_stride_token + col;
    return pages;
  }
  // Asks for its first slabs.
  __device__ void fill() {
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) {
      ask([] {});
      advance();
    }
  }

  // The piece at hand, before the next one is asked for.
  __device__ const SlabWalk& current() const { return walk; }

  // Returns when the oldest slab asked for may be read.
  __device__ void wait() {
    ptx::cp_async_wait<kStages - 1>();
    __syncwarp();
  }
  __device__ const Slab<T>& slab() const { return slabs[stage]; }
  // Its keys whose page id is invalid, one bit each.
  __device__ uint32_t bad_keys() const { return source.paged() ? bad[stage] : 0; }
  // Rows that nothing sees are zeros already.
  __device__ void clean(const KeyRange&, int32_t) const {}
  // The slab has been read.
  __device__ void release() const { __syncwarp(); }

  // Asks for the next one in its place, if there is one; was_last() if it was the last.
  template <class WasLast>
  __device__ void ask(const WasLast& was_last) {
    if (walk.next < walk.end) {
      if (args.small_pages()) [[unlikely]] {
        const uint32_t missing =
            copy_rows(slabs[stage], args, source, visible, walk.tiles.key(walk.next));
        if (threadIdx.x % 32 == 0) bad[stage] = missing;
      } else {
        ask_slab();
      }
      if (walk.next + walk.stride >= walk.end) was_last();
    }
    ptx::cp_async_commit();  // also where nothing was asked for, so that the wait counts slabs
    walk.next += walk.stride;
  }
  __device__ void advance() {
    if (++stage == kStages) stage = 0;
  }

  // Nobody guesses, and no piece follows another, where cp.async fills the ring.
  __device__ bool asks_at_once() const { return false; }
  __device__ void prefetch() const {}
  __device__ SlabWalk::FirstPages read_pages(int32_t*) const { return {}; }
  __device__ void give_up() const {}

  // Waits for all copies.
  __device__ void drain() {
    ptx::cp_async_wait<0>();
    __syncwarp();
  }

 private:
  using Element = typename T::Element;
  using Tile = typename T::Tile;
  static constexpr int kStages = T::kStages;
  // A row is copied by kRowThreads neighbours, 16 bytes each at a time.
  static constexpr int kRowThreads = Tile::kPermuted;
  static constexpr int kPassRows = 32 / kRowThreads;
  static constexpr int kPasses = kSlabKeys / kPassRows;

  const DecodeArgs& args;
  Slab<T>* const slabs;  // [kStages]
  uint32_t* const bad;   // [kStages]
  SlabWalk walk;
  KvSource source;
  KeyRange visible;
  int stage = 0;
  const Element* k_lane = nullptr;  // this lane's first 16 bytes of the source's first row
  const Element* v_lane = nullptr;

  __device__ static int key_warp() { return threadIdx.x / 32 % kKeyWarps; }

  // Dense, or in one page: rows follow each other.
  __device__ void ask_slab() {
    const int lane = threadIdx.x % 32;
    const int32_t key = walk.tiles.key(walk.next);
    const Element* k = k_lane;
    const Element* v = v_lane;
    bool found = true;
    if (source.paged()) {
      const int32_t page = walk.take_page(args);
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
    if (found && tile_is_full(visible, key, kSlabKeys) && args.params.head_dim == T::kHeadDim)
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
      const bool inside = valid && (first_chunk + chunks) * Tile::kChunk < args.params.head_dim;
      const int32_t col = chunks * Tile::kChunk;
      ptx::cp_async_16(Tile::move(k_to, 0, chunks), inside ? k + col : k_lane, inside);
      ptx::cp_async_16(Tile::move(v_to, 0, chunks), inside ? v + col : k_lane, inside);
    }
  }
};

}  // namespace flash_gqa::cuda::decode
