// The last tiles of a launch, which would leave many blocks idle for long: their keys are divided
// into equal shares.
//
//   tiles of the rest  |    0    |    1    |    2    |     each cut at its own key tiles
//   shares             |  0  |  1  |  2  |  3  |  4  |     a share has parts of one or two tiles
//
// A share works on its later tile first, and leaves that part in memory; whoever has the end of a
// tile comes to it last, and takes the other parts in (parts.cuh). Shares are drawn in order, so that
// blocks wait for earlier shares only: they need not be resident together.
//
// What is divided follows from lengths on the device, the shape, the bound max_kv_len (sections.h orders
// tiles by it) and the number of multiprocessors: the same inputs give the same bits, wherever K and V
// lie.
#pragma once

#include <cmath>

#include "../mask.h"

namespace flash_gqa::cuda::sm90 {

// A share of fewer key tiles would cost more in merging than it saves.
constexpr int32_t kMinShareTiles = 6;
// What shares must save, in key tiles, besides one for each part that a tile's end must take in.
constexpr int32_t kSharesCost = 10;

// Positions count 1 / shares of a tile.
struct Rest {
  int32_t first = 0x7fffffff;  // work index of its first tile; by default there is no rest
  int32_t tiles = 0;           // fewer than there are blocks
  int32_t shares = 0;          // more than tiles; or 0: its tiles are whole

  Rest() = default;
  GQA_HOST_DEVICE Rest(int32_t all_tiles, int32_t blocks)
      : first(all_tiles - all_tiles % blocks), tiles(all_tiles % blocks) {}

  // key_tiles: of a long one of its tiles, or a bound.
  GQA_HOST_DEVICE void divide(int32_t blocks, int32_t key_tiles) {
    const int32_t length = tiles * min_i32(key_tiles, 1 << 20);
    // n parts of a tile take key_tiles / n, and n more to be put together.
    const auto most_parts = static_cast<int32_t>(sqrtf(static_cast<float>(key_tiles)));
    const int32_t n = min_i32(blocks, min_i32(length / kMinShareTiles, tiles * most_parts));
    if (n > tiles && key_tiles - length / n > kSharesCost + n / tiles) shares = n;
  }

  __device__ __forceinline__ int32_t first_tile(int32_t share) const {
    return share * tiles / shares;
  }
  __device__ __forceinline__ int32_t end_tile(int32_t share) const {
    return ((share + 1) * tiles + shares - 1) / shares;
  }
  __device__ __forceinline__ int32_t first_share(int32_t tile) const {
    return tile * shares / tiles;
  }
  __device__ __forceinline__ bool ends(int32_t tile, int32_t share) const {
    return (share + 1) * tiles >= (tile + 1) * shares;
  }
  // The first key tile of a tile that belongs to this share or a later one.
  __device__ __forceinline__ int32_t cut(int32_t tile, int32_t share, int32_t key_tiles) const {
    const int32_t at = min_i32(max_i32(share * tiles - tile * shares, 0), shares);
    return key_tiles / shares * at + key_tiles % shares * at / shares;
  }
};

}  // namespace flash_gqa::cuda::sm90
