#include <cmath>
#include <vector>

#include "kernels.h"
#include "micro.h"
#include "ranges.h"

namespace flash_gqa::cpu {
namespace {

char* at(void* base, int64_t element, DType dtype) {
  return static_cast<char*>(base) + element * static_cast<int64_t>(dtype_bytes(dtype));
}
const char* at(const void* base, int64_t element, DType dtype) {
  return static_cast<const char*>(base) + element * static_cast<int64_t>(dtype_bytes(dtype));
}

constexpr int64_t kChunk = 2048;  // float32 scratch on the stack: 8 KB

}  // namespace

void rms_norm(const RmsNormParams& params) {
  const Micro& m = micro();
  const int64_t width = params.width;
  std::vector<float> weight(width);
  m.to_f32(weight.data(), params.weight, params.dtype, width);
  const int64_t rows = int64_t{params.rows} * params.num_groups;
  parallel_ranges(rows, width, [&](int64_t first, int64_t last) {
    std::vector<float> x(width);
    for (int64_t r = first; r < last; ++r) {
      const int64_t start =
          r / params.num_groups * params.x_stride_row + r % params.num_groups * width;
      char* out = at(params.out, r * width, params.dtype);
      m.to_f32(x.data(), at(params.x, start, params.dtype), params.dtype, width);
      const float mean_square = m.dot(x.data(), x.data(), width) / static_cast<float>(width);
      m.scale(x.data(), 1.0f / sqrtf(mean_square + params.eps), width);
      if (params.dtype != DType::kFloat32) {
        m.from_f32(out, params.dtype, x.data(), width);
        m.to_f32(x.data(), out, params.dtype, width);
      }
      for (int64_t i = 0; i < width; ++i) x[i] *= weight[i];
      m.from_f32(out, params.dtype, x.data(), width);
    }
  });
}

void add(const AddParams& params) {
  const Micro& m = micro();
  const DType dtype = params.dtype;
  parallel_ranges(params.elements, 1, [&](int64_t first, int64_t last) {
    float a[kChunk], b[kChunk];
    for (int64_t i = first; i < last; i += kChunk) {
      const int64_t n = std::min(kChunk, last - i);
      m.to_f32(a, at(params.a, i, dtype), dtype, n);
      m.to_f32(b, at(params.b, i, dtype), dtype, n);
      for (int64_t j = 0; j < n; ++j) a[j] += b[j];
      m.from_f32(at(params.out, i, dtype), dtype, a, n);
    }
  });
}

void silu_mul(const SiluMulParams& params) {
  const Micro& m = micro();
  const DType dtype = params.dtype;
  const int64_t width = params.width;
  parallel_ranges(params.rows, width, [&](int64_t first, int64_t last) {
    float gate[kChunk], up[kChunk];
    for (int64_t r = first; r < last; ++r) {
      for (int64_t i = 0; i < width; i += kChunk) {
        const int64_t n = std::min(kChunk, width - i);
        m.to_f32(gate, at(params.gate, r * params.gate_stride_row + i, dtype), dtype, n);
        m.to_f32(up, at(params.up, r * params.up_stride_row + i, dtype), dtype, n);
        m.silu_mul(gate, gate, up, n);
        m.from_f32(at(params.out, r * width + i, dtype), dtype, gate, n);
      }
    }
  });
}

}  // namespace flash_gqa::cpu
