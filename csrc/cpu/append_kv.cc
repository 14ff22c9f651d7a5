#include <cstring>

#include "kernels.h"
#include "ranges.h"
#include "rotate.h"

namespace flash_gqa::cpu {
namespace {

const char* row_of(const void* base, int64_t row, int64_t stride, size_t bytes) {
  return static_cast<const char*>(base) + row * stride * static_cast<int64_t>(bytes);
}

// A head of this step: rotated where there are angles, else as it is.
void put_head(void* out, const void* x, const Rotation& rotation) {
  if (rotation.cos_sin != nullptr) {
    rotate_head(out, x, rotation);
  } else if (out != x) {
    memcpy(out, x, rotation.head_dim * dtype_bytes(rotation.dtype));
  }
}

void append_row(const AppendKvParams& params, int32_t row, const Rotation& rotation) {
  const int32_t b = sequence_of_row(params.batch, row);
  if (b < 0) return;
  const Sequence s = read_sequence(params.batch, params.kv, b, params.fault);
  const int32_t i = row - s.q_start;
  const int32_t slot = s.kv_len - s.q_len + i;
  if (i < 0 || i >= s.q_len || slot < 0) return;

  const size_t bytes = dtype_bytes(params.dtype);
  const size_t head_bytes = params.head_dim * bytes;
  const char* k = row_of(params.k, row, params.k_stride_token, bytes);
  const char* v = row_of(params.v, row, params.v_stride_token, bytes);
  char* pages = static_cast<char*>(params.pages);
  for (int32_t h = 0; h < params.num_kv_heads; ++h) {
    const KvSource source(params.kv, s, params.num_kv_heads, h, params.head_dim, params.fault);
    const int64_t offset = source.k_offset(slot);
    if (offset < 0) return;
    const int64_t v_offset = offset + source.v_in_page;
    put_head(pages + offset * static_cast<int64_t>(bytes), k + h * head_bytes, rotation);
    memcpy(pages + v_offset * static_cast<int64_t>(bytes), v + h * head_bytes, head_bytes);
  }
}

}  // namespace

void append_kv(const AppendKvParams& params) {
  const size_t bytes = dtype_bytes(params.dtype);
  const int32_t q_heads = params.q != nullptr ? params.num_q_heads : 0;
  const int64_t q_width = int64_t{q_heads} * params.head_dim;
  const int64_t width = q_width + 2 * int64_t{params.num_kv_heads} * params.head_dim;
  parallel_ranges(params.batch.total_q, width, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const float* cos_sin =
          params.cos_sin != nullptr ? params.cos_sin + r * 2 * params.half : nullptr;
      const Rotation rotation{cos_sin, params.dtype, params.head_dim, params.half,
                              params.interleaved};
      append_row(params, static_cast<int32_t>(r), rotation);
      for (int32_t h = 0; h < q_heads; ++h) {
        const int64_t head = int64_t{h} * params.head_dim;
        put_head(static_cast<char*>(params.q_out) + (r * q_width + head) * bytes,
                 row_of(params.q, r, params.q_stride_token, bytes) + head * bytes, rotation);
      }
    }
  });
}

}  // namespace flash_gqa::cpu
