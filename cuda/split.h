// How the keys of one item are divided among blocks. Decided on the device from what the rows see,
// so a captured graph stays right while kv_len grows; the host gives upper bounds only.
#pragma once

#include "mask.h"

namespace flash_gqa::cuda {

// Fewer tiles than this per split would cost more in merging than they save in waiting.
constexpr int32_t kMinTilesPerSplit = 2;

GQA_HOST_DEVICE int32_t ceil_div(int32_t a, int32_t b) { return a / b + (a % b != 0); }

struct SplitPlan {
  int32_t tiles_per_split;
  int32_t num_splits;  // at least 1: an item without keys still writes its rows

  // fixed_tiles > 0 asks for exactly that many tiles per split; only a length beyond the host's
  // bound, which would need more than max_splits, makes them larger.
  GQA_HOST_DEVICE SplitPlan(int32_t tiles, int32_t max_splits, int32_t fixed_tiles)
      : tiles_per_split(max_i32(fixed_tiles > 0 ? fixed_tiles : kMinTilesPerSplit,
                                ceil_div(tiles, max_splits))),
        num_splits(max_i32(1, ceil_div(tiles, tiles_per_split))) {}
};

}  // namespace flash_gqa::cuda
