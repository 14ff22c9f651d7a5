// What a forward launch is given, and how the kernels of one (dtype, head_dim) are offered to
// attention.cu.
//
//   item   a tile of rows of one sequence and one KV head; its keys are divided into splits
//   row    one (token, query head) of a KV head's group: row r is token r / group_size, head
//          r % group_size, so that K and V are read once for the whole group
//   route  sequences are told apart by their number of rows, q_len * group_size, alone: each takes
//          the same kernel whatever else is in the batch
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "params.h"
#include "softmax.h"

namespace flash_gqa::cuda {

enum Route { kDecode, kShort, kPrefill, kNumRoutes };
constexpr int32_t kRouteMaxRows[kNumRoutes] = {16, 64, 0x7fffffff};

struct ForwardArgs {
  AttentionParams params;
  float* partial_o;             // [items, max_splits, item_rows, head_dim], unnormalised
  SoftmaxState* partial_state;  // [items, max_splits, item_rows]
  int32_t min_rows;             // this launch's sequences: min_rows < rows <= max_rows
  int32_t max_rows;
  int32_t tile_q;
  int32_t tile_kv;
  int32_t row_tiles;      // per sequence and KV head
  int32_t section_heads;  // sections.h
  int32_t item_rows;      // rows of an item that can be in use, <= tile_q
  int32_t max_splits;     // per item; the device uses as many as kv_len asks for
  int32_t split_tiles;    // fixed_split in tiles, or 0
};

// One compiled kernel.
struct Variant {
  int32_t tile_q;
  int32_t tile_kv;
  int32_t blocks_per_sm;  // how many fit by registers and 227 KB of shared memory
  size_t smem;
  const char* name;
  cudaError_t (*launch)(const ForwardArgs& args, int32_t blocks, cudaStream_t stream);
};

// The kernels of one (dtype, head_dim), by route. Where kPrefill's does not fit into the device's
// shared memory, kShort's takes its place.
struct Family {
  Variant routes[kNumRoutes];
};

// Defined by the generated instances.
template <class Element, int kHeadDim>
const Family& forward_family();

// Merges the splits of items that have more than one, in split order. One definition per dtype.
template <class Element>
cudaError_t launch_combine(const ForwardArgs& args, int64_t items, cudaStream_t stream);

}  // namespace flash_gqa::cuda
