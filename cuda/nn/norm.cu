#include <algorithm>

#include "../dependent_launch.cuh"
#include "../launch.h"
#include "../vector.cuh"
#include "reduce.cuh"
#include "silu.cuh"

namespace flash_gqa::cuda {
namespace {

// One block per row and group. The second pass finds the row in the L1 cache.
template <class T, int kWidth>
__global__ void rms_norm_kernel(const __grid_constant__ RmsNormParams params) {
  begin_dependent();
  const int64_t row = blockIdx.x / params.num_groups;
  const int64_t group = blockIdx.x % params.num_groups;
  const int32_t width = params.width;
  const T* x = static_cast<const T*>(params.x) + row * params.x_stride_row + group * width;
  const T* weight = static_cast<const T*>(params.weight);
  T* out = static_cast<T*>(params.out) + static_cast<int64_t>(blockIdx.x) * width;

  float squares = 0.0f;
  for (int32_t d = threadIdx.x * kWidth; d < width; d += blockDim.x * kWidth) {
    const auto in = load_vector<T, kWidth>(x + d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += to_float(in.at[i]) * to_float(in.at[i]);
  }
  squares = reduce_block(squares, Plus{});

  const float inverse_rms = 1.0f / sqrtf(squares / static_cast<float>(width) + params.eps);
  for (int32_t d = threadIdx.x * kWidth; d < width; d += blockDim.x * kWidth) {
    const auto in = load_vector<T, kWidth>(x + d);
    const auto scale = load_vector<T, kWidth>(weight + d);
    Vector<T, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const T normalised = from_float<T>(to_float(in.at[i]) * inverse_rms);
      result.at[i] = from_float<T>(to_float(normalised) * to_float(scale.at[i]));
    }
    store_vector(out + d, result);
  }
}

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct SiluTimes {
  __device__ float operator()(float gate, float up) const { return silu_times(gate, up); }
};

// out[r, i] = op(a[r, i], b[r, i]), in float32, rounded once.
template <class T, int kWidth, class Op>
__global__ void combine_kernel(T* out, const T* a, const T* b, int64_t rows, int64_t width,
                               int64_t a_stride, int64_t b_stride, Op op) {
  begin_dependent();
  const int64_t row = grid_row();
  if (row >= rows) return;
  for (int64_t d = threadIdx.x * kWidth; d < width; d += blockDim.x * kWidth) {
    const auto left = load_vector<T, kWidth>(a + row * a_stride + d);
    const auto right = load_vector<T, kWidth>(b + row * b_stride + d);
    Vector<T, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      result.at[i] = from_float<T>(op(to_float(left.at[i]), to_float(right.at[i])));
    store_vector(out + row * width + d, result);
  }
}

template <class Op>
cudaError_t combine(void* out, const void* a, const void* b, DType dtype, int64_t rows,
                    int64_t width, int64_t a_stride, int64_t b_stride, Op op, cudaStream_t stream) {
  if (rows == 0 || width == 0) return cudaSuccess;
  return with_storage(dtype, [&](auto type) {
    using T = decltype(type);
    Alignment<T> alignment;
    alignment.pointer(out).pointer(a).pointer(b);
    alignment.elements(width).elements(a_stride).elements(b_stride);
    return with_width(alignment, [&](auto vector_width) {
      constexpr int kWidth = vector_width();
      const RowGrid grid(rows, width / kWidth);
      return launch_dependent(combine_kernel<T, kWidth, Op>, grid.grid, grid.block, 0, stream, out,
                              a, b, rows, width, a_stride, b_stride, op);
    });
  });
}

}  // namespace

cudaError_t rms_norm(const RmsNormParams& params, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(params.rows) * params.num_groups;
  if (rows == 0 || params.width == 0) return cudaSuccess;
  return with_storage(params.dtype, [&](auto type) {
    using T = decltype(type);
    Alignment<T> alignment;
    alignment.pointer(params.x).pointer(params.weight).pointer(params.out);
    alignment.elements(params.x_stride_row).elements(params.width);
    return with_width(alignment, [&](auto width) {
      int threads = 32;
      while (threads < 512 && threads * width() < params.width) threads *= 2;
      return launch_dependent(rms_norm_kernel<T, width()>, static_cast<unsigned>(rows), threads, 0,
                              stream, params);
    });
  });
}

cudaError_t add(const AddParams& params, cudaStream_t stream) {
  // Cut into rows for the grid; what is left over is a row of its own.
  constexpr int64_t kRow = 4096;
  const int64_t rows = params.elements / kRow;
  const int64_t whole = rows * kRow;
  const int64_t bytes = whole * static_cast<int64_t>(dtype_bytes(params.dtype));
  const cudaError_t error =
      combine(params.out, params.a, params.b, params.dtype, rows, kRow, kRow, kRow, Sum{}, stream);
  if (error != cudaSuccess || whole == params.elements) return error;
  const int64_t left = params.elements - whole;
  return combine(static_cast<char*>(params.out) + bytes, static_cast<const char*>(params.a) + bytes,
                 static_cast<const char*>(params.b) + bytes, params.dtype, 1, left, left, left,
                 Sum{}, stream);
}

cudaError_t silu_mul(const SiluMulParams& params, cudaStream_t stream) {
  return combine(params.out, params.gate, params.up, params.dtype, params.rows, params.width,
                 params.gate_stride_row, params.up_stride_row, SiluTimes{}, stream);
}

}  // namespace flash_gqa::cuda
