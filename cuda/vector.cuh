// 16-byte accesses, where the addresses allow them.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "convert.h"

namespace flash_gqa::cuda {

constexpr int kVectorBytes = 16;

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T at[kWidth];
};

template <class T, int kWidth>
__device__ __forceinline__ Vector<T, kWidth> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, kWidth>*>(from);
}
template <class T, int kWidth>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, kWidth>& vector) {
  *reinterpret_cast<Vector<T, kWidth>*>(to) = vector;
}

// Calls f with a value of the storage type of a float dtype.
template <class F>
auto with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Float16{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

// Whether addresses and element counts (strides, widths) all keep 16-byte alignment.
template <class T>
class Alignment {
 public:
  Alignment& pointer(const void* address) {
    bits_ |= reinterpret_cast<uintptr_t>(address);
    return *this;
  }
  Alignment& elements(int64_t count) {
    bits_ |= static_cast<uintptr_t>(count) * sizeof(T);
    return *this;
  }
  bool vector() const { return bits_ % kVectorBytes == 0; }

 private:
  uintptr_t bits_ = 0;
};

// Calls f with the number of elements that one access moves: 16 bytes of them, or one.
template <class T, class F>
auto with_width(const Alignment<T>& alignment, F&& f) {
  if (alignment.vector()) return f(std::integral_constant<int, kVectorBytes / sizeof(T)>{});
  return f(std::integral_constant<int, 1>{});
}

// A grid over `rows` rows of `units` units each: x walks the units of a row, y the rows of a block.
struct RowGrid {
  static constexpr int kThreads = 256;
  dim3 grid;
  dim3 block;

  RowGrid(int64_t rows, int64_t units) {
    int x = 1;
    while (x < units && x < kThreads) x *= 2;
    const int y = kThreads / x;
    block = dim3(x, y);
    grid = dim3(static_cast<unsigned>((rows + y - 1) / y));
  }
};

__device__ __forceinline__ int64_t grid_row() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

}  // namespace flash_gqa::cuda
