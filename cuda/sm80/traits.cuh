// Tile shapes for mma.sync and cp.async: every card from sm_80 on.
//
// Shared memory per block: tile_q rows of Q, and stages x tile_kv rows of K and of V. All but the
// two marked "big" fit into 99 KB (sm_86, sm_89, sm_120); there kShort takes kPrefill's place.
#pragma once

#include <type_traits>

#include "../forward_args.h"
#include "../tile/ffma.cuh"
#include "../tile/mma.cuh"

namespace flash_gqa::cuda {

struct TileConfig {
  int row_warps;  // warps along the rows
  int row_tiles;  // 16-row fragments per warp
  int key_warps;  // warps along the keys
  int tile_kv;
  int stages;         // K and V tiles in shared memory
  int blocks_per_sm;  // by registers and 227 KB of shared memory
  const char* name;
};

constexpr TileConfig tile_config(Route route, int head_dim) {
  switch (route) {
    // One 16-row fragment holds every row. The four warps divide the keys, since there is no other
    // parallelism in the block; what counts is bytes in flight: 96 KB per SM and more.
    case kDecode:
      if (head_dim <= 64) return {1, 1, 4, 64, 2, 6, "sm80 mma 16x64"};
      if (head_dim <= 96) return {1, 1, 4, 64, 2, 4, "sm80 mma 16x64"};
      if (head_dim <= 128) return {1, 1, 4, 64, 2, 3, "sm80 mma 16x64"};
      // 64 keys of 192 and 256 would not fit into 99 KB twice; 32 keys feed two warps.
      if (head_dim <= 192) return {1, 1, 2, 32, 2, 4, "sm80 mma 16x32"};
      return {1, 1, 2, 32, 2, 3, "sm80 mma 16x32"};
    // Speculative decoding and short chunks: still bound by memory, rows enough for four warps.
    case kShort:
      if (head_dim <= 64) return {4, 1, 1, 64, 2, 4, "sm80 mma 64x64"};
      if (head_dim <= 96) return {4, 1, 1, 64, 2, 3, "sm80 mma 64x64"};
      if (head_dim <= 128) return {4, 1, 1, 64, 2, 2, "sm80 mma 64x64"};
      // Two stages of 64 keys would need 120 KB (192) and 160 KB (256).
      return {4, 1, 1, 32, 2, 2, "sm80 mma 64x32"};
    // Bound by the tensor cores: with 32 rows per warp each K and V fragment is loaded once for two
    // products, which keeps shared memory below the tensor cores' time. At most 255 registers: 4
    // warps, two blocks per SM.
    case kPrefill:
    default:
      if (head_dim <= 128) return {4, 2, 1, 64, 2, 2, "sm80 mma 128x64"};
      // 32 rows of 192 and more would spill; 8 warps of 16 rows instead. big: 144 KB.
      if (head_dim <= 192) return {8, 1, 1, 64, 2, 1, "sm80 mma 128x64"};
      // big: 128 KB; with 64 keys it would be 192 KB and leave out sm_80.
      return {8, 1, 1, 32, 2, 1, "sm80 mma 128x32"};
  }
}

// What a kernel is compiled for.
template <class ElementType, int kDim, Route kRoute>
struct MmaTraits {
  using Element = ElementType;
  static constexpr TileConfig kConfig = tile_config(kRoute, kDim);
  static constexpr int kHeadDim = kDim;
  static constexpr int kTileKv = kConfig.tile_kv;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kBlocksPerSm = kConfig.blocks_per_sm;
  static constexpr const char* kName = kConfig.name;
  using Math = MmaMath<Element, kDim, kConfig.row_warps, kConfig.row_tiles, kConfig.key_warps,
                       kConfig.tile_kv>;
};

// float32 has one shape for all routes: it is there to be right. 16 keys keep head_dim 256 in
// 99 KB.
template <int kDim>
struct FfmaTraits {
  using Element = float;
  static constexpr int kHeadDim = kDim;
  static constexpr int kTileKv = kDim <= 128 ? 32 : 16;
  static constexpr int kStages = 2;
  static constexpr int kBlocksPerSm = kDim <= 64 ? 4 : 2;
  static constexpr const char* kName = kDim <= 128 ? "sm80 ffma 32x32" : "sm80 ffma 32x16";
  using Math = FfmaMath<kDim, kTileKv>;
};

template <class Element, int kDim, Route kRoute>
using Traits = std::conditional_t<std::is_same_v<Element, float>, FfmaTraits<kDim>,
                                  MmaTraits<Element, kDim, kRoute>>;

}  // namespace flash_gqa::cuda
