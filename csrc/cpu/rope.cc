#include <cstring>

#include "kernels.h"
#include "micro.h"
#include "ranges.h"
#include "rotate.h"

namespace flash_gqa::cpu {

void rope_rows(const RopeRowsParams& params) {
  const int32_t half = params.rope.half;
  // An angle costs about as much as copying 64 elements.
  parallel_ranges(params.rows, 64 * int64_t{half}, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      float* cos_row = params.cos_sin + r * 2 * half;
      float* sin_row = cos_row + half;
      const RopeRow row = rope_row(params, static_cast<int32_t>(r));
      for (int32_t i = 0; i < half; ++i) {
        const CosSin angle = row.valid ? rope_cos_sin(params.rope, i, row.position, row.seq_len)
                                       : CosSin{0.0f, 0.0f};
        cos_row[i] = angle.cos;
        sin_row[i] = angle.sin;
      }
    }
  });
}

void rotate_head(void* out, const void* x, const Rotation& rotation) {
  const int32_t half = rotation.half;
  const float* cos_row = rotation.cos_sin;
  const float* sin_row = cos_row + half;
  float pairs[kMaxHeadDim];
  micro().to_f32(pairs, x, rotation.dtype, 2 * half);
  for (int32_t i = 0; i < half; ++i) {
    float& first = pairs[rope_first(i, rotation.interleaved)];
    float& second = pairs[rope_second(i, half, rotation.interleaved)];
    const RopePair rotated = rotate({first, second}, {cos_row[i], sin_row[i]});
    first = rotated.first;
    second = rotated.second;
  }
  micro().from_f32(out, rotation.dtype, pairs, 2 * half);
  const size_t done = 2 * half * dtype_bytes(rotation.dtype);
  const size_t rest = rotation.head_dim * dtype_bytes(rotation.dtype) - done;
  if (out != x) memcpy(static_cast<char*>(out) + done, static_cast<const char*>(x) + done, rest);
}

void rope_apply(const RopeApplyParams& params) {
  const size_t bytes = dtype_bytes(params.dtype);
  const int64_t width = int64_t{params.num_heads} * params.head_dim;
  parallel_ranges(params.rows, width, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const char* x = static_cast<const char*>(params.x) + r * params.x_stride_token * bytes;
      char* out = static_cast<char*>(params.out) + r * width * bytes;
      const Rotation rotation{params.cos_sin + r * 2 * params.half, params.dtype, params.head_dim,
                              params.half, params.interleaved};
      for (int32_t h = 0; h < params.num_heads; ++h) {
        const int64_t head = int64_t{h} * params.head_dim * bytes;
        rotate_head(out + head, x + head, rotation);
      }
    }
  });
}

}  // namespace flash_gqa::cpu
