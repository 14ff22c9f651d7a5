#include <algorithm>

#include "launch.h"
#include "vector.cuh"

namespace flash_gqa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;

template <class To, class From, int kWidth>
__global__ void convert_kernel(To* dst, const From* src, int64_t vectors) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors;
       i += step) {
    const auto in = load_vector<From, kWidth>(src + i * kWidth);
    Vector<To, kWidth> out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) out.at[j] = from_float<To>(to_float(in.at[j]));
    store_vector(dst + i * kWidth, out);
  }
}

__global__ void take_fault_kernel(int32_t* fault, int32_t* out) {
  *out = *fault;
  *fault = kFaultNone;
}

}  // namespace

cudaError_t convert(void* dst, DType to, const void* src, DType from, int64_t elements,
                    cudaStream_t stream) {
  if (elements == 0) return cudaSuccess;
  return with_storage(to, [&](auto to_type) {
    return with_storage(from, [&](auto from_type) {
      using To = decltype(to_type);
      using From = decltype(from_type);
      // 4 elements: 16 bytes of float32, 8 of a 16-bit type.
      constexpr int kWidth = 4;
      Alignment<float> alignment;
      const bool wide = alignment.pointer(dst).pointer(src).elements(elements).vector();
      const int64_t vectors = wide ? elements / kWidth : elements;
      const int64_t blocks = std::min((vectors + kThreads - 1) / kThreads, kMaxBlocks);
      const auto kernel = wide ? convert_kernel<To, From, kWidth> : convert_kernel<To, From, 1>;
      kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
          static_cast<To*>(dst), static_cast<const From*>(src), vectors);
      return cudaPeekAtLastError();
    });
  });
}

cudaError_t take_fault(int32_t* fault, int32_t* out, cudaStream_t stream) {
  take_fault_kernel<<<1, 1, 0, stream>>>(fault, out);
  return cudaPeekAtLastError();
}

cudaError_t check_kernel_image() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, take_fault_kernel);
}

}  // namespace flash_gqa::cuda
