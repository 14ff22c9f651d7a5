// What a decode launch is given, and how the kernels of one (dtype, head_dim) are offered to
// attention.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "../params.h"
#include "../softmax.h"
#include "../tensor_map.h"

namespace flash_gqa::cuda::decode {

constexpr int kKeyWarps = 4;   // that share the keys of a block
constexpr int kSlabKeys = 16;  // of one step of a warp: the depth of one mma.sync
constexpr int kMostTeamsPerBlock = 2;
constexpr int kMaxStages = 8;  // slabs of a warp on their way at a time
constexpr int kMinStages = 2;
// A piece of fewer slabs, from its first to its last, is not asked for ahead.
constexpr int kShortPiece = 16;
constexpr int kMostGuessed = 128;  // sequences of a batch whose lengths are guessed

struct DecodeArgs {
  AttentionParams params;
  // [2 * teams * team_blocks, rows, head_dim / 8, 2] places of parts, unnormalised, and, without the 2 at the end,
  // of their (max, sum). Every word is 0xffffffff between launches.
  float4* part_o;
  float2* part_state;
  // How many blocks have let the next launch in, or null: nobody waits for that (linger.cuh).
  uint32_t* triggered;
  int32_t group_size;
  int32_t group_inverse;  // 65536 / group_size + 1
  int32_t max_rows;       // sequences of more rows (q_len * group_size) are another launch's
  int32_t rows;           // the most rows of a tile: stride of the places
  int32_t row_tiles;      // of the longest sequence
  int32_t team_blocks;  // num_kv_heads * row_tiles, or fewer: then each block takes several in turn
  int32_t teams;
  // Whose parts a block plays one after the other. All blocks of a launch, teams / teams_per_block *
  // team_blocks, can be resident together.
  int32_t teams_per_block;
  int32_t stages;     // of each ring, where the copy engine fills it
  int32_t boxes;      // by which it fills the keys of a slab: each 64 columns, or all
  int32_t page_mask;  // page_size - 1; -1 where keys are dense
  KvMaps maps;

  GQA_HOST_DEVICE bool paged() const { return page_mask >= 0; }
  // Whether a slab may lie in several pages: then its rows are looked up, and copied, one by one.
  GQA_HOST_DEVICE bool small_pages() const {
    return static_cast<uint32_t>(page_mask) < kSlabKeys - 1;
  }
  // row / group_size, exact for the rows of a pair: r * group_size < 65536.
  GQA_HOST_DEVICE int32_t token_of(int32_t r) const { return (r * group_inverse) >> 16; }
};

// A compiled kernel of one (dtype, head_dim).
struct DecodeVariant {
  int32_t head_dim;
  int32_t rows;  // of a tile
  int32_t blocks_per_sm;
  int32_t stages;  // of each ring; fewer, but at least kMinStages, where memory is short
  bool plays_two;  // whether a block may play the parts of two teams
  size_t (*smem)(int stages, bool copy_engine);
  const char* name;
  cudaError_t (*launch)(const DecodeArgs& args, cudaStream_t stream);
};

// Tiles of 8, 16 and 32 rows; on older cards of 16 alone. A second tile of 16 would read the keys from the L2
// once more.
enum TileRows { kRows8, kRows16, kRows32, kNumTileRows };

// Where there is a copy engine, pages smaller than a slab, which are no box, take kernels of their own, which
// divide their keys as the others do.
struct DecodeFamily {
  DecodeVariant tiles[kNumTileRows];
  DecodeVariant small_pages[kNumTileRows];
  bool (*has_copy_engine)();  // on the current device
};

// Defined by the generated instances.
template <class Element, int kHeadDim>
const DecodeFamily& decode_family();

}  // namespace flash_gqa::cuda::decode
