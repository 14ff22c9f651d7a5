// A ring of slabs filled by the copy engine (sm_90 and later): one instruction asks for a slab's keys or
// values, and a barrier counts the bytes that have come.
#pragma once

#include "../tile/tma.cuh"
#include "slabs.cuh"

namespace flash_gqa::cuda::decode {

// Shared by the warps of all row groups; that of the first asks for slabs. Boxes hold rows that
// nothing sees, and are left out where the page id is invalid: clean() makes zeros of their values.
// Columns beyond head_dim arrive as zeros. Small pages are no boxes: cp.async copies them row by row.
template <class T>
struct TmaRing : SlabWalk {
  using Tile = typename T::Tile;

  Slab<T>* const slabs;  // [stages]
  Barrier* const full;   // [stages]
  uint32_t* const bad;   // [stages]
  uint32_t& parities;    // bit i: which completion of full[i] comes next
  const int32_t kv_start;
  const int32_t kv_head;
  const bool leads;

  __device__ TmaRing(SharedStorage<T>& shared, const DecodeArgs&, uint32_t& parity_bits,
                     const Pair& own_pair, int32_t head, const SlabWalk& walk)
      : SlabWalk(walk),
        slabs(shared.ring + key_warp() * args.stages),
        full(shared.full[key_warp()]),
        bad(shared.bad[key_warp()]),
        parities(parity_bits),
        kv_start(own_pair.sequence.kv_start),
        kv_head(head),
        leads(threadIdx.x < 32 * kKeyWarps) {}

  // Lets the L2 fetch the first slab. All writes meet there, so that this may be done before the launches
  // in front are done: what is read behind them is right in any case.
  __device__ void prefetch() {
    if (!leads || begin >= end) return;
    const Box box(*this, begin, __shfl_sync(0xffffffffu, pages_now, 0));
    if (box.mine) tma_prefetch_5d(*box.map, box.half * 64, box.row, 0, kv_head, box.page);
  }

  __device__ void ask_first() {
#pragma unroll 1
    for (int stage = 0; stage < args.stages && next < end; ++stage) ask(stage);
  }
  // How often a barrier is arrived at for one slab.
  __device__ static int arrivals(const DecodeArgs& args) { return args.small_pages() ? 33 : 1; }

  __device__ void ask(int stage) {
    if (next < end && args.small_pages()) [[unlikely]] {
      if (leads) {
        const uint32_t missing = copy_rows<T>(slabs[stage], kv_head);
        barrier_arrive_behind_copies(full[stage]);
        if (threadIdx.x % 32 == 0) {
          bad[stage] = missing;
          barrier_arrive(full[stage]);
        }
      }
    } else if (next < end) {
      const Box box(*this, next, paged() ? take_page() : 0);
      if (leads) {
        if (threadIdx.x % 32 == 0) {
          bad[stage] = box.page < 0 ? 0xffffu : 0;
          barrier_arrive_expect(full[stage], box.page < 0 ? 0 : 2 * Tile::kBytes);
        }
        Slab<T>& slab = slabs[stage];
        if (box.mine)
          tma_load_5d((box.of_k ? slab.k : slab.v).data[box.half], *box.map, full[stage],
                      box.half * 64, box.row, 0, kv_head, box.page);
      }
    }
    next += stride;
  }

  // Returns when the oldest slab asked for, at `stage`, may be read.
  __device__ void wait(int stage) {
    barrier_wait(full[stage], parities >> stage & 1);
    parities ^= 1u << stage;
  }

  // A masked probability of 0 times a NaN left in a page would still be NaN.
  __device__ void clean(int stage, int32_t first_key) const {
    const int lane = threadIdx.x % 32;
    const int row = lane % kSlabKeys;
    if (leads && ((bad[stage] >> row & 1) != 0 || !pair.visible.contains(first_key + row))) {
      const Tile& v = slabs[stage].v;
#pragma unroll 1
      for (int chunk = lane / kSlabKeys; chunk < 8 * Tile::kHalves; chunk += 2)
        ptx::store_zeros_16(v.address(row, chunk));
      fence_async_proxy();  // before the copies that come next
    }
    release();
  }

  // Behind it, all warps that share the ring have come this far.
  __device__ void release() const {
    if constexpr (T::kRowGroups == 1) {
      __syncwarp();
    } else {
      ptx::named_barrier_sync(1 + key_warp(), 32 * T::kRowGroups);
    }
  }

  // Nothing may be on its way when the ring is given up.
  __device__ void give_up() {
#pragma unroll 1
    for (int stage = 0; stage < args.stages && begin + stage * stride < end; ++stage) wait(stage);
  }
  // Whatever was asked for has been waited for.
  __device__ void drain() {}

 private:
  __device__ static int key_warp() { return threadIdx.x / 32 % kKeyWarps; }

  // What this lane asks for of one slab, if anything.
  struct Box {
    const CUtensorMap* map;
    int32_t half;
    int32_t row;
    int32_t page;
    bool of_k;
    bool mine;

    __device__ Box(const TmaRing& ring, int32_t slab, int32_t page_id) : page(page_id) {
      const int lane = threadIdx.x % 32;
      const int32_t key = ring.tiles.key(slab);
      half = lane / 2;
      of_k = lane % 2 == 0;
      map = of_k ? &ring.args.maps.k : &ring.args.maps.v;
      row = ring.paged() ? key & (ring.params.kv.page_size - 1) : ring.kv_start + key;
      mine = page >= 0 && half < ring.args.boxes;
    }
  };
};

}  // namespace flash_gqa::cuda::decode
