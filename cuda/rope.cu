#include "dependent_launch.cuh"
#include "launch.h"
#include "rotate.cuh"

namespace flash_gqa::cuda {
namespace {

// One block per row: the only kernel that computes in float64.
__global__ void rope_rows_kernel(const __grid_constant__ RopeRowsParams params) {
  begin_dependent();
  const RopeRow row = rope_row(params, static_cast<int32_t>(blockIdx.x));
  const int32_t half = params.rope.half;
  float* cos_row = params.cos_sin + static_cast<int64_t>(blockIdx.x) * 2 * half;
  for (int32_t i = threadIdx.x; i < half; i += blockDim.x) {
    const CosSin angle =
        row.valid ? rope_cos_sin(params.rope, i, row.position, row.seq_len) : CosSin{0.0f, 0.0f};
    cos_row[i] = angle.cos;
    cos_row[half + i] = angle.sin;
  }
}

template <class T, int kWidth>
__global__ void rope_apply_kernel(const __grid_constant__ RopeApplyParams params) {
  const int64_t head = grid_row();
  if (head >= static_cast<int64_t>(params.rows) * params.num_heads) return;
  const int64_t row = head / params.num_heads;
  const int64_t h = head % params.num_heads;
  const T* x = static_cast<const T*>(params.x) + row * params.x_stride_token + h * params.head_dim;
  T* out = static_cast<T*>(params.out) + head * params.head_dim;
  const Rotation rotation{params.cos_sin + row * 2 * params.half, params.half, params.interleaved};
  const int32_t units = rotation_units<kWidth>(params.head_dim, params.half);
  for (int32_t unit = threadIdx.x; unit < units; unit += blockDim.x)
    rotate_unit<kWidth>(out, x, rotation, unit);
}

}  // namespace

cudaError_t rope_rows(const RopeRowsParams& params, cudaStream_t stream) {
  if (params.rows == 0) return cudaSuccess;
  const int threads = params.rope.half <= 32 ? 32 : params.rope.half <= 64 ? 64 : 128;
  return launch_dependent(rope_rows_kernel, params.rows, threads, 0, stream, params);
}

cudaError_t rope_apply(const RopeApplyParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.num_heads == 0) return cudaSuccess;
  return with_storage(params.dtype, [&](auto type) {
    using T = decltype(type);
    Alignment<T> alignment;
    alignment.pointer(params.x).pointer(params.out).pointer(params.cos_sin);
    alignment.elements(params.x_stride_token).elements(params.head_dim).elements(params.half);
    return with_width(alignment, [&](auto width) {
      const RowGrid rows(static_cast<int64_t>(params.rows) * params.num_heads,
                         rotation_units<width()>(params.head_dim, params.half));
      rope_apply_kernel<T, width()><<<rows.grid, rows.block, 0, stream>>>(params);
      return cudaPeekAtLastError();
    });
  });
}

}  // namespace flash_gqa::cuda
