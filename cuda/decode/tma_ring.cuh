// A warp's ring of slabs by the copy engine (sm_90 and later): one instruction asks for 64 columns of
// a slab's keys or values, and a barrier counts the bytes that have come.
#pragma once

#include "../tile/tma.cuh"
#include "slabs.cuh"

namespace flash_gqa::cuda::decode {

// Boxes hold rows that nothing sees, and are left out where the page id is invalid: clean() makes
// zeros of their values. Columns beyond head_dim arrive as zeros.
template <class T>
struct TmaRing : SlabWalk {
  using Tile = typename T::Tile;

  const KvMaps& maps;
  Slab<T>* const slabs;  // [stages]
  Barrier* const full;   // [stages]
  uint32_t* const bad;   // [stages]
  uint32_t& parities;    // bit i: which completion of full[i] comes next
  const int32_t stages;
  const int32_t kv_start;
  const int32_t kv_head;

  __device__ TmaRing(SharedStorage<T>& shared, const DecodeArgs& args, int warp,
                     uint32_t& parity_bits, const Sequence& sequence, int32_t head,
                     const SlabWalk& walk)
      : SlabWalk(walk),
        maps(args.maps),
        slabs(shared.ring + warp * args.stages),
        full(shared.full[warp]),
        bad(shared.bad[warp]),
        parities(parity_bits),
        stages(args.stages),
        kv_start(sequence.kv_start),
        kv_head(head) {}

  __device__ void ask_first() {
#pragma unroll 1
    for (int stage = 0; stage < stages && next < end; ++stage) ask(stage);
  }
  __device__ void ask(int stage) {
    if (next < end) {
      const int lane = threadIdx.x % 32;
      const int32_t key = tiles.key(next);
      int32_t row = kv_start + key;
      int32_t page = 0;
      if (source.paged()) {
        page = take_page();
        row = key & source.page_mask;
        if (lane == 0) bad[stage] = page < 0 ? 0xffffu : 0;
      }
      if (lane == 0) barrier_arrive_expect(full[stage], page < 0 ? 0 : 2 * Tile::kBytes);
      if (page >= 0 && lane < 2 * Tile::kHalves) {
        const int half = lane / 2;
        const bool of_k = lane % 2 == 0;
        Slab<T>& slab = slabs[stage];
        tma_load_4d((of_k ? slab.k : slab.v).data[half], of_k ? maps.k : maps.v, full[stage],
                    half * 64, row, kv_head, page);
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
    if (bad[stage] != 0 || !visible.contains(first_key + row)) {
      const Tile& v = slabs[stage].v;
#pragma unroll 1
      for (int chunk = lane / kSlabKeys; chunk < 8 * Tile::kHalves; chunk += 2)
        ptx::store_zeros_16(v.address(row, chunk));
      fence_async_proxy();  // before the copies that come next
    }
    __syncwarp();
  }

  // Nothing may be on its way when the ring is given up.
  __device__ void give_up() {
#pragma unroll 1
    for (int stage = 0; stage < stages && begin + stage * stride < end; ++stage) wait(stage);
  }
  // Whatever was asked for has been waited for.
  __device__ void drain() {}
};

}  // namespace flash_gqa::cuda::decode
