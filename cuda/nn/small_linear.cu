// linear() of a few rows, as a decoding step has them: bound by reading the weight once, which tensor cores do not
// hasten. A warp to each output feature. The norm before the product and the gate behind it are done here, because at
// this size a launch costs more than the work.
#include <algorithm>

#include "../dependent_launch.cuh"
#include "../launch.h"
#include "../vector.cuh"
#include "reduce.cuh"
#include "silu.cuh"

namespace flash_gqa::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxRows = 2;                  // cuBLASLt reads the weight faster for more
constexpr int kBlocksPerSm = 16;             // all that can be resident
constexpr int64_t kMaxRowBytes = 47 * 1024;  // of x in shared memory, without asking for more
constexpr int kAhead = 4;  // loads of the weight in flight, per thread and row of it

template <class T>
constexpr int kWidth = kVectorBytes / sizeof(T);

// x's rows to shared memory, normalised where there is a norm: rounded as rms_norm() rounds.
template <class T, int kRows>
__device__ void load_rows(T* to, const LinearParams& params) {
  const int32_t depth = params.in_features;
  float squares[kRows] = {};
  for (int32_t d = threadIdx.x * kWidth<T>; d < depth; d += kThreads * kWidth<T>) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const auto in =
          load_vector<T, kWidth<T>>(static_cast<const T*>(params.x) + m * params.x_stride_row + d);
#pragma unroll
      for (int i = 0; i < kWidth<T>; ++i) squares[m] += to_float(in.at[i]) * to_float(in.at[i]);
      store_vector(to + m * depth + d, in);
    }
  }
  if (params.norm_weight == nullptr) return;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const float mean = reduce_block(squares[m], Plus{}) / static_cast<float>(depth);
    squares[m] = 1.0f / sqrtf(mean + params.norm_eps);
  }
  // Each thread finds here what it has put there itself.
  for (int32_t d = threadIdx.x * kWidth<T>; d < depth; d += kThreads * kWidth<T>) {
    const auto scale = load_vector<T, kWidth<T>>(static_cast<const T*>(params.norm_weight) + d);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      auto in = load_vector<T, kWidth<T>>(to + m * depth + d);
#pragma unroll
      for (int i = 0; i < kWidth<T>; ++i) {
        const T normalised = from_float<T>(to_float(in.at[i]) * squares[m]);
        in.at[i] = from_float<T>(to_float(normalised) * to_float(scale.at[i]));
      }
      store_vector(to + m * depth + d, in);
    }
  }
}

// sum[f][m] = weight row f · x row m, in every lane. The order depends on in_features alone.
template <class T, int kFeatures, int kRows>
__device__ void dot(float (&sum)[kFeatures][kRows], const T* const (&weight)[kFeatures], const T* x,
                    int32_t depth) {
  constexpr int kStep = 32 * kWidth<T>;
  for (int32_t first = threadIdx.x % 32 * kWidth<T>; first < depth; first += kAhead * kStep) {
    Vector<T, kWidth<T>> w[kAhead][kFeatures];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
#pragma unroll
      for (int f = 0; f < kFeatures; ++f)
        if (first + a * kStep < depth)
          w[a][f] = load_vector<T, kWidth<T>>(weight[f] + first + a * kStep);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (first + a * kStep >= depth) break;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const auto in = load_vector<T, kWidth<T>>(x + m * depth + first + a * kStep);
#pragma unroll
        for (int i = 0; i < kWidth<T>; ++i)
#pragma unroll
          for (int f = 0; f < kFeatures; ++f)
            sum[f][m] = fmaf(to_float(in.at[i]), to_float(w[a][f].at[i]), sum[f][m]);
      }
    }
  }
#pragma unroll
  for (int f = 0; f < kFeatures; ++f)
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        sum[f][m] += __shfl_xor_sync(0xffffffffu, sum[f][m], distance);
}

template <class T, class Out, int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads)
    small_linear_kernel(const __grid_constant__ LinearParams params) {
  extern __shared__ __align__(kVectorBytes) char shared[];
  begin_dependent();
  T* x = reinterpret_cast<T*>(shared);
  load_rows<T, kRows>(x, params);
  __syncthreads();

  constexpr int kFeatures = kGated ? 2 : 1;
  const int lane = threadIdx.x % 32;
  const int32_t features = params.out_features;
  for (int32_t n = blockIdx.x * kWarps + threadIdx.x / 32; n < features; n += gridDim.x * kWarps) {
    const T* weight[kFeatures];
#pragma unroll
    for (int f = 0; f < kFeatures; ++f)
      weight[f] = static_cast<const T*>(params.weight) +
                  (n + static_cast<int64_t>(f) * features) * params.in_features;
    float sum[kFeatures][kRows] = {};
    dot<T, kFeatures, kRows>(sum, weight, x, params.in_features);

    float value[kFeatures];  // lane m has row m's
#pragma unroll
    for (int f = 0; f < kFeatures; ++f) {
      value[f] = sum[f][0];
#pragma unroll
      for (int m = 1; m < kRows; ++m) value[f] = lane == m ? sum[f][m] : value[f];
    }
    if (lane >= params.rows) continue;
    const int64_t at = static_cast<int64_t>(lane) * features + n;
    Out* out = static_cast<Out*>(params.out);
    if constexpr (kGated) {
      // As if gate and up had been stored in between.
      out[at] = from_float<T>(
          silu_times(to_float(from_float<T>(value[0])), to_float(from_float<T>(value[1]))));
    } else {
      if (params.bias != nullptr) value[0] += to_float(static_cast<const T*>(params.bias)[n]);
      if (params.residual != nullptr)
        value[0] += to_float(static_cast<const T*>(params.residual)[at]);
      out[at] = from_float<Out>(value[0]);
    }
  }
}

template <class T, class Out, bool kGated>
cudaError_t launch(const LinearParams& params, int num_sms, cudaStream_t stream) {
  const int blocks = std::min((params.out_features + kWarps - 1) / kWarps, kBlocksPerSm * num_sms);
  const auto start = [&](auto rows) {
    const size_t smem = sizeof(T) * rows() * params.in_features;
    return launch_dependent(small_linear_kernel<T, Out, rows(), kGated>, blocks, kThreads, smem,
                            stream, params);
  };
  if (params.rows == 1) return start(std::integral_constant<int, 1>{});
  return start(std::integral_constant<int, kMaxRows>{});
}

}  // namespace

bool takes_small_linear(const LinearParams& params) {
  if (params.rows < 1 || params.rows > kMaxRows) return false;
  const int64_t bytes = static_cast<int64_t>(dtype_bytes(params.dtype));
  uintptr_t bits = reinterpret_cast<uintptr_t>(params.x) |
                   reinterpret_cast<uintptr_t>(params.weight) |
                   reinterpret_cast<uintptr_t>(params.norm_weight);
  bits |= static_cast<uintptr_t>(bytes * params.in_features | bytes * params.x_stride_row);
  return bits % kVectorBytes == 0 && params.rows * params.in_features * bytes <= kMaxRowBytes;
}

cudaError_t small_linear(const LinearParams& params, int num_sms, cudaStream_t stream) {
  return with_storage(params.dtype, [&](auto type) {
    using T = decltype(type);
    if (params.gated) return launch<T, T, true>(params, num_sms, stream);
    if (params.out_dtype == DType::kFloat32)
      return launch<T, float, false>(params, num_sms, stream);
    return launch<T, T, false>(params, num_sms, stream);
  });
}

}  // namespace flash_gqa::cuda
