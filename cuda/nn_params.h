// Plain structs of the few operations that a model runner needs around attention. Same rules as
// params.h.
#pragma once

#include "params.h"

namespace flash_gqa {

// out[i] = table[ids[i]]; an id outside [0, vocab_size) gives a row of zeros and kFaultTokenId.
struct EmbeddingParams {
  const void* table;   // [vocab_size, width] dtype
  const int32_t* ids;  // [rows]
  void* out;           // [rows, width] dtype
  DType dtype;
  int32_t rows;
  int32_t vocab_size;
  int32_t width;
  int32_t* fault;
};

// out = x * weight^T + bias (+ residual), accumulated in float32, rounded once. With norm_weight, x is
// what RmsNormParams makes of it. Gated, the product has 2 * out_features columns, gate and then up,
// rounded each; out = silu(gate) * up.
struct LinearParams {
  const void* x;       // [rows, in_features] dtype
  const void* weight;  // [out_features, in_features] dtype; gated: [2 * out_features, in_features]
  const void* bias;    // [out_features] dtype, or null; null where gated
  const void* residual;  // [rows, out_features] dtype, or null; may be out itself; null where gated
  const void* norm_weight;  // [in_features] dtype, or null
  void* out;                // [rows, out_features] out_dtype
  int64_t x_stride_row;
  DType dtype;      // of x, weight, bias, residual and norm_weight
  DType out_dtype;  // dtype, or kFloat32 (logits of a 16-bit model); dtype where gated
  float norm_eps;
  bool gated;
  int32_t rows;
  int32_t in_features;
  int32_t out_features;
};

// out = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019). The
// normalised value is rounded to dtype before the weight multiplies it, as Llama's reference code
// does.
struct RmsNormParams {
  const void* x;       // [rows, num_groups, width] dtype
  const void* weight;  // [width] dtype
  void* out;           // [rows, num_groups, width] dtype, contiguous; may be x
  int64_t x_stride_row;
  DType dtype;
  int32_t rows;
  int32_t num_groups;  // heads for q/k norm, else 1
  int32_t width;
  float eps;
};

struct AddParams {
  const void* a;  // [elements] dtype
  const void* b;  // [elements] dtype
  void* out;      // [elements] dtype; may be a or b
  DType dtype;
  int64_t elements;
};

// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
struct SiluMulParams {
  const void* gate;  // [rows, width] dtype
  const void* up;    // [rows, width] dtype
  void* out;         // [rows, width] dtype, contiguous
  int64_t gate_stride_row;
  int64_t up_stride_row;
  DType dtype;
  int32_t rows;
  int32_t width;
};

// The k largest logits of each row, descending, ties to the smaller id, with log-probabilities
// under the full softmax.
struct TopKParams {
  const void* logits;  // [rows, vocab_size] dtype
  int32_t* ids;        // [rows, k]
  float* log_probs;    // [rows, k]
  DType dtype;
  int32_t rows;
  int32_t vocab_size;
  int32_t k;  // 1 .. kMaxTopK
};
constexpr int kMaxTopK = 64;

// One token per row: temperature, then top-k, then top-p, then one draw from Philox4x32-10 (seed,
// row's counter). temperature 0 takes the largest logit. The same seed and logits give the same
// token on every back end.
struct SampleParams {
  const void* logits;  // [rows, vocab_size] dtype
  int32_t* ids;        // [rows]
  float* log_probs;    // [rows] or null: of the drawn id under the full softmax at temperature 1
  const float* temperature;  // [rows] >= 0
  const int32_t* top_k;      // [rows]; 0: off
  const float* top_p;        // [rows] in (0, 1]; 1: off
  const uint32_t* seed;      // [rows, 2] low, high
  const int32_t* counter;    // [rows] position of the draw in its sequence
  DType dtype;
  int32_t rows;
  int32_t vocab_size;
};

// out[i] = x[rows[i]] : the last token of each sequence, before the logits are computed.
struct GatherRowsParams {
  const void* x;         // [num_rows, width] dtype
  const int32_t* index;  // [out_rows]; outside [0, num_rows): zeros and kFaultTokenId
  void* out;             // [out_rows, width] dtype
  int64_t x_stride_row;
  DType dtype;
  int32_t num_rows;
  int32_t out_rows;
  int32_t width;
  int32_t* fault;
};

}  // namespace flash_gqa
