// A ring of slabs filled by the copy engine (sm_90 and later): one instruction asks for a slab's keys or
// values, and a barrier counts the bytes that have come. Or, where pages are small, by cp.async.
#pragma once

#include "../tile/tma.cuh"
#include "slabs.cuh"

namespace flash_gqa::cuda::decode {

// Shared by the warps of all row groups; that of the first asks for slabs. Boxes hold rows that
// nothing sees: clean() makes zeros of their values. Those of an invalid page, and columns beyond
// head_dim, arrive as zeros.
//
// Where T::kFollows, the places that a piece no longer needs are filled with the keys of the next one at
// once, so that memory has something to do while the block merges.
template <class T>
class TmaRing {
 public:
  static constexpr int kArrivals = T::kSmallPages ? 33 : 1;  // at a barrier, for one slab

  __device__ TmaRing(SharedStorage<T>& shared, const DecodeArgs& decode_args)
      : args(decode_args),
        slabs(shared.ring + key_warp() * decode_args.stages),
        full(shared.full[key_warp()]),
        bad(shared.bad[key_warp()]),
        leads(threadIdx.x < 32 * kKeyWarps) {}

  // Begins a piece, unless follow() has. Nothing is asked for yet. Returns the ids of its first pages.
  __device__ __forceinline__ SlabWalk::FirstPages begin(const Piece& piece, int32_t head,
                                                        int32_t first_row, int32_t* fault) {
    if (followed) {
      followed = false;
      return {};
    }
    kv_head = head;
    tile_row = first_row;
    walk = walk_of(piece);
    at_hand = &piece;
    if constexpr (T::kSmallPages) return {};
    const SlabWalk::FirstPages pages = walk.read_pages(args, fault);
    walk.start_with(pages);
    return pages;
  }
  __device__ SlabWalk::FirstPages read_pages(int32_t* fault) const {
    return walk.read_pages(args, fault);
  }
  // Whether fill() asks for all keys of the piece.
  __device__ bool asks_at_once() const {
    return walk.end <= walk.begin + args.stages * walk.stride;
  }

  // Lets the L2 fetch the first slab. All writes meet there, so that this may be done before the launches
  // in front are done: what is read behind them is right in any case.
  __device__ __forceinline__ void prefetch() const {
    if (!leads || walk.begin >= walk.end) return;
    const int32_t page = __shfl_sync(0xffffffffu, walk.pages_now, 0);
    const int half = threadIdx.x % 32 / 2;
    const CUtensorMap& map = threadIdx.x % 2 == 0 ? args.maps.k : args.maps.v;
    if (page >= 0 && half < args.boxes)
      tma_prefetch_5d(map, half * 64, row_of(walk.begin), 0, kv_head, page);
  }

  // Asks for the first slabs of a piece, as far as that has not been done.
  __device__ __forceinline__ void fill() {
    int at = T::kFollows ? free_stage : stage;
#pragma unroll 1
    while (walk.next < walk.end && walk.next < walk.begin + args.stages * walk.stride) {
      ask_slab(at);
      at = behind(at);
    }
    if constexpr (T::kFollows) free_stage = at;
  }

  // The piece at hand, before the next one is asked for.
  __device__ const SlabWalk& current() const { return walk; }

  // Returns when the oldest slab asked for may be read.
  __device__ __forceinline__ void wait() {
    barrier_wait(full[stage], parities >> stage & 1);
    parities ^= 1u << stage;
  }
  __device__ __forceinline__ const Slab<T>& slab() const { return slabs[stage]; }
  // Its keys whose page id is invalid, one bit each.
  __device__ __forceinline__ uint32_t bad_keys() const { return args.paged() ? bad[stage] : 0; }

  // A masked probability of 0 times a NaN left in a page would still be NaN.
  __device__ void clean(const KeyRange& visible, int32_t first_key) const {
    const int lane = threadIdx.x % 32;
    const int row = lane % kSlabKeys;
    if (leads && !visible.contains(first_key + row)) {
      const typename T::Tile& v = slabs[stage].v;
#pragma unroll 1
      for (int chunk = lane / kSlabKeys; chunk < 8 * T::Tile::kHalves; chunk += 2)
        ptx::store_zeros_16(v.address(row, chunk));
      fence_async_proxy();  // before the copies that come next
    }
    release();
  }

  // The slab has been read. Behind it, all warps that share the ring have come this far.
  __device__ __forceinline__ void release() const {
    if constexpr (T::kRowGroups == 1) {
      __syncwarp();
    } else {
      ptx::named_barrier_sync(1 + key_warp(), 32 * T::kRowGroups);
    }
  }

  // Asks for the next slab, if there is one; was_last() if it was the last of its piece.
  template <class WasLast>
  __device__ __forceinline__ void ask(const WasLast& was_last) {
    if (walk.next >= walk.end) return;
    ask_slab(T::kFollows ? free_stage : stage);
    if constexpr (T::kFollows) free_stage = behind(free_stage);
    if (walk.next >= walk.end) [[unlikely]] {
      was_last();
      follow();
    }
  }
  __device__ __forceinline__ void advance() { stage = behind(stage); }

  // The piece behind the one at hand.
  __device__ __forceinline__ void will_follow(const Piece& piece) {
    follower = &piece;
    if (args.paged()) follower_pages = walk_of(piece).read_pages(args, args.params.fault);
    if (walk.next >= walk.end) follow();
  }

  // Nothing may be on its way when the ring is given up.
  __device__ void give_up() {
#pragma unroll 1
    for (; walk.begin < walk.next; walk.begin += walk.stride) {
      wait();
      advance();
    }
  }
  // Whatever was asked for has been waited for, or is the next piece's.
  __device__ void drain() const {}

 private:
  const DecodeArgs& args;
  Slab<T>* const slabs;  // [stages]
  Barrier* const full;   // [stages]
  uint32_t* const bad;   // [stages]
  SlabWalk walk;
  const bool leads;
  int32_t kv_head = 0;
  int32_t tile_row = 0;             // the first of the block's tile
  int stage = 0;                    // of the slab at hand
  int free_stage = 0;               // of the next one to be asked for, if that is not the same
  uint32_t parities = 0;            // bit i: which completion of full[i] comes next
  const Piece* at_hand = nullptr;   // needed for small pages
  const Piece* follower = nullptr;  // null: not known, or asked for
  SlabWalk::FirstPages follower_pages{};
  bool followed = false;

  __device__ static int key_warp() { return threadIdx.x / 32 % kKeyWarps; }
  __device__ int behind(int at) const { return at + 1 == args.stages ? 0 : at + 1; }

  __device__ SlabWalk walk_of(const Piece& piece) const {
    return SlabWalk(args, piece, tile_row, key_warp());
  }

  __device__ __forceinline__ void follow() {
    if constexpr (T::kFollows) {
      if (follower == nullptr) return;
      walk = walk_of(*follower);
      walk.start_with(follower_pages);
      follower = nullptr;
      followed = true;
    }
  }

  // In its page, or in all of K and V.
  __device__ int32_t row_of(int32_t slab) const {
    return (walk.tiles.key(slab) & args.page_mask) + walk.row_start;
  }

  // By cp.async, which the barrier counts too.
  __device__ void ask_rows(int at) {
    const int32_t first_key = walk.tiles.key(walk.next);
    walk.next += walk.stride;
    if (!leads) return;
    const AttentionParams& params = args.params;
    const KvSource source(params.kv, at_hand->pair.sequence, params.num_kv_heads, kv_head,
                          params.head_dim, params.fault);
    const uint32_t missing = copy_rows(slabs[at], args, source, at_hand->pair.visible, first_key);
    barrier_arrive_behind_copies(full[at]);
    if (threadIdx.x % 32 == 0) {
      bad[at] = missing;
      barrier_arrive(full[at]);
    }
  }

  __device__ __forceinline__ void ask_slab(int at) {
    if constexpr (T::kSmallPages) return ask_rows(at);
    const bool in_page = args.paged();
    const int32_t page = in_page ? walk.take_page(args) : 0;
    const int32_t row = row_of(walk.next);
    walk.next += walk.stride;
    if (!leads || !ptx::elect_one()) return;
    Slab<T>& slab = slabs[at];
    if (in_page) bad[at] = page < 0 ? 0xffffu : 0;
    barrier_arrive_expect(full[at], 2 * T::Tile::kBytes);
#pragma unroll 1
    for (int half = 0; half < args.boxes; ++half) {  // of page -1 come zeros
      tma_load_5d(slab.k.data[half], args.maps.k, full[at], half * 64, row, 0, kv_head, page);
      tma_load_5d(slab.v.data[half], args.maps.v, full[at], half * 64, row, 0, kv_head, page);
    }
  }
};

}  // namespace flash_gqa::cuda::decode
