// The plain structs that every layer below TypeScript speaks, and the conventions that hold
// everywhere. Includes nothing of CUDA: g++, clang and nvcc all compile it.
//
//   page   a unit of cache memory           tile   a unit of compute
//   block  a CUDA thread block              split  a part of kv_len worked on by one block
//   group  the query heads that share one KV head; group_size = num_q_heads / num_kv_heads >= 1
//
//   1. Query row i of a sequence sits at position kv_len - q_len + i. kv_len counts this step's
//      tokens.
//   2. `window` is how many keys a query sees, its own position included; 0 means no limit.
//      (FlashAttention's and FlashInfer's window_left is window - 1.)
//   3. `lse` is the natural-log log-sum-exp, float32, sink logit included. A row that sees no key
//      has o = 0 and lse = -inf (with a sink logit: lse = the sink logit).
//   4. Order: scale, soft cap, mask, softmax. A sink logit is neither scaled nor capped.
//   5. Strides count elements and are named by axis. head_dim is always contiguous.
//   6. One cache layout: a page is [2 (k, v), num_kv_heads, page_size, head_dim], contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define GQA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GQA_HOST_DEVICE inline
#endif

namespace flash_gqa {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kInt32 = 3 };

constexpr size_t dtype_bytes(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kInt32 ? 4 : 2;
}

constexpr int kMaxHeadDim = 256;

// Lengths and page ids that live on the device are not trusted: whoever meets a bad one masks it
// and sets this word, which the next wait reports as INVALID_ARGUMENT.
enum Fault : int32_t {
  kFaultNone = 0,
  kFaultPageId = 1,    // a page id outside [0, num_pages) among the first kv_len tokens
  kFaultLength = 2,    // a length that is negative, or larger than its buffer or the table allows
  kFaultOffsets = 3,   // cu_seqlens that decrease or leave the packed rows
  kFaultTokenId = 4,   // an embedding id outside [0, vocab_size)
  kFaultTableRow = 5,  // a row of the page table outside [0, table_rows)
};

// How rows of a ragged batch are found. Sequence b owns packed query rows [q_start, q_start +
// q_len) and sees kv_len keys. read_sequence() in kv_source.h is the only reader of these fields.
struct BatchView {
  int32_t batch_size;
  int32_t total_q;              // packed query rows in all
  int32_t max_q_len;            // >= every q_len; sizes the grid only
  int32_t max_kv_len;           // >= every kv_len; sizes the grid only
  int32_t uniform_q_len;        // used where cu_seqlens_q is null
  int32_t uniform_kv_len;       // used where kv_lens and cu_seqlens_k are null
  const int32_t* cu_seqlens_q;  // [batch_size + 1] or null: every sequence has uniform_q_len rows
  const int32_t* cu_seqlens_k;  // [batch_size + 1] or null; dense K and V only
  const int32_t* kv_lens;       // [batch_size] or null; paged K and V only
};

// What the host knows of the longest sequence.
GQA_HOST_DEVICE int32_t q_len_bound(const BatchView& batch) {
  return batch.cu_seqlens_q != nullptr ? batch.max_q_len : batch.uniform_q_len;
}
GQA_HOST_DEVICE int32_t kv_len_bound(const BatchView& batch) {
  const bool varies = batch.cu_seqlens_k != nullptr || batch.kv_lens != nullptr;
  return varies ? batch.max_kv_len : batch.uniform_kv_len;
}

// Where K and V live: packed rows, or pages reached through a table.
struct KvView {
  const void* k;              // dense: [total_kv, num_kv_heads, head_dim]
                              // paged: [num_pages, 2, num_kv_heads, page_size, head_dim]
  const void* v;              // dense: as k; paged: null (v lies behind k in each page)
  int64_t k_stride_token;     // dense only
  int64_t v_stride_token;     // dense only
  int64_t stride_page;        // paged only: elements from one page to the next
  int32_t total_kv;           // dense only: packed key rows in all
  int32_t page_size;          // paged only: a power of two, 1 .. 1024
  int32_t num_pages;          // paged only
  int32_t max_pages;          // paged only: entries in one row of page_table
  int32_t table_rows;         // paged only: rows of page_table
  const int32_t* page_table;  // [table_rows, max_pages], or null: dense
  const int32_t* table_row;   // [batch_size] each sequence's table row, or null: row b for b
};

struct AttentionParams {
  const void* q;               // [total_q, num_q_heads, head_dim] dtype
  void* o;                     // [total_q, num_q_heads, head_dim] dtype, contiguous
  float* lse;                  // [total_q, num_q_heads] or null
  const float* sink_logits;    // [num_q_heads] or null
  const int32_t* prefix_lens;  // [batch_size] or null: prefix_len for every sequence
  int64_t q_stride_token;
  KvView kv;
  BatchView batch;
  DType dtype;  // of q, k, v and o
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;  // a multiple of 8, <= 256
  float sm_scale;
  float soft_cap;       // 0: off
  int32_t causal;       // 0 or 1; 0 excludes window, sink_tokens and prefix_len
  int32_t window;       // keys visible, itself included; 0: no limit
  int32_t sink_tokens;  // the first n positions stay visible whatever the window
  int32_t prefix_len;   // the first n positions see each other both ways; 0: off
  int32_t fixed_split;  // tokens per split, or 0: chosen for speed. Non-zero makes a sequence's
                        // bits independent of the rest of the batch.
  int32_t* fault;       // one word, never null
};

// Rotation angles. A position's angle is position * inv_freq[i], computed in float64 and rounded
// once, so that it is exact at any position. `cos` and `sin` already carry attention_factor.
struct RopeParams {
  const double* inv_freq;       // [half]
  const double* long_inv_freq;  // [half] or null; LongRoPE: used where the sequence is longer than
                                // original_max
  double base;                  // dynamic NTK: theta
  double dynamic_factor;        // dynamic NTK: its factor; 0: not dynamic
  double attention_factor;
  double long_attention_factor;  // used with long_inv_freq
  int32_t half;                  // rotary_dim / 2
  int32_t original_max;  // positions: where dynamic NTK and LongRoPE change their frequencies
};

// cos and sin of this step's rows, computed once and used by every layer.
struct RopeRowsParams {
  RopeParams rope;
  const int32_t* positions;  // [rows], or null: derived from `batch` (kv_len - q_len + i)
  int32_t seq_len;  // used with positions: the length that chooses dynamic and LongRoPE frequencies
                    // (0: per row, position + 1)
  BatchView batch;  // used where positions is null
  int32_t max_kv_len;  // bound for kv_lens read on the device (page table capacity), or 0
  int32_t rows;
  float* cos_sin;  // [rows, 2, half]: cos, then sin
  int32_t* fault;
};

struct RopeApplyParams {
  const void* x;         // [rows, num_heads, head_dim] dtype
  void* out;             // [rows, num_heads, head_dim] dtype, contiguous; may be x itself
  const float* cos_sin;  // [rows, 2, half]
  int64_t x_stride_token;
  DType dtype;
  int32_t rows;
  int32_t num_heads;
  int32_t head_dim;
  int32_t half;         // 2 * half <= head_dim; dimensions beyond it pass through
  int32_t interleaved;  // 0: pairs (i, i + half); 1: pairs (2i, 2i + 1)
};

// Writes k and v of this step's tokens into their pages; with cos_sin also rotates k on the way and
// q into q_out.
struct AppendKvParams {
  const void* q;  // [total_q, num_q_heads, head_dim] dtype, or null: no q to rotate
  void* q_out;    // as q, contiguous
  const void* k;  // [total_q, num_kv_heads, head_dim] dtype
  const void* v;  // [total_q, num_kv_heads, head_dim] dtype
  void* pages;    // [num_pages, 2, num_kv_heads, page_size, head_dim] dtype; layout as in `kv`
  const float* cos_sin;  // [total_q, 2, half], or null: no rotation
  int64_t q_stride_token;
  int64_t k_stride_token;
  int64_t v_stride_token;
  KvView kv;  // pages (kv.k == pages)
  BatchView batch;
  DType dtype;
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t half;
  int32_t interleaved;
  int32_t* fault;
};

// out[r, h] = x[r, h / group_size]: the KV expansion made explicit.
struct RepeatKvParams {
  const void* x;  // [rows, num_kv_heads, head_dim] dtype
  void* out;      // [rows, num_kv_heads * group_size, head_dim] dtype
  int64_t x_stride_token;
  DType dtype;
  int32_t rows;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t group_size;
};

// Gathers the keys or values that the last query of one sequence sees: sink rows, then the
// window's.
struct SliceWindowParams {
  const void* x;  // [kv_len, num_kv_heads, head_dim] dtype
  void* out;      // [out_len, num_kv_heads, head_dim] dtype
  int64_t x_stride_token;
  DType dtype;
  int32_t kv_len;
  int32_t window;  // >= 1
  int32_t sink_tokens;
  int32_t out_len;       // slice_window_length(kv_len, window, sink_tokens) of mask.h
  int32_t row_elements;  // num_kv_heads * head_dim
};

// Merges parts of one attention over disjoint keys, in part order.
struct MergeStatesParams {
  const void* const* o;     // host array [num_parts] of [rows, num_heads, head_dim] dtype
  const float* const* lse;  // host array [num_parts] of [rows, num_heads]
  void* out;                // [rows, num_heads, head_dim] dtype
  float* out_lse;           // [rows, num_heads] or null
  DType dtype;
  int32_t num_parts;  // 1 .. kMaxMergeParts
  int32_t rows;
  int32_t num_heads;
  int32_t head_dim;
};
constexpr int kMaxMergeParts = 64;

// Moves whole pages of every layer: page src[i] -> dst[i]. Used by copy-on-write.
struct CopyPagesParams {
  void* pool;              // [num_layers, num_pages, page_bytes]
  const int32_t* src_dst;  // host array [num_pairs, 2]; read before the call returns
  int64_t page_bytes;
  int32_t num_layers;
  int32_t num_pages;  // per layer
  int32_t num_pairs;
};

// Writes single words: dst[index] = value. How a step changes its lengths and table rows.
struct ScatterParams {
  int32_t* dst;
  const int32_t*
      pairs;  // host array [num_pairs, 2] of (index, value); read before the call returns
  int32_t num_pairs;
};

}  // namespace flash_gqa
