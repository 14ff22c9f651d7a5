// out = x * weight^T + bias + residual, in blocks of rows and features over slices of in_features.
//
// Bits: a sum runs over slices of kSlice in ascending order, inside a slice in the fixed order of
// Micro::dot_rows, whatever the blocks. So a row's result does not depend on the other rows of the
// call, on threads, or on whether the weights were converted beforehand.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "kernels.h"
#include "micro.h"
#include "parallel.h"

namespace flash_gqa::cpu {
namespace {

constexpr int kSlice = 1024;
constexpr int kBlockRows = 64;
constexpr int kBlockFeatures = 96;
constexpr int kDirectRows = 4;  // up to here 16-bit weights are converted as they are multiplied
constexpr int64_t kItemProducts = 1 << 16;  // less work than this is not worth a thread

struct alignas(64) Scratch {
  float x[kBlockRows * kSlice];
  float weight[kBlockFeatures * kSlice];
  float sums[kBlockRows * kBlockFeatures];
  float bias[kBlockFeatures];
  float residual[kBlockFeatures];
};

Scratch& thread_scratch() {
  thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

template <class Void>
Void* at(Void* base, DType dtype, int64_t element) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  return static_cast<Byte*>(base) + element * static_cast<int64_t>(dtype_bytes(dtype));
}

// Rows of a matrix in float32: where they lie, or converted to `scratch`.
struct Rows {
  const float* data;
  int64_t stride;

  Rows(const void* base, DType dtype, int64_t stride_in, int rows, int width, float* scratch) {
    if (dtype == DType::kFloat32) {
      data = static_cast<const float*>(base);
      stride = stride_in;
      return;
    }
    for (int i = 0; i < rows; ++i)
      micro().to_f32(scratch + int64_t{i} * kSlice, at(base, dtype, i * stride_in), dtype, width);
    data = scratch;
    stride = kSlice;
  }
};

void linear_block(const LinearParams& p, int first_row, int rows, int first_feature, int features) {
  const Micro& m = micro();
  Scratch& scratch = thread_scratch();
  std::fill_n(scratch.sums, rows * kBlockFeatures, 0.0f);
  for (int k = 0; k < p.in_features; k += kSlice) {
    const int width = std::min(kSlice, p.in_features - k);
    const void* weight = at(p.weight, p.dtype, int64_t{first_feature} * p.in_features + k);
    const Rows x(at(p.x, p.dtype, first_row * p.x_stride_row + k), p.dtype, p.x_stride_row, rows,
                 width, scratch.x);
    if (rows <= kDirectRows) {
      m.dot_rows(scratch.sums, kBlockFeatures, x.data, x.stride, rows, weight, p.dtype,
                 p.in_features, features, width);
    } else {
      const Rows w(weight, p.dtype, p.in_features, features, width, scratch.weight);
      m.dot_rows(scratch.sums, kBlockFeatures, x.data, x.stride, rows, w.data, DType::kFloat32,
                 w.stride, features, width);
    }
  }

  std::fill_n(scratch.bias, features, 0.0f);
  if (p.bias != nullptr)
    m.to_f32(scratch.bias, at(p.bias, p.dtype, first_feature), p.dtype, features);
  for (int row = 0; row < rows; ++row) {
    float* sums = scratch.sums + row * kBlockFeatures;
    const int64_t out = int64_t{first_row + row} * p.out_features + first_feature;
    for (int i = 0; i < features; ++i) sums[i] += scratch.bias[i];
    if (p.residual != nullptr) {
      m.to_f32(scratch.residual, at(p.residual, p.dtype, out), p.dtype, features);
      for (int i = 0; i < features; ++i) sums[i] += scratch.residual[i];
    }
    m.from_f32(at(p.out, p.out_dtype, out), p.out_dtype, sums, features);
  }
}

}  // namespace

void linear(const LinearParams& p) {
  // Few rows: blocks of features only as large as a thread needs to be worth waking.
  const int64_t block_rows = std::min(p.rows, kBlockRows);
  const int64_t products = std::max<int64_t>(1, block_rows * p.in_features);
  const int block = static_cast<int>(
      std::clamp<int64_t>(kItemProducts / products, kBlockFeatures / 4, kBlockFeatures));
  const int64_t feature_blocks = (p.out_features + block - 1) / block;
  const int64_t row_blocks = (int64_t{p.rows} + kBlockRows - 1) / kBlockRows;
  // Row blocks inside: neighbours in time share the weights.
  parallel_for(feature_blocks * row_blocks, [&](int64_t i) {
    const int row = static_cast<int>(i % row_blocks) * kBlockRows;
    const int feature = static_cast<int>(i / row_blocks) * block;
    linear_block(p, row, std::min(kBlockRows, p.rows - row), feature,
                 std::min(block, p.out_features - feature));
  });
}

}  // namespace flash_gqa::cpu
