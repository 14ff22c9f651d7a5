// Operations that move rows and never look inside them.
#include <cstring>

#include "../../cuda/kv_source.h"
#include "../../cuda/mask.h"
#include "kernels.h"
#include "ranges.h"

namespace flash_gqa::cpu {
namespace {

// out[r] = x[index(r)] for rows of `width` elements, or zeros where index(r) < 0.
template <class Index>
void copy_rows(void* out, const void* x, int64_t rows, int64_t x_stride, int64_t width, DType dtype,
               const Index& index) {
  const int64_t bytes = static_cast<int64_t>(dtype_bytes(dtype));
  parallel_ranges(rows, width, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      char* to = static_cast<char*>(out) + r * width * bytes;
      const int64_t from = index(r);
      if (from < 0) {
        memset(to, 0, width * bytes);
      } else {
        memcpy(to, static_cast<const char*>(x) + from * x_stride * bytes, width * bytes);
      }
    }
  });
}

// An index read from a tensor, or -1 (reported) where it is outside [0, count).
int64_t checked_index(int32_t index, int32_t count, int32_t* fault) {
  if (index >= 0 && index < count) return index;
  set_fault(fault, kFaultTokenId);
  return -1;
}

}  // namespace

void repeat_kv(const RepeatKvParams& params) {
  const int64_t head_bytes = params.head_dim * static_cast<int64_t>(dtype_bytes(params.dtype));
  const int64_t stride = params.x_stride_token * static_cast<int64_t>(dtype_bytes(params.dtype));
  const int64_t num_q_heads = int64_t{params.num_kv_heads} * params.group_size;
  parallel_ranges(params.rows, num_q_heads * params.head_dim, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const char* x = static_cast<const char*>(params.x) + r * stride;
      char* out = static_cast<char*>(params.out) + r * num_q_heads * head_bytes;
      for (int64_t h = 0; h < num_q_heads; ++h)
        memcpy(out + h * head_bytes, x + h / params.group_size * head_bytes, head_bytes);
    }
  });
}

void slice_window(const SliceWindowParams& params) {
  const Mask mask{1, params.kv_len, 1, params.window, params.sink_tokens, 0};
  const KeyRange keys = mask.row(0);
  copy_rows(params.out, params.x, params.out_len, params.x_stride_token, params.row_elements,
            params.dtype, [&](int64_t r) { return keys.key(static_cast<int32_t>(r)); });
}

void copy_pages(const CopyPagesParams& params) {
  const int64_t copies = int64_t{params.num_layers} * params.num_pairs;
  parallel_ranges(copies, params.page_bytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t* pair = params.src_dst + i % params.num_pairs * 2;
      char* layer = static_cast<char*>(params.pool) +
                    i / params.num_pairs * params.num_pages * params.page_bytes;
      memcpy(layer + pair[1] * params.page_bytes, layer + pair[0] * params.page_bytes,
             params.page_bytes);
    }
  });
}

void scatter(const ScatterParams& params) {
  for (int32_t i = 0; i < params.num_pairs; ++i)
    params.dst[params.pairs[2 * i]] = params.pairs[2 * i + 1];
}

void embedding(const EmbeddingParams& params) {
  copy_rows(
      params.out, params.table, params.rows, params.width, params.width, params.dtype,
      [&](int64_t r) { return checked_index(params.ids[r], params.vocab_size, params.fault); });
}

void gather_rows(const GatherRowsParams& params) {
  copy_rows(
      params.out, params.x, params.out_rows, params.x_stride_row, params.width, params.dtype,
      [&](int64_t r) { return checked_index(params.index[r], params.num_rows, params.fault); });
}

}  // namespace flash_gqa::cpu
