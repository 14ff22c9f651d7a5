// What a decode launch is given, and how the kernels of one (dtype, head_dim) are offered to
// attention.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "../params.h"
#include "../softmax.h"
#include "../tensor_map.h"

namespace flash_gqa::cuda::decode {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kSlabKeys = 16;  // of one step of a warp: the depth of one mma.sync
constexpr int kRowsPerTile = 16;
constexpr int kMaxStages = 8;  // slabs of a warp on their way at a time
constexpr int kMinStages = 2;
// A second tile of rows reads the keys from the L2 once more; more of them would wait for it.
constexpr int kMaxRows = 2 * kRowsPerTile;
// Up to this many rounds of kWarps slabs for each block, one block per multiprocessor is used.
constexpr int kRoundsAlone = 12;

struct DecodeArgs {
  AttentionParams params;
  KvMaps maps;         // where the copy engine fills the rings
  float4* part_o;      // [2 * blocks, rows, head_dim / 4] places of parts, unnormalised, and
  float2* part_state;  // the (max, sum) of each; every word is 0xffffffff between launches
  int32_t group_size;
  int32_t group_inverse;  // 65536 / group_size + 1
  int32_t max_rows;       // sequences of more rows (q_len * group_size) are another launch's
  int32_t rows;           // the most rows of a tile: stride of the places
  int32_t row_tiles;      // of the longest sequence, 16 rows each
  int32_t team_blocks;  // num_kv_heads * row_tiles, or fewer: then each block takes several in turn
  int32_t teams;        // blocks = teams * team_blocks, all of which can be resident together
  int32_t teams_alone;  // with one block per multiprocessor
  int32_t stages;       // of each warp's ring, where the copy engine fills it

  // row / group_size, exact for the rows of a pair: r * group_size < 65536.
  GQA_HOST_DEVICE int32_t token_of(int32_t r) const { return (r * group_inverse) >> 16; }
};

// The compiled kernel of one (dtype, head_dim).
struct DecodeVariant {
  int32_t head_dim;
  int32_t blocks_per_sm;
  int32_t stages;  // of each warp's ring; fewer, but at least kMinStages, where memory is short
  size_t (*smem)(int stages);
  const char* name;
  cudaError_t (*launch)(const DecodeArgs& args, cudaStream_t stream);
};

// Defined by the generated instances.
template <class Element, int kHeadDim>
const DecodeVariant& decode_variant();

}  // namespace flash_gqa::cuda::decode
