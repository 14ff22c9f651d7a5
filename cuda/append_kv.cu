#include "dependent_launch.cuh"
#include "launch.h"
#include "rotate.cuh"

namespace flash_gqa::cuda {
namespace {

// One row of threads per head of a packed row: first the query heads, then the KV heads. The slot
// is worked out here from lengths on the device, so a captured step never goes stale.
template <class T, int kWidth>
__global__ void append_kv_kernel(const __grid_constant__ AppendKvParams params) {
  begin_dependent();
  const int32_t q_heads = params.q != nullptr ? params.num_q_heads : 0;
  const int32_t heads = q_heads + params.num_kv_heads;
  const int64_t item = grid_row();
  if (item >= static_cast<int64_t>(params.batch.total_q) * heads) return;
  const int64_t row = item / heads;
  const int32_t head = static_cast<int32_t>(item % heads);
  const int32_t head_dim = params.head_dim;
  const int32_t half = params.cos_sin != nullptr ? params.half : 0;
  const Rotation rotation{params.cos_sin + row * 2 * half, half, params.interleaved};
  const int32_t units = rotation_units<kWidth>(head_dim, half);

  if (head < q_heads) {
    const T* q = static_cast<const T*>(params.q) + row * params.q_stride_token + head * head_dim;
    T* out = static_cast<T*>(params.q_out) + (row * q_heads + head) * head_dim;
    for (int32_t unit = threadIdx.x; unit < units; unit += blockDim.x)
      rotate_unit<kWidth>(out, q, rotation, unit);
    return;
  }

  const int32_t kv_head = head - q_heads;
  const int32_t b = sequence_of_row(params.batch, static_cast<int32_t>(row));
  if (b < 0) return;
  const Sequence s = read_sequence(params.batch, params.kv, b, params.fault);
  const int32_t i = static_cast<int32_t>(row) - s.q_start;
  const int32_t slot = s.kv_len - s.q_len + i;
  if (i < 0 || i >= s.q_len || slot < 0) return;
  const KvSource source(params.kv, s, params.num_kv_heads, kv_head, head_dim, params.fault);
  const int64_t offset = source.k_offset(slot);
  if (offset < 0) return;

  const T* k = static_cast<const T*>(params.k) + row * params.k_stride_token + kv_head * head_dim;
  const T* v = static_cast<const T*>(params.v) + row * params.v_stride_token + kv_head * head_dim;
  T* k_slot = static_cast<T*>(params.pages) + offset;
  T* v_slot = k_slot + source.v_in_page;
  for (int32_t unit = threadIdx.x; unit < units; unit += blockDim.x)
    rotate_unit<kWidth>(k_slot, k, rotation, unit);
  for (int32_t d = threadIdx.x * kWidth; d < head_dim; d += blockDim.x * kWidth)
    store_vector(v_slot + d, load_vector<T, kWidth>(v + d));
}

}  // namespace

cudaError_t append_kv(const AppendKvParams& params, cudaStream_t stream) {
  const int32_t q_heads = params.q != nullptr ? params.num_q_heads : 0;
  const int64_t items =
      static_cast<int64_t>(params.batch.total_q) * (q_heads + params.num_kv_heads);
  if (items == 0) return cudaSuccess;
  return with_storage(params.dtype, [&](auto type) {
    using T = decltype(type);
    Alignment<T> alignment;
    alignment.pointer(params.k).pointer(params.v).pointer(params.pages).pointer(params.cos_sin);
    alignment.elements(params.k_stride_token).elements(params.v_stride_token);
    alignment.elements(params.kv.stride_page).elements(params.head_dim);
    if (params.cos_sin != nullptr) alignment.elements(params.half);
    if (params.q != nullptr)
      alignment.pointer(params.q).pointer(params.q_out).elements(params.q_stride_token);
    return with_width(alignment, [&](auto width) {
      const int32_t half = params.cos_sin != nullptr ? params.half : 0;
      const RowGrid rows(items, rotation_units<width()>(params.head_dim, half));
      return launch_dependent(append_kv_kernel<T, width()>, rows.grid, rows.block, 0, stream,
                              params);
    });
  });
}

}  // namespace flash_gqa::cuda
