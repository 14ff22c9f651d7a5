// Tile sizes of the Hopper forward kernel, and the shared memory that follows from them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_loader.cuh"

namespace flash_gqa::cuda::sm90 {

struct TileConfig {
  int tile_kv;    // keys of one step of the loop
  int consumers;  // warpgroups that compute, 64 query rows each
  int q_stages;   // 2: the next tile's Q arrives while this one is finished
  int k_stages;
  int v_stages;
  bool trust_maxima;  // tiles that nothing is masked of do not look for their maxima, but trust
                      // those so far, and repeat the scores where sums say that this was wrong
  bool ping_pong;  // warpgroups take turns at the tensor cores, so that one's softmax hides behind
                   // the other's products
  bool divides;  // the keys of the last tiles (rest.cuh). From head_dim 192 on K and V of all heads
                 // at once leave the L2, and shares read them apart
  bool skips;    // a warpgroup does not compute the last key tiles, where its rows see none of them
  int producer_registers;
  int consumer_registers;
  const char* name;
};

// Chosen by measurement; docs/prefill.md has the log. Limits: 227 KB of shared memory, 64 K
// registers.
constexpr TileConfig tile_config(int head_dim) {
  switch (head_dim) {
    case 64:  // O and S are small: three warpgroups share each K and V tile
      return {128, 3, 2, 2, 2, false, true, true, true, 32, 160, "sm90 wgmma 192x128"};
    case 96:  // computed as 96 columns, stored as 128
      return {96, 3, 2, 2, 2, false, true, true, true, 32, 160, "sm90 wgmma 192x96"};
    case 128:  // S 32 + O 64 + P 16 registers; Q 2 x 48 KB, K and V 6 x 16 KB
      return {64, 3, 2, 3, 3, true, true, true, true, 32, 160, "sm90 wgmma 192x64"};
    case 192:  // Q 48 KB + 4 x 42 KB
      return {112, 2, 1, 2, 2, false, false, false, false, 40, 232, "sm90 wgmma 128x112"};
    default:  // 256: Q 64 KB + 4 x 40 KB; O takes 128 registers
      return {80, 2, 1, 2, 2, false, false, false, false, 40, 232, "sm90 wgmma 128x80"};
  }
}

// Named hardware barriers. 0 is __syncthreads.
constexpr int kTurnBarrier = 1;       // + warpgroup: its turn at the tensor cores
constexpr int kWarpgroupBarrier = 5;  // + warpgroup: its own 128 threads

constexpr int kForeseers = 3;  // warps that read words ahead (foresight.cuh)

template <typename T_, int kHeadDim_>
struct Traits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr TileConfig kConfig = tile_config(kHeadDim_);
  static constexpr int kTileKv = kConfig.tile_kv;
  static constexpr int kConsumers = kConfig.consumers;
  static constexpr int kTileQ = 64 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kQStages = kConfig.q_stages;
  static constexpr int kKStages = kConfig.k_stages;
  static constexpr int kVStages = kConfig.v_stages;
  using QTile = TmaTile<T, kTileQ, kHeadDim>;
  using KvTile = TmaTile<T, kTileKv, kHeadDim>;
  static constexpr int kHalves = KvTile::kHalves;

  struct SharedStorage {
    QTile q[kQStages];
    KvTile k[kKStages];
    KvTile v[kVStages];
    Barrier q_full[kQStages];
    Barrier q_empty[kQStages];
    Barrier k_full[kKStages];
    Barrier k_empty[kKStages];
    Barrier v_full[kVStages];
    Barrier v_empty[kVStages];
    Barrier work_wanted;
    Barrier work_full[kQStages];
    SharedWork<kConsumers> work[kQStages];  // whose Q is in this stage
    // The first work, as far as it is foreseen (foresight.cuh).
    Barrier guess_written;
    Barrier foresight_judged;
    bool unchanged[kForeseers];
    int32_t ignored_fault;
  };
  static constexpr size_t kSharedBytes = sizeof(SharedStorage);
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace flash_gqa::cuda::sm90
