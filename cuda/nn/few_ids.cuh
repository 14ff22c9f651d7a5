// The draw among the few ids that top-k has left: they fit shared memory, where a pass over the row
// for each question would cost more than all the answers.
#pragma once

#include "../nn_params.h"
#include "logit_row.cuh"

namespace flash_gqa::cuda {

constexpr int32_t kFewIds = 256;

// As top-p and the draw over the whole row, with every id that `cut` does not let through weighing
// nothing. For a row that one block has to itself; `cut` lets at most kFewIds through.
template <class T>
__device__ int32_t draw_among_few(const LogitRow<T>& row, const SampleCut& cut,
                                  const SampleParams& params, int32_t r) {
  __shared__ uint64_t found[kFewIds];    // (key, inverted id): descending is the order of ids
  __shared__ uint64_t weights[kFewIds];  // in that order
  __shared__ int32_t ids[kFewIds];
  __shared__ int32_t count, drawn_id;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  row.for_each([&](int32_t id, float logit) {
    const uint32_t key = order_key(logit);
    if (cut.allows(key, id))
      found[atomicAdd(&count, 1)] = static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id);
  });
  __syncthreads();

  const int32_t n = count;
  const int32_t i = threadIdx.x;
  if (i < n) {
    const uint64_t mine = found[i];
    int32_t rank = 0;
    for (int32_t j = 0; j < n; ++j) rank += found[j] > mine;
    ids[rank] = static_cast<int32_t>(~static_cast<uint32_t>(mine));
    weights[rank] = sampling_weight(row.logit(ids[rank]), row.max, params.temperature[r]);
  }
  __syncthreads();

  uint64_t total = 0;
  for (int32_t j = 0; j < n; ++j) total += weights[j];
  const float top_p = params.top_p[r];
  int32_t kept = n;
  if (top_p < 1.0f) {
    const uint64_t target = top_p_target(total, top_p);
    kept = 0;
    for (total = 0; kept < n && total < target; ++kept) total += weights[kept];
  }
  const uint64_t drawn =
      draw_below(total, params.seed[2 * r], params.seed[2 * r + 1], params.counter[r]);
  if (i < kept) {
    uint64_t before = 0;  // in the order of the numbers that ids are
    for (int32_t j = 0; j < kept; ++j) before += ids[j] < ids[i] ? weights[j] : 0;
    if (before <= drawn && drawn - before < weights[i]) drawn_id = ids[i];
  }
  __syncthreads();
  return drawn_id;
}

}  // namespace flash_gqa::cuda
