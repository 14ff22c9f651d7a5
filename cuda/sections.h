// Which (sequence, KV head) pairs are worked on together. Host only.
//
// Within a section the longest row tiles of all its heads come first, so that what is left at the
// end is short; sections are small enough that their K and V stay in the L2 while all tiles that
// read them run.
#pragma once

#include <algorithm>

#include "params.h"

namespace flash_gqa::cuda {

constexpr int64_t kSectionBytes = 16 << 20;

// Of so many heads, those of one section; the last may have fewer.
inline int32_t section_heads(const AttentionParams& params, int64_t heads) {
  const int64_t kv_len = kv_len_bound(params.batch);
  const int64_t head_bytes =
      kv_len * params.head_dim * 2 * static_cast<int64_t>(dtype_bytes(params.dtype));
  const int64_t sections = std::clamp<int64_t>(heads * head_bytes / kSectionBytes, 1, heads);
  return static_cast<int32_t>((heads + sections - 1) / sections);
}

}  // namespace flash_gqa::cuda
