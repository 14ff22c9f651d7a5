#include "launch.h"
#include "softmax.h"
#include "vector.cuh"

namespace flash_gqa::cuda {
namespace {

// The host arrays of MergeStatesParams, by value.
struct Parts {
  const void* o[kMaxMergeParts];
  const float* lse[kMaxMergeParts];
};

// One row of threads per (row, head); every thread merges the states itself, in part order.
template <class T, int kWidth>
__global__ void merge_states_kernel(const __grid_constant__ MergeStatesParams params,
                                    const __grid_constant__ Parts parts) {
  const int64_t row = grid_row();
  if (row >= static_cast<int64_t>(params.rows) * params.num_heads) return;
  SoftmaxState merged;
  for (int32_t p = 0; p < params.num_parts; ++p)
    merged.merge(SoftmaxState::from_lse(parts.lse[p][row]));
  if (threadIdx.x == 0 && params.out_lse != nullptr) params.out_lse[row] = merged.lse();

  for (int32_t d = threadIdx.x * kWidth; d < params.head_dim; d += blockDim.x * kWidth) {
    const int64_t at = row * params.head_dim + d;
    float sum[kWidth] = {};
    for (int32_t p = 0; p < params.num_parts; ++p) {
      const SoftmaxState state = SoftmaxState::from_lse(parts.lse[p][row]);
      if (state.sum == 0.0f) continue;  // saw no key: its o may hold anything
      const float weight = exp2f(state.max - merged.reference()) * merged.inverse_sum();
      const auto part = load_vector<T, kWidth>(static_cast<const T*>(parts.o[p]) + at);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] += weight * to_float(part.at[i]);
    }
    Vector<T, kWidth> out;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out.at[i] = from_float<T>(sum[i]);
    store_vector(static_cast<T*>(params.out) + at, out);
  }
}

}  // namespace

cudaError_t merge_states(const MergeStatesParams& params, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(params.rows) * params.num_heads;
  if (rows == 0) return cudaSuccess;
  if (params.num_parts > kMaxMergeParts) return cudaErrorInvalidValue;
  Parts parts{};
  for (int32_t p = 0; p < params.num_parts; ++p) {
    parts.o[p] = params.o[p];
    parts.lse[p] = params.lse[p];
  }
  return with_storage(params.dtype, [&](auto type) {
    using T = decltype(type);
    Alignment<T> alignment;
    alignment.pointer(params.out).elements(params.head_dim);
    for (int32_t p = 0; p < params.num_parts; ++p) alignment.pointer(params.o[p]);
    return with_width(alignment, [&](auto width) {
      const RowGrid grid(rows, params.head_dim / width());
      merge_states_kernel<T, width()><<<grid.grid, grid.block, 0, stream>>>(params, parts);
      return cudaPeekAtLastError();
    });
  });
}

}  // namespace flash_gqa::cuda
