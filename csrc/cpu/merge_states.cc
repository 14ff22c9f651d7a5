#include <algorithm>

#include "../../cuda/softmax.h"
#include "kernels.h"
#include "micro.h"
#include "ranges.h"

namespace flash_gqa::cpu {
namespace {

// One row of one head: o = sum_p w_p o_p with w_p = 2^(max_p - max) / sum, parts in order.
void merge_row(const MergeStatesParams& params, int64_t row) {
  SoftmaxState merged;
  for (int32_t p = 0; p < params.num_parts; ++p)
    merged.merge(SoftmaxState::from_lse(params.lse[p][row]));
  if (params.out_lse != nullptr) params.out_lse[row] = merged.lse();

  const int64_t offset = row * params.head_dim * static_cast<int64_t>(dtype_bytes(params.dtype));
  constexpr int32_t kChunk = 256;
  float sum[kChunk], part[kChunk];
  for (int32_t d = 0; d < params.head_dim; d += kChunk) {
    const int32_t n = std::min(kChunk, params.head_dim - d);
    const int64_t at = offset + d * static_cast<int64_t>(dtype_bytes(params.dtype));
    std::fill_n(sum, n, 0.0f);
    for (int32_t p = 0; p < params.num_parts; ++p) {
      const SoftmaxState state = SoftmaxState::from_lse(params.lse[p][row]);
      if (state.sum == 0.0f) continue;  // saw no key: its o may hold anything
      const float weight = exp2f(state.max - merged.reference()) * merged.inverse_sum();
      micro().to_f32(part, static_cast<const char*>(params.o[p]) + at, params.dtype, n);
      for (int32_t i = 0; i < n; ++i) sum[i] += weight * part[i];
    }
    micro().from_f32(static_cast<char*>(params.out) + at, params.dtype, sum, n);
  }
}

}  // namespace

void merge_states(const MergeStatesParams& params) {
  const int64_t rows = int64_t{params.rows} * params.num_heads;
  parallel_ranges(rows, int64_t{params.num_parts} * params.head_dim,
                  [&](int64_t first, int64_t last) {
                    for (int64_t row = first; row < last; ++row) merge_row(params, row);
                  });
}

}  // namespace flash_gqa::cpu
